"""The page in a real browser: it loads nothing, says nothing to the console, and shows what it should."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from specdec.profile.html import write_html
from tests.profile import browser, showcase
from tests.profile.browser import Browser

PROGRAM = browser.binary()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"no browser: none of {', '.join(browser.NAMES)} is on the PATH (apt-get install chromium)"
)
# What a picture shows: it is seen, in it are shapes with a size, and its words are not cut off at its edges.
PICTURES = """[...document.querySelectorAll("figure > svg")].map(svg => {
  const box = svg.getBoundingClientRect();
  const words = [...svg.querySelectorAll("text")].map(t => t.getBoundingClientRect());
  return {
    width: box.width, height: box.height,
    name: document.getElementById(svg.getAttribute("aria-labelledby").split(" ")[0]).textContent,
    marks: [...svg.querySelectorAll("use")].filter(u => u.getBoundingClientRect().width > 0).length,
    cut: words.filter(w => w.left < box.left - 1 || w.right > box.right + 1 || w.bottom > box.bottom + 1).length,
    figure: svg.parentElement.getBoundingClientRect().right,
  };
})"""
SHOWN = """[...document.querySelectorAll(".tip")].filter(t => getComputedStyle(t).display != "none").map(t => {
  const box = t.getBoundingClientRect();
  return {words: t.textContent, left: box.left, right: box.right, top: box.top, bottom: box.bottom,
          front: [...Array(Math.floor(box.width / 4)).keys()].every(
            i => document.elementFromPoint(box.left + 4 * i + 2, box.top + box.height / 2) == t) };
})"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, pathlib.Path]]:
    directory = tmp_path_factory.mktemp("browser")
    for make in (showcase.full, showcase.many, showcase.harmful, showcase.empty):
        write_html(make(), directory / f"{make.__name__}.html")
    assert PROGRAM is not None
    running = Browser(PROGRAM, directory)
    yield running, directory
    running.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["full", "many", "harmful", "empty"])
def test_it_opens_in_peace(opened: tuple[Browser, pathlib.Path], name: str, width: int) -> None:
    page, directory = opened
    path = directory / f"{name}.html"
    page.open(path, width)
    assert page.ask("document.title").startswith("specdec profile: ")
    assert page.requests() == [path.as_uri()], "nothing else is asked for"
    assert page.complaints() == []
    assert page.ask("document.documentElement.scrollWidth") <= width, "the page itself does not scroll sideways"
    assert page.ask("document.querySelectorAll('script, img, iframe, object, embed, link, form').length") == 0
    assert page.ask("document.compatMode") == "CSS1Compat"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["full", "many"])
def test_pictures_are_seen(opened: tuple[Browser, pathlib.Path], name: str, width: int) -> None:
    page, directory = opened
    page.open(directory / f"{name}.html", width)
    pictures: list[dict[str, Any]] = page.ask(PICTURES)
    assert len(pictures) >= 13
    for picture in pictures:
        assert picture["name"]
        assert picture["width"] > 250
        assert picture["height"] > 100
        assert picture["marks"] > 0, picture
        assert picture["cut"] == 0, picture
        assert picture["figure"] <= width


def test_light_and_dark_differ_and_words_stand_out(opened: tuple[Browser, pathlib.Path]) -> None:
    page, directory = opened
    paper = {}
    for scheme in ("light", "dark"):
        page.open(directory / "full.html", scheme=scheme)
        # The contrast of words on paper as WCAG 2 counts it; 4.5 is enough for text, 3 for the marks of a chart.
        worst = page.ask("""(() => {
          const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
            .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
            return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
          const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          const card = light(getComputedStyle(document.querySelector("figure")).backgroundColor);
          const paper = light(getComputedStyle(document.body).backgroundColor);
          const of = (what, name) => [...document.querySelectorAll(what)].map(e => light(getComputedStyle(e)[name]));
          return {
            text: Math.min(...of("h1, h2, p.soft, dt, dd, td, th, a, summary", "color").map(c => ratio(c, paper))),
            axes: Math.min(...of("svg text", "fill").map(c => ratio(c, card))),
            marks: Math.min(...of("figure use", "stroke").map(c => ratio(c, card))),
          }; })()""")
        assert worst["text"] > 4.5
        assert worst["axes"] > 4.5
        assert worst["marks"] > 3
        paper[scheme] = page.ask("getComputedStyle(document.body).backgroundColor")
    assert paper["light"] != paper["dark"]


@pytest.mark.parametrize("width", [390, 1280])
def test_a_token_says_what_is_known_on_hover_and_on_focus(opened: tuple[Browser, pathlib.Path], width: int) -> None:
    page, directory = opened
    page.open(directory / "full.html", width)
    page.hover(1, 1)
    assert page.ask(SHOWN) == []
    place = page.ask("""(() => {
      const token = [...document.querySelectorAll(".t")].find(t => t.firstChild.textContent == " numbers;");
      token.scrollIntoView({block: "center", behavior: "instant"});
      const box = token.getClientRects()[0];
      return [box.x + box.width / 2, box.y + box.height / 2]; })()""")
    page.hover(*place)
    (hovered,) = page.ask(SHOWN)
    example = showcase.full().examples[0].tokens
    token = next(t for t in example if t.text == " numbers;")
    assert hovered["words"] == f"recovered, p {token.p:.3f}, q {token.q:.3f}, alpha {token.alpha:.3f}"
    assert 0 <= hovered["left"] < hovered["right"] <= width
    page.hover(1, 1)
    assert page.ask(SHOWN) == []
    # From the example's heading one step of the tab key goes to its first token, the next to its second.
    page.ask("document.querySelector('#examples summary').focus()")
    for token in example[:2]:
        page.press("Tab", 9)
        (focused,) = page.ask(SHOWN)
        assert focused["words"].startswith(f"{token.source}, p {token.p:.3f}")
        assert 0 <= focused["left"] < focused["right"] <= width
        assert 0 <= focused["top"] < focused["bottom"] <= 900


def test_the_box_of_a_token_lies_above_the_other_tokens(opened: tuple[Browser, pathlib.Path]) -> None:
    page, directory = opened
    page.open(directory / "full.html")
    page.ask("document.querySelector('pre').scrollIntoView({block: 'center', behavior: 'instant'})")
    # A box lets the pointer through, so that the tokens behind it can be reached; here it must not.
    page.ask("document.querySelectorAll('.tip').forEach(t => t.style.pointerEvents = 'auto')")
    page.ask("[...document.querySelectorAll('.t')].find(t => t.firstChild.textContent == ' numbers;').focus()")
    (box,) = page.ask(SHOWN)
    assert box["front"]


def test_a_reader_of_screens_hears_names(opened: tuple[Browser, pathlib.Path]) -> None:
    page, directory = opened
    page.open(directory / "full.html")
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    names: dict[str, list[str]] = {}
    for node in nodes:
        names.setdefault(node.get("role", {}).get("value", ""), []).append(node.get("name", {}).get("value", ""))
    pictures = names.get("image", []) + names.get("img", []) + names.get("SvgRoot", [])
    assert any(n.startswith("Speed-up, temperature 0, batch 1") for n in pictures)
    assert all(names["region"])
    assert "Verdict" in names["heading"]


def test_tables_open_and_paper_has_the_verdict(opened: tuple[Browser, pathlib.Path], tmp_path: pathlib.Path) -> None:
    page, directory = opened
    page.open(directory / "full.html")
    hidden = "document.querySelector('figure table').checkVisibility()"
    assert page.ask(hidden) is False
    page.ask("document.querySelector('figure summary').click()")
    assert page.ask(hidden) is True
    page.media("dark", "print")
    assert page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.ask("document.querySelector('.headline').checkVisibility()") is True
    page.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
