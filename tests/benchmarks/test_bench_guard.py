"""A speed-up that cannot be fails the suite; one that can does not, whatever the machine's moods."""

from __future__ import annotations

from typing import Any

import pytest
from measured import TOKENS, comparison, stats

from bench.guard import (
    TOLERANCE,
    ImpossibleRatioError,
    bound_of,
    bounds,
    costs_of,
    fail_if_impossible,
    rounds_by_count,
)
from bench.record import fail_if_unequal
from bench.texts import UnequalWorkError
from specdec import SpeculationStats

# 30 rounds of 4 drafted tokens, 3 accepted: 4 tokens a round.
ALWAYS_FOUR = stats([4] * 30, [3] * 30)
T1, T5 = 0.010, 0.020
ROUNDS = {0: [T1, T1], 4: [T5, T5]}
PLAIN, OURS = {"eager": "eager plain"}, {"ours": "eager"}


def found(plain: list[float], ours: list[float], own: SpeculationStats = ALWAYS_FOUR, **more: Any) -> Any:
    (only,) = bounds(comparison(plain, ours, own, more.get("rounds", ROUNDS)), PLAIN, OURS)
    return only


def test_the_bound_is_acceptance_length_times_the_cost_of_one_over_the_cost_of_many() -> None:
    assert bound_of(ALWAYS_FOUR, {0: T1, 4: T5}) == pytest.approx(4 * T1 / T5)
    found_ = found([1.2, 1.2], [0.8, 0.8])
    assert (found_.bound.median, found_.ratio.median) == (pytest.approx(2.0), pytest.approx(1.5))
    assert not found_.is_impossible


def test_rounds_that_drafted_less_cost_less() -> None:
    """An n-gram drafter asked for four often finds none: such a round is a plain one."""
    own = stats([4, 0, 0, 4], [4, 0, 0, 4])
    assert rounds_by_count(own) == {0: 2, 4: 2}
    assert bound_of(own, {0: T1, 4: T5}) == pytest.approx(own.acceptance_length * T1 / ((2 * T1 + 2 * T5) / 4))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16])
def test_a_count_that_was_not_timed_costs_what_the_next_smaller_one_does(count: int) -> None:
    costs = {0: T1, 2: 0.013, 4: T5}
    expected = {1: T1, 2: 0.013, 3: 0.013, 5: T5, 16: T5}[count]
    own = stats([count] * 5, [0] * 5)
    assert bound_of(own, costs) == pytest.approx(T1 / expected)


def test_an_impossible_ratio_fails_and_says_what_is_impossible() -> None:
    """120 tokens in 0.5 s are 2.4 times plain's, and four tokens for the price of two give 2.0."""
    wrong = found([1.2, 1.2], [0.5, 0.5])
    assert wrong.is_impossible and wrong.info()["impossible"]
    with pytest.raises(
        ImpossibleRatioError, match=r"ours is measured at 2\.40 to 2\.40 times eager plain, and at most 2"
    ):
        fail_if_impossible([wrong])


@pytest.mark.parametrize(("share", "impossible"), [(0.99, False), (1.01, False), (1 + 2 * TOLERANCE, True)])
def test_what_the_formula_leaves_out_is_tolerated(share: float, impossible: bool) -> None:
    assert found([1.2, 1.2], [0.6 / share] * 2).is_impossible is impossible


def test_one_round_within_the_bound_is_enough() -> None:
    """A ratio that the machine's moods made is not one in every round."""
    assert not found([1.2, 1.2], [0.3, 0.61]).is_impossible
    assert found([1.2, 1.2], [0.3, 0.5]).is_impossible


def test_the_most_generous_round_of_the_costs_counts() -> None:
    calm = {0: [T1, T1], 4: [T5, T5]}
    disturbed = {0: [T1, 1.3 * T1], 4: [T5, T5]}
    assert found([1.2, 1.2], [0.5, 0.5], rounds=calm).is_impossible
    assert not found([1.2, 1.2], [0.5, 0.5], rounds=disturbed).is_impossible


def test_below_one_the_prefill_decides_and_nothing_is_impossible() -> None:
    """Nothing accepted at twice the cost a round is 0.5; with half the call being prefill it measures 0.67."""
    own = stats([4] * TOKENS, [0] * TOKENS)
    slow = found([1.2, 1.2], [1.8, 1.8], own)
    assert slow.bound.median == pytest.approx(0.5) and slow.ratio.median > slow.bound.high
    assert not slow.is_impossible
    assert found([1.2, 1.2], [1.0, 1.0], own).is_impossible


def test_a_smoke_run_of_one_round_is_not_judged() -> None:
    cold = {0: [T1], 4: [T5]}
    assert not found([1.2], [0.1], rounds=cold).is_impossible


def test_without_the_cost_of_a_plain_round_nothing_is_said() -> None:
    assert bounds(comparison([1.2, 1.2], [0.1, 0.1], ALWAYS_FOUR, {4: [T5, T5]}), PLAIN, OURS) == []
    costs = costs_of(comparison([1.2, 1.2], [0.5, 0.5], ALWAYS_FOUR, ROUNDS), "eager")
    assert costs == {n: {0: pytest.approx(T1), 4: pytest.approx(T5)} for n in (0, 1)}


def summaries(ours: dict[str, int], tokens: int = 64) -> dict[str, Any]:
    return {"plain": {"tokens": 64}, "ours": {"tokens": tokens, "rows_equal_to_plain": ours}}


def test_other_work_fails() -> None:
    fail_if_unequal(summaries({"texts": 4, "equal": 3, "near_ties": 1, "others": 0}, tokens=60), ["ours"])
    with pytest.raises(UnequalWorkError, match=r"ours wrote other texts than .* in 1 of 4 rows"):
        fail_if_unequal(summaries({"texts": 4, "equal": 3, "near_ties": 0, "others": 1}), ["ours"])
    with pytest.raises(UnequalWorkError, match="counted wrongly"):
        fail_if_unequal(summaries({"texts": 4, "equal": 4, "near_ties": 0, "others": 0}, tokens=65), ["ours"])


def test_sampled_sides_have_nothing_to_equal() -> None:
    fail_if_unequal({"plain": {"tokens": 64}, "ours": {"tokens": 99}}, ["ours"])
