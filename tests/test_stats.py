"""Counters and the ratios made of them."""

from __future__ import annotations

from specdec import SpeculationStats


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
