"""specdec against transformers, end to end. Never fails for being slow."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.guard import free_sides
from bench.harness import Comparison
from bench.prompts import Batch, kinds_of, read
from bench.record import check, describe, ratio
from bench.settings import Settings
from bench.sides import Sides

pytestmark = pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "t0.8"])
# The drop-in default is what pytest-benchmark's own columns show.
MAIN, PLAIN = "model auto", "own plain"
GOAL_OVER_ASSISTED, GOAL_OVER_PLAIN, GOAL_OVER_PLAIN_BATCHED = 1.3, 1.5, 1.2


def test_one_prompt_at_a_time(benchmark: Any, settings: Settings, dtype: torch.dtype, temperature: float) -> None:
    prompts = read(settings)
    with Sides(dtype, temperature, settings.new_tokens, settings.draft_tokens, settings.models) as sides:
        k = f"k={settings.draft_tokens}"
        ours = {
            f"model {k}": sides.model(auto=False),
            MAIN: sides.model(auto=True),
            f"n-gram {k}": sides.ngram(auto=False),
            "n-gram auto": sides.ngram(auto=True),
        }
        peers = {"plain": sides.plain(), f"assisted {k}": sides.assisted(), f"prompt lookup {k}": sides.prompt_lookup()}
        costs = {PLAIN: sides.own_plain("eager")} | free_sides(sides, "eager", (1, 2, settings.draft_tokens))
        comparison = Comparison(peers | ours | costs, sides.batches(prompts, 1))
        benchmark.group = "generate, batch 1: seconds a prompt"
        comparison.measure(benchmark, MAIN, settings.rounds)
    describe(benchmark, comparison, settings, sides.target, temperature, 1, kinds_of(prompts, 1))
    ratio(benchmark, comparison, f"model {k}", f"assisted {k}", goal=GOAL_OVER_ASSISTED)
    ratio(benchmark, comparison, f"n-gram {k}", f"prompt lookup {k}")
    for side in [s for s in peers if s != "plain"]:
        ratio(benchmark, comparison, side, "plain")
    against_plain(benchmark, comparison, list(ours), GOAL_OVER_PLAIN)
    check(benchmark, comparison, {"eager": PLAIN}, dict.fromkeys(ours, "eager"))


def test_batch_of_four(benchmark: Any, settings: Settings, dtype: torch.dtype, temperature: float) -> None:
    """Left-padded rows of different lengths, which transformers' assisted generation refuses."""
    prompts = read(settings, at_least=4)
    with Sides(dtype, temperature, settings.new_tokens, settings.draft_tokens, settings.models) as sides:
        ours = {
            f"model k={settings.draft_tokens}": sides.model(auto=False),
            MAIN: sides.model(auto=True),
            "n-gram auto": sides.ngram(auto=True),
        }
        costs = {PLAIN: sides.own_plain("eager")} | free_sides(sides, "eager", (1, 2, settings.draft_tokens))
        comparison = Comparison({"plain": sides.plain()} | ours | costs, sides.batches(prompts, 4))
        benchmark.group = "generate, batch 4: seconds a batch"
        comparison.measure(benchmark, MAIN, settings.rounds)
    describe(benchmark, comparison, settings, sides.target, temperature, 4, kinds_of(prompts, 4))
    against_plain(benchmark, comparison, list(ours), GOAL_OVER_PLAIN_BATCHED)
    check(benchmark, comparison, {"eager": PLAIN}, dict.fromkeys(ours, "eager"))


def against_plain(benchmark: Any, comparison: Comparison[Batch], ours: list[str], goal: float) -> None:
    """All of ours against plain decoding; the goal is the best one's."""
    best = max(ours, key=lambda side: comparison.ratio(side, "plain").median)
    for side in ours:
        if side == best:
            ratio(benchmark, comparison, side, "plain", goal, note="best")
        else:
            ratio(benchmark, comparison, side, "plain")
