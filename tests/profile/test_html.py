"""The page: whole, closed to the network and to what a profile's texts could do, and true to its figures."""

from __future__ import annotations

import pathlib
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import pytest

from specdec.profile import drawing, html
from specdec.profile.drawing import MISSING, Plot, Series, draw
from specdec.profile.html import page, write_html
from specdec.profile.markup import tag
from specdec.profile.schema import Profile
from specdec.profile.words import clean
from specdec.trace import LOOKS, Source
from tests.profile import sample, showcase

VOID = {"meta", "br"}
KNOWN = set(
    "html head meta title style body header main nav section div p span strong a h1 h2 h3 ul li dl dt dd table caption "
    "thead tbody tr th td figure details summary pre svg g path defs use text desc clippath rect".split()
)


class Page(HTMLParser):
    """Tags in balance, and what tests ask of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.cells: list[str] = []
        self.tokens: list[tuple[str, str]] = []  # class and text, the box's words included
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        classes = (dict(attrs).get("class") or "").split()
        if classes[:1] == ["t"]:
            self.tokens.append((classes[1], ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data
        if "pre" in self.open and self.tokens:
            kind, text = self.tokens[-1]
            self.tokens[-1] = (kind, text + data)

    def values(self, name: str) -> list[str]:
        return [value for _, n, value in self.attributes if n == name]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    makers: dict[str, Callable[[], Profile]] = {
        "full": showcase.full, "many": showcase.many, "empty": showcase.empty, "harmful": showcase.harmful,
    }  # fmt: skip
    return {name: page(make()) for name, make in makers.items()}


EVERY = pytest.mark.parametrize("name", ["full", "many", "empty", "harmful"])


@EVERY
def test_the_page_is_whole_and_loads_nothing(pages: dict[str, str], name: str) -> None:
    text = pages[name]
    read = Page(text)
    assert set(read.tags) <= KNOWN, "no script, image, frame, form, link"
    ids = read.values("id")
    assert len(ids) == len(set(ids))
    assert all(href[0] == "#" and href[1:] in ids for href in read.values("href"))
    for names in read.values("aria-labelledby"):
        assert set(names.split()) <= set(ids)
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {f"#{i}" for i in ids}
    names = {n for _, n, _ in read.attributes}
    assert not [n for n in names if n.startswith("on") or n in ("src", "srcset", "action", "data", "background")]
    assert "@import" not in text
    assert "http" not in re.sub(r"http-equiv", "", text)


@EVERY
def test_the_browser_is_told_that_nothing_may_run(pages: dict[str, str], name: str) -> None:
    found = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', pages[name])
    assert found is not None
    assert found[1].startswith("default-src &#x27;none&#x27;; style-src &#x27;unsafe-inline&#x27;;")
    assert "script-src" not in found[1]
    assert pages[name].index(found[0]) < pages[name].index("<style>")


@EVERY
def test_every_letter_can_be_written_and_none_steers(pages: dict[str, str], name: str) -> None:
    text = pages[name]
    assert text.encode("utf-8")
    assert not set(text) & {
        chr(c) for c in [*range(9), *range(11, 32), 0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F)]
    }


def test_harmful_texts_are_words(pages: dict[str, str]) -> None:
    words = "\n".join(Page(pages["harmful"]).words)
    for text in (
        showcase.HARM[0],
        showcase.HARM[1],
        "[U+202E]gnp.exe",
        "lone \ufffd surrogate \ufffd",
        showcase.HARM[5],
    ):
        assert words.count(text) >= 3, text
    assert "␛[31mred" in words
    assert "漢字" in words
    assert "3 more tokens" not in words
    assert "long" * 150 not in words, "no token is longer than a line or five"


def test_markup_cannot_be_smuggled() -> None:
    assert tag("p", "<b>", title='"><i>') == '<p title="&quot;&gt;&lt;i&gt;">&lt;b&gt;</p>'
    assert tag("p", tag("b", "x"), None, class_="a", aria_label=None) == '<p class="a"><b>x</b></p>'
    assert clean("a\x00\x1b\x7f\x85\ud800\u202e\u2028\n\tb") == "a␀␛␡\ufffd\ufffd[U+202E][U+2028]\n\tb"


def test_what_is_missing_is_said(pages: dict[str, str]) -> None:
    words = "\n".join(Page(pages["empty"]).words)
    for said in (
        "No verdict", "Interrupted", "There is no recommendation", "No draft was measured",
        "Nothing of this was measured",
        "No agreement was measured", "No costs were measured", "No tree was looked for", "No examples were kept",
        "No setting was looked at",
    ):  # fmt: skip
        assert said in words, said
    assert "svg" not in Page(pages["empty"]).tags


def test_the_verdict_and_its_warnings_stand_on_top(pages: dict[str, str]) -> None:
    words = " ".join(Page(pages["full"]).words)
    order = [
        "Speculate in 3 of 4 cases: up to 1.69x",
        "Interrupted",
        "IMPOSSIBLE SPEED-UP",
        "What to run",
        "Notes",
        "tokenizer",
    ]
    places = [words.index(w) for w in order]
    assert places == sorted(places)
    assert 'class="alarm" role="alert"' in pages["full"]
    assert 'class="alarm"' not in pages["many"]


def test_tables_have_the_profiles_figures(pages: dict[str, str]) -> None:
    profile, cells = showcase.full(), set(Page(pages["full"]).cells)
    for s in profile.settings:
        m = s.measured
        if m is not None:
            assert f"{m.rounds.value:.2f} [{m.rounds.low:.2f}, {m.rounds.high:.2f}]" in cells
            assert f"{m.tokens_per_second:.1f}" in cells
            for p in m.positions if s.num_draft_tokens == 8 and s.batch == 1 else ():
                assert f"{p.marginal.value:.3f} [{p.marginal.low:.3f}, {p.marginal.high:.3f}]" in cells
            for band in m.by_entropy if s.num_draft_tokens == 8 and s.batch == 1 else ():
                assert f"{band.value.value:.3f} [{band.value.low:.3f}, {band.value.high:.3f}]" in cells
    for c in profile.costs:
        assert {f"{1000 * c.times.verify:.2f}", f"{1000 * c.fitted_draft:.2f}"} <= cells
    assert {"+137.3 %", "0.94x [0.88, 1.00] IMPOSSIBLE", "50.0 MB", "0.01 x 1 + 0.0005 x tokens"} <= cells


def test_tokens_have_the_colours_of_a_trace_and_say_what_is_known() -> None:
    profile = sample.profile()
    text = page(profile)
    tokens = Page(text).tokens
    assert [kind for kind, _ in tokens] == ["accepted", "recovered", "bonus", "plain"]
    assert tokens[0] == ("accepted", "defaccepted, p 0.500, q 0.250, alpha 0.750")
    assert tokens[2][1].startswith("(a, b):↵\nbonus")
    assert tokens[3][1].startswith("  return <b>plain")
    assert text.count('tabindex="0"><') == 0, "a box of a token has words"
    for source in Source:
        assert f".{source.value}{{background:rgba({LOOKS[source][0]}," in text
        assert f"1 (25 %), {LOOKS[source][2]}".replace("'", "&#x27;") in text
    silent = replace(profile.examples[0].tokens[0], p=None, q=None, alpha=None, source="unheard of")
    quiet = replace(profile, examples=[replace(profile.examples[0], tokens=[silent])])
    assert Page(page(quiet)).tokens == [("plain", "defplain")]


def test_thousands_of_tokens_are_cut(pages: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(Page(pages["harmful"]).tokens) == 3010
    monkeypatch.setattr("specdec.profile.examples._MOST_TOKENS", 30)
    text = page(replace(showcase.full(), agreements=[], settings=[], costs=[]))
    assert len(Page(text).tokens) == 30
    assert f"{len(showcase.examples()[0].tokens) - 30} more tokens not shown." in text
    assert "20 more tokens not shown." in text


def test_without_matplotlib_the_tables_stay(pages: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    read = Page(text := page(showcase.full()))
    assert "svg" not in read.tags
    assert MISSING.replace("'", "&#x27;") in text
    assert read.cells == Page(pages["full"]).cells


def test_every_picture_has_words_and_a_table(pages: dict[str, str]) -> None:
    figures = re.findall(r"<figure>.*?</figure>", pages["full"], re.S)
    assert len(figures) == pages["full"].count("<figure>") >= 13
    for figure in figures:
        read = Page(figure)
        assert read.tags["svg"] == read.tags["title"] == read.tags["desc"] == 1
        assert read.tags["td"] > 0
        assert "legend" not in read.values("class"), "one legend for all of a kind"
    for kind in (
        "Speed-up, temp",
        "Acceptance by position",
        "Alpha by domain",
        "Alpha by entropy",
        "Verification, model",
    ):
        assert any(kind in figure for figure in figures), kind


def test_points_stand_where_their_figures_are() -> None:
    points = Series(0, "measured", [1, 2, 4], [0.5, 1.0, 0.75], [0.4, 0.9, 0.7], [0.6, 1.1, 0.8])
    svg = draw(Plot("t", "d", "x", "y", [points], line=1.0, top=2.0), "key")
    marks = re.findall(r'<use href="#key-[^"]*" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--c0\)', svg)
    (x1, y1), (x2, y2), (x4, y4) = [(float(x), float(y)) for x, y in marks]
    assert (x4 - x1) == pytest.approx(3 * (x2 - x1), rel=1e-3)
    assert (y1 - y4) == pytest.approx((y1 - y2) / 2, rel=1e-3)
    assert y2 < y4 < y1, "up is more"
    tops = [
        float(y) for y in re.findall(r"<path d=\"M [\d.]+ [\d.]+  L [\d.]+ ([\d.]+)  \"[^>]*stroke: var\(--c0\)", svg)
    ]
    assert any(y == pytest.approx(y1 - 0.2 * (y1 - y2), rel=1e-3) for y in tops), (
        "0.6 is a fifth of the way from 0.5 to 1"
    )


def test_words_do_not_pass_through_matplotlib() -> None:
    names = ["$\\frac{", "漢字", "_x", "<b>&"]
    series = [Series(1, "measured", [0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4])]
    svg = draw(Plot("<t>", "d", "alpha", "", series, names, is_lying=True), "k")
    for name in ("$\\frac{", "漢字", "_x", "&lt;b&gt;&amp;", "&lt;t&gt;"):
        assert f">{name}</" in svg


def test_the_users_matplotlib_is_left_alone_and_does_not_matter(pages: dict[str, str]) -> None:
    with matplotlib.rc_context({"lines.linewidth": 9.0, "axes.grid": True, "svg.fonttype": "path", "font.size": 30}):
        before = matplotlib.rcParams.copy()
        assert page(showcase.full()) == pages["full"], "and a page is always the same"
        assert matplotlib.rcParams.copy() == before


def test_a_page_is_written_whole(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "not" / "yet" / "report.html"
    write_html(showcase.empty(), path)
    path.write_text("old")
    write_html(showcase.empty(), path)
    assert path.read_text(encoding="utf-8") == page(showcase.empty())
    monkeypatch.setattr(html, "page", lambda profile: "x" + "\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_html(showcase.empty(), path)
    assert path.read_text(encoding="utf-8") == page(showcase.empty())


def test_more_drafts_than_colours() -> None:
    names = [f"draft {i}" for i in range(drawing.NUM_COLOURS + 2)]
    settings = [replace(sample.setting("ngram", 0.0, 1, k), draft=n) for n in names for k in (1, 2)]
    read = Page(page(replace(showcase.empty(), settings=settings)))
    assert all(n in read.words for n in names)


def test_drafts_that_are_measured_only_or_predicted_only() -> None:
    both = [sample.setting("ngram", 0.0, 1, k) for k in (1, 3)]
    measured = [replace(s, draft="measured", predicted=None) for s in both]
    predicted = [replace(s, draft="predicted", measured=None) for s in both]
    read = Page(page(replace(showcase.empty(), settings=[*measured, *predicted])))
    rows = [" ".join(read.cells[i : i + 3]) for i in range(len(read.cells))]
    assert any(row.startswith("1* - 1.18x") for row in rows)
    assert any(row.startswith("1* 1.22x -") for row in rows)
    assert read.tags["svg"] > 1
