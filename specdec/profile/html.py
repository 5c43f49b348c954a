"""A profile as one page: `report.html` holds all that it shows and loads nothing."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources

from specdec.profile import charts, cost_grids, drawing, grids
from specdec.profile.charts import Chart
from specdec.profile.examples import examples, styles
from specdec.profile.grids import Grid
from specdec.profile.markup import Markup, join, tag
from specdec.profile.schema import PLAIN, Profile
from specdec.profile.verdict import (
    ALARM,
    INTERRUPTED,
    alarms,
    break_evens,
    case,
    describe,
    doubts,
    draft_names,
    facts,
    headline,
    remarks,
)
from specdec.profile.words import short

# Nothing is loaded and nothing runs, whatever a profile holds: the page says so to the browser.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_LONG = 24  # rows from which on a table is closed at first
_MOST_CHARTS = 24  # of one kind; what is left out has its table


def write_html(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Writes a profile as one page that needs no other file, no network and no script.

    Charts need matplotlib, the extra `report`; without it the page has their tables and says so.

    Args:
        profile: as `specdec.profile.files.load` gives it. Its texts are escaped.
        path: of the page; what is there is replaced, whole or not at all. Its directory is made where it is missing.

    Example:
        >>> write_html(load("profiles/mine"), "profiles/mine/report.html")  # doctest: +SKIP
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(page(profile), encoding="utf-8")
    part.replace(path)


def page(profile: Profile) -> str:
    """The page as text."""
    sections = [
        ("verdict", "Verdict", _verdict(profile)),
        ("measured", "What was measured", _facts(profile)),
        ("speedup", "Speed-up", _speedups(profile)),
        ("acceptance", "Acceptance", _acceptance(profile)),
        ("costs", "Costs", _costs(profile)),
        ("trees", "Trees", _per_draft(profile, cost_grids.trees, "No tree was looked for.")),
        ("examples", "Examples", examples(profile.examples)),
        ("settings", "Every setting", _settings(profile)),
    ]
    links = [tag("a", title, href=f"#{key}") for key, title, _ in sections]
    bodies = [
        tag("section", tag("h2", title, id=f"{key}-head"), body, id=key, aria_labelledby=f"{key}-head")
        for key, title, body in sections
    ]
    title = f"specdec profile: {short(profile.subject.target, 80)}"
    sheet = resources.files("specdec.profile").joinpath("report.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        Markup(f"<style>{sheet}{styles()}</style>"),
    )
    body = tag("body", tag("header", tag("h1", title), _banner(profile), tag("nav", *links)), tag("main", *bodies))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _banner(profile: Profile) -> Markup:
    """The verdict in a sentence, and what makes it doubtful."""
    pays = any(r.draft != PLAIN for r in profile.recommendations)
    parts = [tag("p", headline(profile), class_="headline pays" if pays else "headline")]
    if not profile.complete:
        parts.append(tag("div", tag("strong", INTERRUPTED), class_="warn"))
    if loud := alarms(profile):
        parts.append(tag("div", tag("strong", ALARM), _items(loud), class_="alarm", role="alert"))
    return join(*parts)


def _items(lines: Sequence[str]) -> Markup:
    return tag("ul", *(tag("li", line) for line in lines))


def _verdict(profile: Profile) -> Markup:
    parts = [_table(grids.verdict(profile))] if profile.recommendations else [tag("p", "There is no recommendation.")]
    why = [
        tag("div", tag("h3", f"Why, {case(r.temperature, r.batch)}"), _items([short(w, 400) for w in r.reasons]))
        for r in profile.recommendations
        if r.reasons
    ]
    if why:
        parts.append(tag("div", *why, class_="why"))
    for title, lines in (
        ("Break-even batch size", break_evens(profile)),
        ("Acceptance is not what alpha says", doubts(profile)),
        ("Notes", remarks(profile)),
    ):
        if lines:
            parts += [tag("h3", title), _items(lines)]
    return join(*parts)


def _facts(profile: Profile) -> Markup:
    rows = [join(tag("dt", name), tag("dd", value)) for name, value in facts(profile)]
    drafts = [f"{short(d.name)}: {describe(d)}" for d in profile.drafts]
    return join(tag("dl", *rows), tag("h3", "Drafts"), _items(drafts) if drafts else tag("p", "No draft was measured."))


def _speedups(profile: Profile) -> Markup:
    said = (
        "How many times faster than plain decoding of the same engine, prefill included. Points are measured, "
        "and their bar holds 95 % of a bootstrap over prompts; the dashed line was predicted without running the loop. "
        "Below the line at 1 a draft costs more than it gives."
    )
    found = charts.speedups(profile)
    lines = {"dashed": "predicted", "dotted": "ceiling: no loop of this many draft tokens is faster", "thin": "plain"}
    return join(
        tag("p", said, class_="soft"),
        _group("speedup", found, _drafts(profile, found), lines),
        _per_draft(profile, grids.best, "No setting was looked at."),
    )


def _acceptance(profile: Profile) -> Markup:
    said = (
        "Alpha is the chance that a drafted token is accepted: 1 minus the distance of the draft's distribution from "
        "the target's, on the target's own text, without running the loop."
    )
    parts = [
        tag("p", said, class_="soft"),
        _per_draft(
            profile,
            lambda p, d: grids.agreement(p, d, grids.temperatures(p.agreements, d)),
            "No agreement was measured.",
        ),
    ]
    kinds: list[tuple[str, str, str, list[Chart]]] = [
        ("position", "By position in the draft", "Of the loop, the most draft tokens that were measured.",
         charts.positions(profile)),
        ("domain", "By domain", "Where drafts do well and where they do not; bars as above.", charts.domains(profile)),
        ("entropy", "By entropy of the target", "Where the target is unsure, drafts are rejected more often.",
         charts.bands(profile, "entropy")),
        ("context", "By length of the context", "By tokens in front of the token.", charts.bands(profile, "context")),
    ]  # fmt: skip
    for key, title, said, found in kinds:
        lines = {"key": "where the one before was accepted", "dashed": "of all drafted"} if key == "position" else {}
        if found:
            group = _group(key, found, _drafts(profile, found), lines)
            parts += [tag("h3", title), tag("p", said, class_="soft"), group]
    return join(*parts)


def _costs(profile: Profile) -> Markup:
    found, models = charts.costs(profile), cost_grids.cost_models(profile)
    if not found and not models.rows:
        return tag("p", "No costs were measured.")
    said = "What a forward of the target takes for the tokens that it verifies. Points are measured."
    sizes = {look: f"batch {size}" for look, size in enumerate(charts.batch_sizes(profile))}
    return join(
        tag("p", said, class_="soft"),
        _group("cost", found, sizes, {"dashed": "cost model"}) if found else None,
        _per_draft(profile, cost_grids.costs, "No round was timed."),
        _table(models) if models.rows else None,
    )


def _settings(profile: Profile) -> Markup:
    """Plain decoding first, then the drafts, closed: the long tables."""
    found = [(name, cost_grids.everything(profile, name)) for name in (PLAIN, *draft_names(profile))]
    tables = [tag("details", tag("summary", short(name)), _table(grid)) for name, grid in found if grid.rows]
    return join(*tables) if tables else tag("p", "No setting was looked at.")


def _per_draft(profile: Profile, make: Callable[[Profile, str], Grid], otherwise: str) -> Markup:
    """A table for each draft that has one."""
    found = [(name, make(profile, name)) for name in draft_names(profile)]
    tables = [_table(replace(grid, title=f"{short(name)}: {grid.title}")) for name, grid in found if grid.rows]
    return join(*tables) if tables else tag("p", otherwise)


def _drafts(profile: Profile, found: Sequence[Chart]) -> dict[int, str]:
    """The names of the colours in some charts."""
    used = {series.look for chart in found for series in chart.plot.series}
    return {look: short(name) for look, name in enumerate(draft_names(profile)) if look in used}


def _group(key: str, found: Sequence[Chart], looks: dict[int, str], lines: dict[str, str]) -> Markup:
    """Charts of one kind below the legend of their colours and lines."""
    if not found:
        return tag("p", "Nothing of this was measured.")
    if not drawing.can_draw():
        return _figures(key, found)
    entries = [tag("li", drawing.swatch(look, f"{key}s{look}"), name) for look, name in looks.items()]
    entries += [tag("li", tag("span", class_=f"key {line}"), words) for line, words in lines.items()]
    return join(tag("ul", *entries, class_="legend"), _figures(key, found))


def _figures(key: str, found: Sequence[Chart]) -> Markup:
    drawn = drawing.can_draw()
    figures = []
    for i, chart in enumerate(found):
        picture = drawing.draw(chart.plot, f"{key}{i}") if drawn and i < _MOST_CHARTS else None
        tables = [_table(grid) for grid in chart.tables]
        data = tag("details", tag("summary", "As a table"), *tables) if picture else join(*tables)
        figures.append(tag("figure", tag("h3", chart.plot.title), picture, data))
    missing = None if drawn else tag("p", drawing.MISSING, class_="warn")
    return join(missing, tag("div", *figures, class_="charts"))


def _table(grid: Grid) -> Markup:
    """A table that scrolls by itself where it is too wide."""

    def classed(i: int) -> str | None:
        return "word" if i in grid.words else None

    head = tag("tr", *(tag("th", name, scope="col", class_=classed(i)) for i, name in enumerate(grid.columns)))
    rows = [tag("tr", *(tag("td", cell, class_=classed(i)) for i, cell in enumerate(row))) for row in grid.rows]
    table = tag("table", tag("caption", grid.title), tag("thead", head), tag("tbody", *rows))
    box = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=grid.title)
    whole = join(box, tag("p", grid.note, class_="note") if grid.note else None)
    if len(rows) <= _LONG:
        return whole
    return tag("details", tag("summary", f"{grid.title}, {len(rows)} rows"), whole)
