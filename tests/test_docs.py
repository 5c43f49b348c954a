"""Every Python block of the README and the docs runs, in order, as a reader would type it."""

from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [p for p in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if "```python" in p.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page: pathlib.Path) -> None:
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        exec(compile(block, str(page), "exec"), names)


def anchors(page: pathlib.Path) -> set[str]:
    """What GitHub calls a page's headings in links."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_relative_links_and_pictures_exist() -> None:
    for page in [*ROOT.glob("*.md"), *(p for name in ("docs", "drafts", "bench") for p in (ROOT / name).rglob("*.md"))]:
        for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
            if "://" in link:
                continue
            linked = page.parent / link if link else page
            assert linked.exists(), f"{page.name} links to {link}"
            assert not anchor or anchor in anchors(linked), f"{page.name} links to {link}#{anchor}"
