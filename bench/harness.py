"""Timing several sides of a comparison alternately, so that the machine's moods hit all of them alike.

A *side* does the same job in its own way (plain decoding, assisted decoding, ours); an *item* is one
portion of the job (a prompt, a batch, a context length). Within a round every item is done by every side
before the next item begins. Ratios are taken round by round and only then summarised.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median
from time import perf_counter
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a side did for one item."""

    work: float  # units of work (tokens, steps): times are compared per unit
    detail: Any = None  # anything the benchmark wants to add up afterwards
    seconds: float | None = None  # where what is timed ends before the call does; None = the whole call


@dataclass(frozen=True, slots=True)
class Run:
    """One side on one item in one round."""

    side: str
    item: int
    round: int
    seconds: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median, lowest and highest of the rounds' ratios."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio:
        return cls(median(values), min(values), max(values))

    @property
    def spread(self) -> list[float]:
        """As records keep it."""
        return [self.median, self.low, self.high]


@dataclass(slots=True)
class Comparison(Generic[Item]):
    """Sides, items and every run so far.

    Args:
        sides: by name; each does an item and says how much work that was.
        items: the portions of the job, the same for every side.

    Example:
        >>> c = Comparison({"a": lambda n: Outcome(n), "b": lambda n: Outcome(n)}, [1, 2])
        >>> for item in range(2):
        ...     for side in c.sides:
        ...         c.run(side, item, 0)
        >>> len(c.runs), c.ratio("a", "a").median
        (4, 1.0)
    """

    sides: Mapping[str, Callable[[Item], Outcome]]
    items: Sequence[Item]
    runs: list[Run] = field(default_factory=list)

    def run(self, side: str, item: int, round_: int) -> None:
        """Times one side on one item."""
        begun = perf_counter()
        outcome = self.sides[side](self.items[item])
        seconds = perf_counter() - begun if outcome.seconds is None else outcome.seconds
        self.runs.append(Run(side, item, round_, seconds, outcome))

    def measure(self, benchmark: Any, main: str, rounds: int) -> None:
        """Runs all rounds under pytest-benchmark, whose own statistics are then those of side `main`.

        The other sides run in the `setup` of each of its rounds, which it does not time: so its table and
        ours come from one alternating run. One of its rounds is one item. A single round is taken for a
        smoke run and not warmed.
        """
        others = [side for side in self.sides if side != main]
        schedule = [(item, round_) for round_ in range(rounds) for item in range(len(self.items))]
        upcoming, order = iter(schedule), Random(0)
        for side in self.sides if rounds > 1 else ():
            self.sides[side](self.items[0])  # warm: code paths, allocator, caches
        gc.collect()

        def setup() -> tuple[tuple[str, int, int], dict[str, Any]]:
            item, round_ = next(upcoming)
            for side in order.sample(others, len(others)):  # no side always behind the same other
                self.run(side, item, round_)
            return (main, item, round_), {}

        benchmark.pedantic(self.run, setup=setup, rounds=len(schedule), iterations=1)

    def of(self, item: int) -> list[Run]:
        """The runs of one item."""
        return [r for r in self.runs if r.item == item]

    def rates(self, side: str, item: int | None = None) -> list[float]:
        """Work per second of each round, over all items or one."""
        chosen = [r for r in self.runs if r.side == side and item in (None, r.item)]
        return [
            sum(r.outcome.work for r in chosen if r.round == n) / sum(r.seconds for r in chosen if r.round == n)
            for n in sorted({r.round for r in chosen})
        ]

    def rate(self, side: str, item: int | None = None) -> float:
        """Median over the rounds of the work per second."""
        return median(self.rates(side, item))

    def ratio(self, side: str, over: str, item: int | None = None, over_item: int | None = None) -> Ratio:
        """How many times as fast `side` is as `over`; `over_item` compares two items."""
        over_item = item if over_item is None else over_item
        pairs = zip(self.rates(side, item), self.rates(over, over_item), strict=True)
        return Ratio.of([ours / theirs for ours, theirs in pairs])

    def details(self, side: str) -> list[Any]:
        """What the side's runs reported, in order."""
        return [r.outcome.detail for r in self.runs if r.side == side]
