"""Where tokens came from, and the HTML that shows it."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specdec
from specdec import Source, SpeculationStats, Trace
from specdec.pieces import MOST_PENDING, Pieces

A, R, B, P = Source.ACCEPTED, Source.RECOVERED, Source.BONUS, Source.PLAIN


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return specdec.bundled_pair()[2]


class Page(HTMLParser):
    """What a browser would make of a trace: (title, text) of each titled span, the text of each row, the tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.spans: list[tuple[str, str]] = []
        self.rows: list[str] = []
        self.tags: set[str] = set()
        self.words = ""
        self._hidden = self._in_row = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        self._hidden = given.get("aria-hidden") == "true"
        if tag == "pre":
            self.rows.append("")
            self._in_row = True
        if given.get("title"):
            self.spans.append((given["title"] or "", ""))

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False
        self._in_row = self._in_row and tag != "pre"

    def handle_data(self, data: str) -> None:
        self.words += data
        if self._in_row and not self._hidden:
            self.rows[-1] += data
            if self.spans:
                title, text = self.spans[-1]
                self.spans[-1] = (title, text + data)


def traced(tokens: list[int], tokenizer: Any = None, source: Source = A) -> Trace:
    return Trace([list(tokens)], [[source] * len(tokens)], tokenizer)


@pytest.mark.parametrize(
    ("tokens", "num_accepted", "num_drafted", "sources"),
    [
        ([1], 0, 0, [P]),
        ([1], 0, 3, [R]),
        ([1, 2, 3], 2, 3, [A, A, R]),
        ([1, 2, 3], 2, 2, [A, A, B]),
        ([1, 2], 2, 2, [A, A]),  # cut behind the last draft token
        ([1], 3, 4, [A]),  # cut among them
        ([], 2, 2, []),
    ],
)
def test_a_round_says_where_its_tokens_came_from(
    tokens: list[int], num_accepted: int, num_drafted: int, sources: list[Source]
) -> None:
    trace = Trace.empty(2)
    trace.record(1, tokens, num_accepted, num_drafted)
    assert (trace.tokens, trace.sources) == ([[], tokens], [[], sources])


@pytest.mark.parametrize(("length", "num_accepted", "num_drafted"), [(2, 0, 0), (1, 2, 1), (1, -1, 2), (4, 2, 3)])
def test_a_round_that_cannot_be_is_refused(length: int, num_accepted: int, num_drafted: int) -> None:
    trace = Trace.empty(1)
    with pytest.raises(ValueError, match="no round gives"):
        trace.record(0, [7] * length, num_accepted, num_drafted)
    assert trace.tokens == [[]]


def test_counts_and_truncation() -> None:
    trace = Trace.empty(2)
    for request in (0, 1):
        trace.record(request, [5], 0, 0)
        trace.record(request, [6, 7, 8], 2, 2)
    trace.record(1, [9], 0, 1)
    assert trace.counts() == {A: 4, R: 1, B: 2, P: 2}
    trace.truncate(0, 2)
    trace.truncate(1, 9)
    assert trace.tokens == [[5, 6], [5, 6, 7, 8, 9]]
    assert trace.sources == [[P, A], [P, A, A, B, R]]
    trace.truncate(1, 0)
    assert trace.tokens[1] == trace.sources[1] == []
    trace.truncate(0, -1)
    assert trace.counts() == dict.fromkeys(Source, 0)


def test_text_is_escaped_and_whole(tokenizer: Any) -> None:
    text = "<script>alert('x')</script> & &amp; \"q\" $a^2$\n\n    indented  twice\n"
    tokens = tokenizer(text).input_ids
    page = Page(traced(tokens, tokenizer).to_html())
    assert page.tags == {"div", "span", "pre"}
    assert page.rows == [text]
    assert [t for t, _ in page.spans] == [f"accepted, token {t}" for t in tokens]
    assert page.words.count("↵") == text.count("\n"), "a line's end can be seen"


def test_control_characters_are_seen(tokenizer: Any) -> None:
    tokens = tokenizer("a\rb\x00c\x1bd").input_ids
    assert Page(traced(tokens, tokenizer).to_html()).rows == ["a␍b␀c␛d"]


def test_a_character_of_several_tokens_is_one_span_that_names_them(tokenizer: Any) -> None:
    tokens = tokenizer("x€y").input_ids
    assert len(tokens) == 5, "the sign is three tokens of one byte"
    trace = Trace([tokens], [[P, A, A, R, B]], tokenizer)
    _, x, *sign, y = [0, *tokens]
    assert Page(trace.to_html()).spans == [
        (f"plain, token {x}", "x"),
        (f"accepted, token {sign[0]} + accepted, token {sign[1]} + recovered, token {sign[2]}", "€"),
        (f"bonus, token {y}", "y"),
    ]


def test_half_a_character_at_the_end_is_shown(tokenizer: Any) -> None:
    tokens = tokenizer("x€").input_ids[:-1]
    page = Page(traced(tokens, tokenizer).to_html())
    assert page.rows == ["x\N{REPLACEMENT CHARACTER}"]
    assert len(page.spans) == 2


def test_special_tokens_are_shown(tokenizer: Any) -> None:
    assert Page(traced([tokenizer.eos_token_id], tokenizer).to_html()).rows == ["<|endoftext|>"]


@given(text=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\N{REPLACEMENT CHARACTER}"), max_size=80))
@settings(deadline=None)
def test_pieces_are_the_text(tokenizer: Any, text: str) -> None:
    tokens = tokenizer(text).input_ids
    pieces = Pieces(tokenizer)
    parts = [pieces.add(token) for token in tokens]
    assert pieces.pending == []
    assert "".join(p for p in parts if p is not None) == tokenizer.decode(tokens) == text


class Words:
    """A tokenizer in the manner of SentencePiece: ▁ is a space, and a text's first one is dropped."""

    vocabulary = ("▁", "▁one", "▁two", "s")

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(self.vocabulary[t] for t in tokens).replace("▁", " ").removeprefix(" ")


def test_spaces_that_only_show_behind_another_word() -> None:
    tokens = [1, 2, 3, 0, 1, 2]
    page = Page(traced(tokens, Words()).to_html())
    assert page.rows == ["one twos  one two"]
    assert [text for _, text in page.spans] == ["one", " two", "s", " ", " one", " two"]
    assert Page(traced([0, 1], Words()).to_html()).spans == [("accepted, token 0 + accepted, token 1", " one")]


class Counting:
    """Counts how many tokens the tokenizer decodes."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.decoded = tokenizer, 0

    def decode(self, tokens: list[int], **options: Any) -> str:
        self.decoded += len(tokens)
        return self.tokenizer.decode(tokens, **options)


@pytest.mark.parametrize("text", ["a long line without any end ", "é", "€"])
def test_time_is_linear(tokenizer: Any, text: str) -> None:
    counting = Counting(tokenizer)
    tokens = tokenizer(text * 400).input_ids
    broken = [t for t in tokens if tokenizer.decode([t]) == "\N{REPLACEMENT CHARACTER}"][:1] * 1000  # no text ever
    traced(tokens + broken, counting).to_html()
    assert counting.decoded <= 2 * MOST_PENDING * (len(tokens) + len(broken))


def test_ids_without_a_tokenizer(tokenizer: Any) -> None:
    trace = Trace.empty(3)
    trace.record(0, [11, 22], 1, 1)
    trace.record(2, [33], 0, 0)
    page = Page(trace.to_html())
    assert [row.split() for row in page.rows] == [["11", "22"], [], ["33"]]
    assert [t for t, _ in page.spans] == ["accepted, token 11", "bonus, token 22", "plain, token 33"]
    assert "pass tokenizer= to generate()" in page.words
    assert "request 2" in page.words
    assert "pass tokenizer=" not in trace.to_html(tokenizer)
    assert Page(trace.to_html(tokenizer)).rows[2] == tokenizer.decode([33])


def test_the_legend_counts() -> None:
    trace = Trace.empty(1)
    assert "accepted 0 (0 %)" in Page(trace.to_html()).words
    trace.record(0, [1, 2, 3, 4], 3, 3)
    words = Page(trace.to_html()).words
    assert "accepted 3 (75 %)" in words
    assert "bonus 1 (25 %)" in words
    assert "recovered 0 (0 %)" in words


def test_sources_differ_in_more_than_colour() -> None:
    trace = Trace([[1, 2, 3, 4]], [[A, R, B, P]])
    html = trace.to_html()
    for line in ("solid", "dashed", "double", "dotted"):
        assert html.count(line) == 2, "once in the legend, once in the text"


def test_a_notebook_shows_text_and_counters(tokenizer: Any) -> None:
    tokens = tokenizer("x < y").input_ids
    stats = SpeculationStats(new_tokens=len(tokens), trace=traced(tokens, tokenizer))
    page = Page(stats._repr_html_())
    assert page.rows == ["x < y", str(stats)]
    assert Page(SpeculationStats(new_tokens=3)._repr_html_()).rows == [str(SpeculationStats(new_tokens=3))]


def test_a_real_call_read_by_its_commits() -> None:
    """A trace of on_commit's parts is the returned text; the target's own draft is accepted throughout."""
    target, _, tokenizer = specdec.bundled_pair()
    trace = Trace.empty(1)

    def record(part: specdec.Committed) -> None:
        trace.record(part.request, part.tokens, part.num_accepted, 3 if trace.tokens[0] else 0)

    inputs = tokenizer("def f(x):", return_tensors="pt")
    out = specdec.generate(target, **inputs, drafter=target, num_draft_tokens=3, max_new_tokens=9, on_commit=record)
    new = out[0, inputs["input_ids"].shape[1] :].tolist()
    assert trace.tokens == [new]
    assert trace.sources == [[P, A, A, A, B, A, A, A, B]]
    assert Page(trace.to_html(tokenizer)).rows == [tokenizer.decode(new)]
