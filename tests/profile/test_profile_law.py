"""Sampled acceptance on the bundled pair is what alpha says, and the loop takes the rounds that were predicted."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import pytest

from specdec.profile.options import Options
from specdec.profile.schema import Interval
from tests.profile.profiles import profile

pytestmark = pytest.mark.usefixtures("few_costs")
ASKED = Options(
    max_prompts=8, loop_prompts=8, new_tokens=32, temperatures=(0.7, 1.0), num_draft_tokens=(3,), dtype="float32"
)


def _holds(interval: Interval, value: float) -> bool:
    """Within the interval, or as much again beside it.

    On other machines rounding draws other texts, of which one in twenty would miss the interval itself.
    """
    wide = interval.high - interval.low
    return interval.low - wide < value < interval.high + wide


def _check(tmp_path: pathlib.Path, options: Options) -> None:
    found = profile(tmp_path, options)
    checked = [s for s in found.settings if s.draft == "model:bundled"]
    assert [s.temperature for s in checked] == [0.7, 1.0]
    for s in checked:
        assert s.measured is not None
        assert s.measured.martingale is not None
        assert s.predicted is not None
        assert _holds(s.measured.martingale, 0), s.measured.martingale
        assert s.measured.martingale.high - s.measured.martingale.low < 0.4  # it says something
        # Two texts of the same prompts: the interval of either may hold the other's.
        rounds, expected = s.measured.rounds, s.predicted.rounds
        assert _holds(rounds, expected.value), (rounds, expected)
        # The mean of alpha over the text is not what a round's drafts meet.
        alpha = next(a.alpha.value for a in found.agreements if a.temperature == s.temperature)
        assert s.predicted.acceptance_length < sum(alpha**i for i in range(4))


@pytest.mark.long
def test_acceptance_is_what_alpha_says(tmp_path: pathlib.Path) -> None:
    _check(tmp_path, ASKED)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 5))
def test_acceptance_is_what_alpha_says_with_other_seeds(tmp_path: pathlib.Path, seed: int) -> None:
    _check(tmp_path, replace(ASKED, max_prompts=16, loop_prompts=16, new_tokens=64, seed=seed))
