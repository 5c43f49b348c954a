"""The rounds of one row, read off where each of its tokens came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowRound:
    """One round.

    Attributes:
        start: the round's first token, counted from the row's first new one.
        accepted: drafted tokens that were returned.
        end: "r" recovered, "b" bonus, "p" nothing was drafted, "" where the text ended in an accepted token.
    """

    start: int
    accepted: int
    end: str

    def reached(self, position: int) -> bool:
        """Was a drafted token at this position (from 1) looked at?"""
        if position <= self.accepted:
            return True
        return self.end == "r" and position == self.accepted + 1


def row_rounds(sources: str) -> Iterator[RowRound]:
    """The rounds behind the prompt's own forward.

    Args:
        sources: a letter a token: accepted, recovered, bonus, plain.

    Example:
        >>> [(r.start, r.accepted, r.end) for r in row_rounds("paarab")]
        [(1, 2, 'r'), (4, 1, 'b')]
    """
    start = 1
    while start < len(sources):
        end = start
        while end < len(sources) and sources[end] == "a":
            end += 1
        yield RowRound(start, end - start, sources[end] if end < len(sources) else "")
        start = end + 1
