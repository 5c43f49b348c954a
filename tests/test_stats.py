"""Counters and the ratios made of them."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec import Source, SpeculationStats, Trace

ROUND = st.lists(st.integers(0, 5).flatmap(lambda d: st.tuples(st.just(d), st.integers(0, d))), min_size=1, max_size=3)
CALL = st.lists(ROUND, max_size=4)


def call(rounds: list[list[tuple[int, int]]], seconds: float = 0.0) -> SpeculationStats:
    """The counters of a call with these (drafted, accepted) of each row, round by round."""
    stats = SpeculationStats(total_seconds=seconds, new_tokens=len(rounds), trace=Trace([[1]], [[Source.PLAIN]]))
    for rows in rounds:
        stats.record_round([d for d, _ in rows], [a for _, a in rows])
    return stats


def test_counts_by_depth() -> None:
    stats = SpeculationStats()
    stats.record_round([3, 1], [2, 0])
    stats.record_round([0, 0], [0, 0])
    stats.record_round([2, 3], [2, 3])
    assert stats.drafted_per_depth == [4, 3, 2]
    assert stats.accepted_per_depth == [3, 3, 1]
    assert (stats.rounds, stats.row_rounds, stats.drafted, stats.accepted) == (3, 6, 9, 7)
    assert stats.acceptance_rate == 7 / 9
    assert stats.acceptance_length == 1 + 7 / 6


def test_prints_as_a_short_table() -> None:
    stats = SpeculationStats(
        new_tokens=10, total_seconds=2.0, prefill_seconds=0.5, draft_seconds=0.25, verify_seconds=1
    )
    stats.record_round([2], [1])
    text = str(stats)
    assert "10  (5.0 tokens/s)" in text
    assert "1.00 0.00" in text
    assert "other 0.250" in text
    assert max(map(len, text.splitlines())) <= 80


def test_nothing_divides_by_zero() -> None:
    assert str(SpeculationStats())


@given(calls=st.lists(CALL, max_size=4))
def test_a_sum_counts_all_rounds_of_its_calls(calls: list[list[list[tuple[int, int]]]]) -> None:
    """Every ratio of a sum is that of one call which had all the rounds, not a mean of ratios."""
    total = sum((call(rounds, seconds=0.5) for rounds in calls), SpeculationStats())
    together = call([rows for rounds in calls for rows in rounds], seconds=0.5 * len(calls))
    assert total == together
    assert total.trace is None
    assert (total.acceptance_rate, total.acceptance_length) == (together.acceptance_rate, together.acceptance_length)
    assert total.tokens_per_second == together.tokens_per_second
    assert str(total) == str(together)


def test_every_counter_is_summed() -> None:
    """A counter that is added later cannot be forgotten in sums."""
    names = [f.name for f in dataclasses.fields(SpeculationStats) if f.name != "trace"]
    ones = SpeculationStats(**{n: [1, 1] if n.endswith("per_depth") else 1 for n in names})
    twos = SpeculationStats(**{n: [2, 2] if n.endswith("per_depth") else 2 for n in names})
    assert ones + ones == twos
    assert ones == SpeculationStats(**{n: getattr(ones, n) for n in names}), "the summands stay as they are"


def test_sums_with_something_else() -> None:
    with pytest.raises(TypeError):
        SpeculationStats() + 1  # type: ignore[operator]


def test_a_trace_is_no_counter() -> None:
    """Two calls with the same counters are equal, and printing one does not print its tokens."""
    with_trace = SpeculationStats(rounds=2, trace=Trace([[1]], [[Source.PLAIN]]))
    assert with_trace == SpeculationStats(rounds=2)
    assert "Trace" not in repr(with_trace)
    assert str(with_trace) == str(SpeculationStats(rounds=2))
