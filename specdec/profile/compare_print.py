"""A comparison of two profiles for people."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from specdec.profile.compare import Comparison, Difference
from specdec.profile.schema import Interval

_MOST = 8  # lines of what only one of them has


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Prints the differences, and in words which of them are larger than chance. Readable in 80 columns."""
    a, b = comparison.names
    console.print(Text(f"a: {a}"), soft_wrap=True)
    console.print(Text(f"b: {b}"), soft_wrap=True)
    sides = zip(comparison.only, "ab", strict=True)
    unpaired = ", ".join(f"{len(only)} only in {name} ({_numbers(only)})" for only, name in sides if only)
    console.print(f"{comparison.prompts} prompts in both{f'; {unpaired}, left out' if unpaired else ''}.")
    for draft_a, draft_b in dict.fromkeys(d.drafts for d in comparison.differences):
        chosen = [d for d in comparison.differences if d.drafts == (draft_a, draft_b)]
        console.print()
        console.print(Text(draft_a if draft_a == draft_b else f"a: {draft_a}, b: {draft_b}", style="bold"))
        console.print(_table(chosen))
    console.print()
    for sentence in verdict(comparison.differences):
        console.print(Text(sentence))
    for note in comparison.notes:
        console.print(Text(note, style="yellow"))
    if comparison.alone:
        console.print("Measured by one of them only:")
        for line in comparison.alone[:_MOST]:
            console.print(f"  {escape(line)}", soft_wrap=True)
        if len(comparison.alone) > _MOST:
            console.print(f"  and {len(comparison.alone) - _MOST} more")


def verdict(differences: list[Difference]) -> list[str]:
    """Which differences are larger than chance, in words."""
    found = [d for d in differences if d.is_larger_than_chance]
    out = [_sentence(d) for d in found]
    if not found:
        out.append("No difference is larger than chance: all intervals reach 0.")
    elif len(differences) > 1:
        out.append(
            f"{len(found)} of {len(differences)} differences are larger than chance; of so many "
            f"{max(1, round(len(differences) / 20))} may seem so by chance alone."
        )
    few = min((d.prompts for d in differences), default=0)
    if few < 5:
        out.append(f"With {few} paired prompt{'' if few == 1 else 's'} in some of them the intervals are too narrow.")
    return out


def _sentence(d: Difference) -> str:
    more = "larger" if d.difference.value > 0 else "smaller"
    return (
        f"{d.what[0].upper()}{d.what[1:]} at {_place(d)} is {more} in b: {d.b.value:.3f} against {d.a.value:.3f} "
        f"(difference {_signed(d.difference)})."
    )


def _place(d: Difference) -> str:
    if d.batch is None:
        return f"temperature {d.temperature:g}"
    return f"temperature {d.temperature:g}, batch {d.batch}, {d.num_draft_tokens} draft tokens"


def _table(differences: list[Difference]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "temp.", "batch", "k", "a", "b", "b - a", "95 %", ""):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for d in differences:
        table.add_row(
            d.what,
            f"{d.temperature:g}",
            "" if d.batch is None else str(d.batch),
            "" if d.num_draft_tokens is None else str(d.num_draft_tokens),
            f"{d.a.value:.3f}",
            f"{d.b.value:.3f}",
            f"{d.difference.value:+.3f}",
            f"{d.difference.low:+.3f} to {d.difference.high:+.3f}",
            "*" if d.is_larger_than_chance else "",
            style="bold" if d.is_larger_than_chance else "",
        )
    return table


def _numbers(prompts: list[int]) -> str:
    named = ", ".join(map(str, prompts[:_MOST]))
    return f"number{'' if len(prompts) == 1 else 's'} {named}{', ...' if len(prompts) > _MOST else ''}"


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f}, {interval.low:+.3f} to {interval.high:+.3f}"
