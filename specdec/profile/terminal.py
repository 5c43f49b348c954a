"""A profile in a terminal: the verdict, then what each draft's figures are. Long tables are cut; the page has all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from specdec.profile import cost_grids, grids
from specdec.profile.grids import Grid
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

_MOST_ROWS = 12
_MOST_LINES = 12  # of notes and the like
_LOUD = "bold white on red"


def print_report(profile: Profile, console: Console, *, is_full: bool = False) -> None:
    """Prints what a profile says, the verdict first.

    Readable without colour; tables that are wider than the console become lists. What it leaves out is in
    `report.html` (`write_html`): bands of entropy and context, positions of smaller drafts, examples.

    Args:
        profile: as `specdec.profile.files.load` gives it. Its texts are shown as they are, without control characters.
        console: where to.
        is_full: costs, trees, domains and every rank as well.

    Example:
        >>> print_report(load("profiles/mine"), Console())  # doctest: +SKIP
    """
    print_recommendation(profile, console)
    _list(console, "How it was measured", [f"{name}: {value}" for name, value in facts(profile)])
    drafts = draft_names(profile)
    for draft in drafts:
        _print_draft(profile, draft, console, is_full)
    if not drafts:
        _print(console, "No draft was measured.")
    _list(console, "Break-even batch size", break_evens(profile))
    _list(console, "Acceptance is not what alpha says", doubts(profile))
    _print(
        console, "More in report.html and profile.json: every setting, bands of entropy and context, examples.", "dim"
    )


def print_recommendation(profile: Profile, console: Console) -> None:
    """Prints the verdict of a profile and its reasons, and what makes it doubtful.

    Args:
        profile: as `specdec.profile.files.load` gives it.
        console: where to.
    """
    pays = any(r.draft != PLAIN for r in profile.recommendations)
    _print(console, headline(profile), "bold green" if pays else "bold yellow")
    if not profile.complete:
        _print(console, INTERRUPTED, "bold yellow")
    console.print()
    _list(console, f"!!! {ALARM}", alarms(profile), _LOUD)
    _show(console, grids.verdict(profile), most=50)
    for r in profile.recommendations:
        _list(console, f"Why, {case(r.temperature, r.batch)}", [short(reason, 400) for reason in r.reasons])
    _list(console, "Notes", remarks(profile))


def _print_draft(profile: Profile, draft: str, console: Console, is_full: bool) -> None:
    known = next((d for d in profile.drafts if d.name == draft), None)
    console.rule(Text(_writable(console, short(draft, max(console.width - 8, 8))), "bold"), align="left")
    if known is not None:
        _print(console, describe(known))
        console.print()
    shown = grids.temperatures(profile.agreements, draft)
    for pair in _pairs(shown):
        _show(console, grids.agreement(profile, draft, pair, is_brief=not is_full))
    shown = grids.temperatures(profile.settings, draft)
    cases = [(draft, t, grids.batches(profile, draft, t)[0]) for t in shown]
    tables = [_fastest(grids.speedups(profile, *where), profile, where) for where in cases]
    for grid in grids.noted_once(tables):
        _show(console, grid)
    if is_full or len(grids.best(profile, draft).rows) > len(tables):  # else the tables above have it all
        _show(console, grids.best(profile, draft))
    for pair in _pairs(shown):
        _show(console, grids.positions(profile, draft, pair, is_brief=True))
    if not is_full:
        return
    for pair in _pairs(sorted({*shown, *grids.temperatures(profile.agreements, draft)})):
        _show(console, grids.domains(profile, draft, pair, is_brief=True))
    _show(console, cost_grids.costs(profile, draft))
    _show(console, cost_grids.trees(profile, draft))


def _pairs(shown: Sequence[float]) -> Iterator[Sequence[float]]:
    """Two temperatures a table: that fits 80 columns."""
    for i in range(0, len(shown), 2):
        yield shown[i : i + 2]


def _fastest(grid: Grid, profile: Profile, where: tuple[str, float, int]) -> Grid:
    """Of a long table of speed-ups the best rows, in their order."""
    found = grids.of(profile, *where)
    if len(found) <= _MOST_ROWS:
        return grid
    kept = sorted(sorted(range(len(found)), key=lambda i: -found[i].speedup)[:_MOST_ROWS])
    title = f"{grid.title}: the best {_MOST_ROWS} of {len(found)}"
    return replace(grid, title=title, rows=[grid.rows[i] for i in kept])


def _show(console: Console, grid: Grid, most: int = _MOST_ROWS) -> None:
    """A table if it fits, else its rows as lists; nothing if it is empty."""
    if not grid.rows:
        return
    rows, note = grid.rows[:most], grid.note
    if len(grid.rows) > most:
        note = f"{len(grid.rows) - most} more rows are in report.html. {note}".rstrip()
    _print(console, grid.title, "bold")
    table = _table(console, grid, rows)
    # A table says that it is as wide as the console at most: asked with room to spare, it tells what it needs.
    if Measurement.get(console, console.options.update(width=10_000), table).maximum <= console.width:
        console.print(table)
    else:
        _records(console, grid, rows)
    if note:
        _print(console, note, "dim")
    console.print()


def _table(console: Console, grid: Grid, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(grid.columns):
        justify = "left" if i in grid.words else "right"
        table.add_column(Text(_writable(console, column)), justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(_writable(console, cell)) for cell in row))
    return table


def _records(console: Console, grid: Grid, rows: Sequence[Sequence[str]]) -> None:
    """Each row as a list of `column: figure`."""
    for row in rows:
        head, *cells = [f"{name}: {cell}" if name else cell for name, cell in zip(grid.columns, row, strict=True)]
        _print(console, head)
        for cell in cells:
            _print(console, cell, indent=2)


def _list(console: Console, title: str, lines: Sequence[str], style: str = "bold") -> None:
    """A title and its lines; nothing if there are none."""
    if not lines:
        return
    _print(console, title, style)
    for line in lines[:_MOST_LINES]:
        _print(console, line, indent=2)
    if len(lines) > _MOST_LINES:
        _print(console, f"{len(lines) - _MOST_LINES} more are in report.html.", indent=2)
    console.print()


def _print(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    shown = Text(_writable(console, text), style, overflow="fold")
    console.print(Padding(shown, (0, 0, 0, indent), expand=False) if indent else shown)


def _writable(console: Console, text: str) -> str:
    """What the console's encoding has no letter for becomes a question mark."""
    return text.encode(console.encoding, "replace").decode(console.encoding)
