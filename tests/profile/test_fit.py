"""The cost model finds what costs were made of, and never that more work takes less time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.profile.fit import Load, fit_costs, non_negative


def record(draft: str, k: int, batch: int, context: int, noise: float = 0.0) -> dict[str, Any]:
    """A draft token costs 2 ms and 1 ms a row; a step 10 ms, 3 more with a draft, 0.5 a token, 2 a row and 1000."""
    rounds, share = 10, float(k > 0)
    verify = 0.01 + 0.003 * share + 0.0005 * (1 + k) * batch + 0.002 * batch * context / 1000
    return {
        "point": [draft, k, batch, context, False],
        "draft": rounds * k * (0.002 + 0.001 * batch) * (1 + noise),
        "verify": rounds * verify * (1 + noise),
        "other": 0.004 + 0.0003 * rounds,
        "prefill": 0.001 + 0.0001 * batch * context,
        "rounds": rounds,
        "depth": k,
        "share": share,
        "batch": batch,
        "context": context,
        "prompt_tokens": batch * context,
    }


def grid(noise: float = 0.0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        record(draft, k, batch, context, noise * float(rng.standard_normal()))
        for draft, ks in (("plain", (0,)), ("model:small", (1, 2, 4, 8)))
        for k in ks
        for batch in (1, 4)
        for context in (100, 800)
    ]


def test_costs_are_found_and_carried_to_settings_that_were_not_run() -> None:
    small = fit_costs(grid())["model:small", False]
    assert all(m.residual < 1e-6 for part, m in small.models.items() if part in ("draft", "verify"))
    for k, batch, context in ((3, 2, 400), (6, 8, 2000)):
        draft, verify = small.round_seconds(Load(batch, context, k, 1.0))
        wanted = record("model:small", k, batch, context)
        assert draft == pytest.approx(wanted["draft"] / 10)
        assert verify == pytest.approx(wanted["verify"] / 10)


def test_residual_tells_how_far_off_it_is() -> None:
    noisy = fit_costs(grid(noise=0.1))["model:small", False]
    assert 0.01 < noisy.models["verify"].residual < 0.2


def test_one_slow_repeat_does_not_count() -> None:
    slow = [r | {"verify": 20 * r["verify"]} for r in grid()]
    assert fit_costs([*grid(), *slow, *grid()])["model:small", False].models["verify"].residual < 1e-6


def test_with_one_batch_size_and_context_other_k_are_right() -> None:
    points = [r for r in grid() if r["batch"] == 1 and r["context"] == 100]
    fitted = fit_costs(points)["model:small", False]
    draft, verify = fitted.round_seconds(Load(1, 100, 3, 1.0))
    wanted = record("model:small", 3, 1, 100)
    assert (draft, verify) == (pytest.approx(wanted["draft"] / 10), pytest.approx(wanted["verify"] / 10))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000))
def test_more_work_never_takes_less_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    solution = non_negative(rng.random((6, 4)), rng.random(6))
    assert (solution >= 0).all()


def test_without_anything_to_leave_out_it_is_least_squares() -> None:
    matrix = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    wanted = np.array([1.0, 2.1, 2.9])
    assert non_negative(matrix, wanted) == pytest.approx(np.linalg.lstsq(matrix, wanted, rcond=None)[0])


def test_a_draft_that_seldom_speaks_is_helped_by_one_that_always_does() -> None:
    """From a draft in one round of twenty, and noise, its verification cannot be told."""
    rng = np.random.default_rng(1)
    seldom = []
    for k in (1, 2, 4, 8):
        quiet = record("seldom", k, 1, 100)
        noise = 1 + 0.1 * abs(float(rng.standard_normal()))
        verify = 10 * (0.01 + 0.003 * 0.05 + 0.0005 * (1 + 0.05 * k) + 0.002 * 0.1) * noise
        seldom.append(quiet | {"share": 0.05, "depth": 0.05 * k, "verify": verify})
    load = Load(1, 100, 0.5 * 4, 0.5)
    wanted = 0.01 + 0.003 * 0.5 + 0.0005 * 3 + 0.002 * 0.1
    alone = fit_costs([r for r in grid() if r["point"][0] == "plain"] + seldom)["seldom", False].round_seconds(load)[1]
    helped = fit_costs(grid() + seldom)["seldom", False].round_seconds(load)[1]
    assert helped == pytest.approx(wanted, rel=0.1)
    assert abs(alone - wanted) > 0.3 * wanted


def test_calls_without_a_round_say_nothing() -> None:
    empty = record("model:small", 2, 1, 100) | {"rounds": 0, "verify": 0.0, "draft": 0.0, "depth": 0, "share": 0.0}
    assert fit_costs([*grid(), empty])["model:small", False] == fit_costs(grid())["model:small", False]


def test_trees_do_not_say_what_a_chain_costs() -> None:
    """They verify more tokens than they are deep."""
    trees = [record("tree:small", k, 1, 100) for k in (2, 4, 8)]
    trees = [r | {"verify": 3 * r["verify"]} for r in trees]
    seldom = [record("ngram", k, 1, 100) | {"share": 0.05, "depth": 0.05 * k} for k in (2, 4, 8)]
    with_trees = fit_costs([*grid(), *seldom, *trees])["ngram", False]
    assert with_trees == fit_costs([*grid(), *seldom])["ngram", False]
