"""Speed-ups that cannot be: who measures one has a fault in the benchmark, and the suite fails.

Decoding without drafts takes T(1) a token, speculation at least T(N + 1) a round for tau tokens, where T(n) is a round
of n tokens a row in the same engine, at the same batch and context, with drafts that cost nothing (`bench.free`). So
over the same engine's plain decoding

    speed-up <= tau T(1) / mean T(N + 1)

with the mean over the rounds, since a drafter may propose fewer tokens than asked for: `drafted_per_depth` says how
many rounds had how many. The prefill is the same on both sides and only draws a ratio towards 1, so that below 1 the
bound is 1.

What is not measured errs to the generous side: a number of draft tokens without a T of its own takes the T of the next
smaller one; a tree counts by its depth, not its nodes. T comes from the first dozen rounds behind the prompt, whole
calls go on to longer contexts, where T(1) and T(N + 1) both grow; and both T are measured in rounds of their own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bench.harness import Comparison, Ratio, Run
from bench.sides import Engine, Generated, Side, Sides
from specdec import SpeculationStats
from specdec.controller import MAX_DRAFT_TOKENS

# A ratio is impossible only if its lowest round lies above the highest round's bound by more than this. Rounds differ
# by the machine's moods, which the two extremes allow for; what remains are the first and the last tokens' contexts,
# and texts that end at different places, a few percent.
TOLERANCE = 0.05


class ImpossibleRatioError(AssertionError):
    """A measured speed-up is above what its acceptance and its rounds' cost allow."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A measured ratio and the highest that is possible.

    Attributes:
        side, over: one of ours, and the same engine's plain decoding.
        ratio: of tokens a second, over the rounds.
        bound: of each round, median, lowest and highest.
        acceptance_length: tokens a target forward and row.
        draft_tokens: mean of a round.
        rounds: of the comparison; a single one is a smoke run, which is not warmed and is not judged.
    """

    side: str
    over: str
    ratio: Ratio
    bound: Ratio
    acceptance_length: float
    draft_tokens: float
    rounds: int

    @property
    def is_impossible(self) -> bool:
        return self.rounds > 1 and self.ratio.low > max(1.0, self.bound.high) * (1 + TOLERANCE)

    def info(self) -> dict[str, Any]:
        """For `benchmark.extra_info`."""
        return asdict(self) | {"impossible": self.is_impossible}

    def __str__(self) -> str:
        return (
            f"{self.side} is measured at {self.ratio.low:.2f} to {self.ratio.high:.2f} times {self.over}, and at most "
            f"{max(1.0, self.bound.high):.2f} is possible: {self.acceptance_length:.2f} tokens a target forward, with "
            f"{self.draft_tokens:.1f} drafted tokens a round, times T(1)/T(N+1), which left {self.bound.low:.2f} to "
            f"{self.bound.high:.2f} in the rounds of the same run"
        )


def free_name(engine: Engine, num_draft_tokens: int) -> str:
    return f"round of {num_draft_tokens + 1}, {engine}"


def free_sides(sides: Sides, engine: Engine, counts: Sequence[int]) -> dict[str, Side]:
    """The sides that measure T(N + 1) for each N of `counts`, and T(1)."""
    return {free_name(engine, n): sides.free(engine, n) for n in sorted({0, *counts})}


def bounds(comparison: Comparison[Any], plain: Mapping[Engine, str], ours: Mapping[str, Engine]) -> list[Bound]:
    """What is possible for each of our sides.

    Args:
        comparison: with the engines' `free_sides`.
        plain: each engine's plain decoding.
        ours: the sides that are held against it, and their engines.
    """
    found = []
    for side, engine in ours.items():
        costs = costs_of(comparison, engine)
        by_round = _by_round(comparison.runs, side)
        if not costs or set(costs) != set(by_round):
            continue  # the model ended every text before a round could be timed
        stats = {n: _sum(runs) for n, runs in by_round.items()}
        every = sum(stats.values(), SpeculationStats())
        limits = [bound_of(stats[n], costs[n]) for n in sorted(stats)]
        ratio = comparison.ratio(side, plain[engine])
        drafted = every.drafted / every.row_rounds if every.row_rounds else 0.0
        length = every.acceptance_length
        found.append(Bound(side, plain[engine], ratio, Ratio.of(limits), length, drafted, len(limits)))
    return found


def bound_of(stats: SpeculationStats, costs: Mapping[int, float]) -> float:
    """tau T(1) / mean T(N + 1).

    Args:
        stats: of the side's calls.
        costs: seconds of a round by its number of draft tokens; 0 must be there.
    """
    counts = rounds_by_count(stats)
    if not counts:
        return 1.0
    rounds = sum(counts.values())
    mean = sum(times * _cost(costs, n) for n, times in counts.items()) / rounds
    return stats.acceptance_length * costs[0] / mean


def rounds_by_count(stats: SpeculationStats) -> dict[int, int]:
    """Row-rounds by their number of draft tokens: as many had exactly n as had n and not n + 1."""
    reached = [stats.row_rounds, *stats.drafted_per_depth, 0]
    return {n: reached[n] - reached[n + 1] for n in range(len(reached) - 1) if reached[n] > reached[n + 1]}


def costs_of(comparison: Comparison[Any], engine: Engine) -> dict[int, dict[int, float]]:
    """Seconds of a round by the comparison's round and the number of draft tokens."""
    costs: dict[int, dict[int, float]] = {}
    for count in range(MAX_DRAFT_TOKENS + 1):
        for n, runs in _by_round(comparison.runs, free_name(engine, count)).items():
            rounds = sum(run.outcome.work for run in runs)
            if rounds:
                costs.setdefault(n, {})[count] = sum(run.seconds for run in runs) / rounds
    return {n: by_count for n, by_count in costs.items() if 0 in by_count}


def milliseconds(comparison: Comparison[Any], engine: Engine) -> dict[int, float]:
    """Of a round by its number of draft tokens, the median over the comparison's rounds."""
    by_count: dict[int, list[float]] = {}
    for costs in costs_of(comparison, engine).values():
        for count, seconds in costs.items():
            by_count.setdefault(count, []).append(1e3 * seconds)
    return {count: median(values) for count, values in sorted(by_count.items())}


def fail_if_impossible(found: Sequence[Bound]) -> None:
    """Raises ImpossibleRatioError that names every impossible ratio."""
    wrong = [str(bound) for bound in found if bound.is_impossible]
    if wrong:
        raise ImpossibleRatioError(
            "impossible speed-ups, so that the benchmark measures something else than it says (sides that do different "
            "work, a warm side against a cold one, time that is not counted): " + "; ".join(wrong) + "."
        )


def _cost(costs: Mapping[int, float], count: int) -> float:
    known = sorted(costs)
    return costs[known[bisect_right(known, count) - 1]]


def _by_round(runs: Sequence[Run], side: str) -> dict[int, list[Run]]:
    found: dict[int, list[Run]] = {}
    for run in runs:
        if run.side == side:
            found.setdefault(run.round, []).append(run)
    return found


def _sum(runs: Sequence[Run]) -> SpeculationStats:
    details: list[Generated] = [run.outcome.detail for run in runs]
    return sum((d.stats for d in details if d.stats is not None), SpeculationStats())
