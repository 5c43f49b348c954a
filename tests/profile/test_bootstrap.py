"""Intervals: they cover what they say, pair what is paired, and add up however prompts are split."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from specdec.errors import InputError
from specdec.profile.bootstrap import REPLICATES, Bootstrap, Sums, interval
from specdec.profile.schema import Interval


def clustered(n: int, rng: np.random.Generator) -> list[list[int]]:
    """[accepted, drafted] of n prompts, some easy, some hard, some long, some short; 8 / 11 in the long run."""
    chances, sizes = rng.beta(8, 3, n), rng.integers(8, 128, n)
    return [[int(rng.binomial(m, p)), int(m)] for p, m in zip(chances, sizes, strict=True)]


def summed(rows: list[list[int]], seed: int = 0, first: int = 0) -> Sums:
    sums = Sums(seed)
    for prompt, row in enumerate(rows, start=first):
        sums.add(prompt, row)
    return sums


@pytest.mark.parametrize("n", [8, 30])
def test_intervals_cover_the_truth_as_often_as_they_say(n: int) -> None:
    rng = np.random.default_rng(n)
    found = [summed(clustered(n, rng), seed).ratio(0, 1) for seed in range(200)]
    covered = sum(f.low <= 8 / 11 <= f.high for f in found) / len(found)
    assert 0.90 <= covered <= 0.99
    assert all(f.low <= f.value <= f.high for f in found)


def test_tokens_of_a_prompt_are_not_taken_for_independent() -> None:
    """An interval over tokens, by the binomial's spread, would be several times too narrow."""
    rows = [[int(64 * (prompt % 2)), 64] for prompt in range(40)]  # a prompt accepts all or nothing
    found = summed(rows).ratio(0, 1)
    assert found.high - found.low > 3 * (2 * 1.96 * np.sqrt(0.25 / (64 * 40)))


def test_weights_follow_from_seed_and_prompt_alone() -> None:
    weights = Bootstrap(3).weights(11)
    assert weights.shape == (REPLICATES + 1,) and weights[0] == 1
    for prompt in range(200):  # more than are kept
        Bootstrap(3).weights(prompt)
    assert np.array_equal(Bootstrap(3).weights(11), weights)
    assert not np.array_equal(Bootstrap(4).weights(11), weights)
    assert not np.array_equal(Bootstrap(3).weights(12), weights)
    every = np.concatenate([Bootstrap(0).weights(prompt)[1:] for prompt in range(100)])
    assert abs(every.mean() - 1) < 0.02 and abs(every.var() - 1) < 0.04
    with pytest.raises(ValueError, match="read-only"):
        weights[1] = 5


def test_order_splits_and_merges_change_nothing() -> None:
    rows = clustered(12, np.random.default_rng(1))
    whole = summed(rows)
    assert whole.table is not None
    backwards = Sums()
    for prompt in reversed(range(12)):
        backwards.add(prompt, rows[prompt])
    parts = [Sums(), summed(rows[5:], first=5), summed(rows[:5]), Sums()]  # a process may have had no prompts
    for order in itertools.permutations(parts):
        merged = Sums()
        for part in order:
            merged.merge(part)
        assert np.array_equal(merged.table, whole.table)
    in_pieces = Sums()
    for prompt, (accepted, drafted) in enumerate(rows):
        in_pieces.add(prompt, [accepted, 0])
        in_pieces.add(prompt, [0, drafted])
    for other in (backwards, in_pieces, Sums(0, whole.table)):
        assert np.array_equal(other.table, whole.table)
        assert other.ratio(0, 1) == whole.ratio(0, 1)


def test_merging_does_not_tie_two_sums_together() -> None:
    part, total = summed([[1, 2]]), Sums()
    total.merge(part)
    total.add(1, [5, 5])
    assert part.totals.tolist() == [1, 2]
    again = Sums(0, total.table)
    again.add(2, [1, 1])
    assert total.totals.tolist() == [6, 7]


def test_paired_quantities_move_together() -> None:
    """Prompts differ much, one draft is better by a little on each of them: only pairing shows it."""
    rng = np.random.default_rng(2)
    sums = Sums()
    for prompt in range(20):
        alpha = rng.uniform(0.2, 0.8)
        sums.add(prompt, [100 * alpha, 100 * alpha + 2 + rng.uniform(-1, 1), 100])
    worse, better = sums.ratio(slice(0, 2), 2)
    assert better.low < worse.high  # unpaired, they overlap
    paired = sums.statistic(lambda t: (t[:, 1] - t[:, 0]) / t[:, 2], size=2)
    assert 0 < paired.low < 0.02 < paired.high < 0.03
    assert sums.ratio(slice(0, 2), slice(1, 3)) == [sums.ratio(0, 1), sums.ratio(1, 2)]


def test_what_says_nothing_of_spread_has_none() -> None:
    assert summed([[3, 4]]).ratio(0, 1) == Interval(0.75, 0.75, 0.75)  # one prompt
    assert summed([[3, 4]] * 6).ratio(0, 1) == Interval(0.75, 0.75, 0.75)  # no variation
    assert summed([[0, 0]] * 6).ratio(0, 1) == Interval(0, 0, 0)  # nothing of nothing
    assert Sums().ratio(0, 1) == Interval(0, 0, 0)
    assert summed([[1, 4], [3, 4]]).ratio(0, 1) == Interval(0.5, 0.25, 0.75)  # two: as far as they are apart


def test_replicates_without_a_denominator_are_left_out() -> None:
    """One of three prompts got so deep; in a third of the replicates nobody did."""
    found = summed([[3, 4], [0, 0], [0, 0]]).ratio(0, 1)
    assert found == Interval(0.75, 0.75, 0.75)
    values = np.array([0.5, 0.25, np.nan, np.inf, 0.75])
    assert interval(values, 2.0) == Interval(0.5, 0.25, 0.75)


def test_clusters_count_prompts_by_what_they_hold() -> None:
    equal = summed([[1, 64]] * 30)
    assert 24 < equal.clusters(1) < 37
    assert summed([[1, 64]] + [[0, 0]] * 29).clusters(1) < 1.3
    assert Sums().clusters(1) == 0


def test_few_prompts_widen_an_interval() -> None:
    values = np.concatenate([[0.5], np.random.default_rng(0).normal(0.5, 0.1, REPLICATES)])
    widths = [found.high - found.low for found in (interval(values, n) for n in (5, 10, 20, 1000))]
    assert widths == sorted(widths, reverse=True)
    low, high = np.quantile(values[1:], [0.025, 0.975])
    assert widths[-1] == pytest.approx(high - low, rel=0.01)


def test_bad_input_is_refused() -> None:
    sums = summed([[1, 2]])
    for values in ([1, 2, 3], [[1, 2]], [1, np.nan], [np.inf, 1]):
        with pytest.raises(InputError):
            sums.add(1, values)
    with pytest.raises(InputError, match="numbered from 0"):
        sums.add(-1, [1, 2])
    with pytest.raises(InputError, match="seeds"):
        sums.merge(Sums(1))
    with pytest.raises(InputError, match="3 quantities"):
        sums.merge(summed([[1, 2, 3]]))
    assert sums.totals.tolist() == [1, 2]
