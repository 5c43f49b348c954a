"""Comparisons whose times are made up: what each side took is written down, so that nothing reads a clock."""

from __future__ import annotations

from collections.abc import Sequence

from bench.guard import free_name
from bench.harness import Comparison, Outcome, Run
from bench.sides import Generated
from specdec import SpeculationStats

TOKENS = 120


def stats(drafted: Sequence[int], accepted: Sequence[int]) -> SpeculationStats:
    """Of one row: draft tokens and accepted ones of each round."""
    found = SpeculationStats()
    for d, a in zip(drafted, accepted, strict=True):
        found.record_round([d], [a])
    return found


def comparison(
    plain_seconds: Sequence[float],
    ours_seconds: Sequence[float],
    ours: SpeculationStats,
    round_seconds: dict[int, Sequence[float]],
) -> Comparison[int]:
    """One item; a value of each sequence for every round.

    Args:
        plain_seconds, ours_seconds: of a call of 120 tokens, "eager plain" and "ours".
        round_seconds: of one round by its number of draft tokens.
    """
    runs = []
    for n, (plain, own) in enumerate(zip(plain_seconds, ours_seconds, strict=True)):
        text = [list(range(TOKENS))]
        runs.append(Run("eager plain", 0, n, plain, Outcome(TOKENS, Generated(text, TOKENS, SpeculationStats()))))
        runs.append(Run("ours", 0, n, own, Outcome(TOKENS, Generated(text, ours.rounds, ours))))
        for count, seconds in round_seconds.items():
            runs.append(Run(free_name("eager", count), 0, n, 12 * seconds[n], Outcome(12)))
    names = dict.fromkeys(run.side for run in runs)
    return Comparison({name: lambda _: Outcome(0) for name in names}, [0], runs)
