"""AutoLength on simulated clocks: finds the best length, stops what does not pay, tries again."""

from __future__ import annotations

import random

import pytest

from specdec.controller import AutoLength


def simulate(
    alpha: float, draft_cost: float, step_costs: dict[int, float] | None = None, rounds: int = 600, seed: int = 0
) -> tuple[list[int], float]:
    """Asked lengths, and tokens a second relative to plain decoding (a plain step costs 1)."""
    controller, generator = AutoLength(), random.Random(seed)
    asked, tokens, seconds = [], 0, 0.0
    for _ in range(rounds):
        k = controller.choose()
        accepted = 0
        while accepted < k and generator.random() < alpha:
            accepted += 1
        step = (step_costs or {}).get(k + 1, 1.0) * generator.uniform(0.95, 1.05)
        controller.record([k], [accepted], k + 1, k * draft_cost, step)
        asked.append(k)
        tokens += accepted + 1
        seconds += step + k * draft_cost
    return asked, tokens / seconds


def ideal(alpha: float, draft_cost: float, k: int) -> float:
    return sum(alpha**i for i in range(k + 1)) / (1 + k * draft_cost)


@pytest.mark.parametrize(("alpha", "draft_cost"), [(0.9, 0.05), (0.8, 0.1), (0.6, 0.1), (0.5, 0.3), (0.95, 0.01)])
def test_close_to_the_best_fixed_length(alpha: float, draft_cost: float) -> None:
    _, speed = simulate(alpha, draft_cost)
    best = max(ideal(alpha, draft_cost, k) for k in range(17))
    assert speed > 0.9 * best


def test_an_always_wrong_draft_costs_little() -> None:
    asked, speed = simulate(alpha=0.0, draft_cost=0.2)
    assert speed > 0.95
    assert sum(k > 0 for k in asked[300:]) > 0, "it is tried again now and then"


def test_expensive_verification_is_noticed() -> None:
    """Where verifying costs as much as decoding, nothing pays whatever is accepted."""
    asked, speed = simulate(alpha=0.9, draft_cost=0.2, step_costs={n: float(n) for n in range(1, 18)})
    assert speed > 0.93
    assert sum(asked[100:]) < 60


def test_a_draft_that_becomes_good_is_used_again() -> None:
    """A hard passage switches drafting off; an easy one switches it on again."""
    controller, used = AutoLength(), []
    for i in range(400):
        k = controller.choose()
        controller.record([k], [k if i > 100 else 0], k + 1, 0.1 * k, 1.0)
        used.append(k)
    assert sum(used[60:100]) < 20
    assert min(used[-50:]) >= 4


def test_nothing_is_recorded_for_depths_beyond_the_proposal() -> None:
    """A drafter that proposes less than asked (n-gram without a match) is not counted as rejected."""
    controller = AutoLength()
    for i in range(100):
        k = controller.choose()
        depth = min(k, 2) if i % 2 else 0
        controller.record([depth], [depth], depth + 1, 0.0, 1.0)
    assert controller.choose() >= 2
