"""Tables and figures in Markdown, as all reports of bench/ write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def table(header: str, rows: Iterable[Sequence[str]]) -> str:
    """A table whose columns are named in `header`, with bars between the names.

    Example:
        >>> print(table("a|b", [["1", "2"]]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    names = header.split("|")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float] | None) -> str:
    """Median, lowest and highest; nothing where there are none.

    Example:
        >>> spread([1.5, 1.25, 2])
        '1.50 [1.25-2.00]'
    """
    return "" if values is None else f"{values[0]:.2f} [{values[1]:.2f}-{values[2]:.2f}]"


def equal_texts(counts: Mapping[str, int] | None) -> str:
    """`bench.texts.Judge.count`'s; nothing where nothing was compared.

    Example:
        >>> equal_texts({"texts": 8, "equal": 6, "near_ties": 2, "others": 0})
        '6/8, 2 by near-ties'
    """
    if counts is None:
        return ""
    parts = [f"{counts['equal']}/{counts['texts']}"]
    parts += [f"{counts['near_ties']} by near-ties"] if counts["near_ties"] else []
    parts += [f"**{counts['others']} others**"] if counts["others"] else []
    return ", ".join(parts)
