"""Sums kept apart by what they are of, and bands of entropy and context."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from specdec.profile.bootstrap import Sums
from specdec.profile.schema import Band, Interval

ENTROPY = (0.0, 0.1, 0.5, 1.0, 2.0, 3.0)  # nats
CONTEXT = (0.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 32768.0)


@dataclass(slots=True)
class Tally:
    """A ratio of two sums over prompts, for each of any number of groups.

    Example:
        >>> tally = Tally(seed=0)
        >>> tally.add("code", prompt_index=0, above=3, below=4)
        >>> tally.interval("code").value
        0.75
    """

    seed: int
    _sums: dict[Hashable, Sums] = field(default_factory=dict, init=False)

    def add(self, group: Hashable, prompt_index: int, above: float, below: float) -> None:
        """Adds a prompt's share to a group's two sums."""
        self._sums.setdefault(group, Sums(self.seed)).add(prompt_index, [above, below])

    def interval(self, group: Hashable) -> Interval:
        """Zero for a group that was never added to."""
        return self._sums[group].ratio(0, 1) if group in self._sums else Interval(0.0, 0.0, 0.0)

    def below(self, group: Hashable) -> float:
        """The group's denominator."""
        return float(self._sums[group].totals[1]) if group in self._sums else 0.0

    def groups(self) -> list[Hashable]:
        """In order of appearance."""
        return list(self._sums)


@dataclass(slots=True)
class Bands:
    """Means over tokens by band of some quantity."""

    seed: int
    edges: Sequence[float]
    _tally: Tally = field(init=False)

    def __post_init__(self) -> None:
        self._tally = Tally(self.seed)

    def add(self, prompt_index: int, where: Sequence[float], values: Sequence[float]) -> None:
        """Adds one prompt's tokens: each one's quantity, and what is averaged."""
        if not len(where):
            return
        place = np.searchsorted(self.edges, np.asarray(where, dtype=float), side="right") - 1
        count = np.bincount(place, minlength=len(self.edges))
        total = np.bincount(place, weights=np.asarray(values, dtype=float), minlength=len(self.edges))
        for band in np.flatnonzero(count):
            self._tally.add(int(band), prompt_index, float(total[band]), float(count[band]))

    def bands(self) -> list[Band]:
        """Those with tokens, ascending."""
        found = []
        there = set(self._tally.groups())
        for band, low in enumerate(self.edges):
            if band not in there:
                continue
            high = self.edges[band + 1] if band + 1 < len(self.edges) else None
            found.append(Band(low, high, int(self._tally.below(band)), self._tally.interval(band)))
        return found
