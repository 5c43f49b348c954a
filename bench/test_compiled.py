"""Compiled against not, end to end, all in one alternating run. Never fails for being slow.

The packages must be built before anything is timed: the first run takes some minutes for each dtype.
"""

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
PLAIN, MAIN = "compiled plain", "compiled model auto"
COUNTS = (1, 2, 3, 4)  # of draft tokens whose rounds are timed
GOAL_PLAIN, GOAL_OVER_COMPILED, GOAL_OVER_ASSISTED, GOAL_OVER_PLAIN, GOAL_BATCHED = 3.5, 1.3, 4.0, 4.5, 2.0


def test_one_prompt_at_a_time(benchmark: Any, settings: Settings, dtype: torch.dtype, temperature: float) -> None:
    prompts = read(settings)
    with Sides(dtype, temperature, settings.new_tokens, settings.draft_tokens, settings.models) as sides:
        assisted = f"assisted k={settings.draft_tokens}"
        ours = _ours(sides)
        peers = {"plain": sides.plain(), assisted: sides.assisted(), "model auto": sides.model(auto=True)}
        costs = {PLAIN: sides.own_plain("compiled")} | free_sides(sides, "compiled", COUNTS)
        comparison = Comparison(peers | costs | ours, sides.batches(prompts, 1))
        benchmark.group = "compiled, batch 1: seconds a prompt"
        comparison.measure(benchmark, MAIN, settings.rounds)
    describe(benchmark, comparison, settings, sides.target, temperature, 1, kinds_of(prompts, 1))
    _outside(benchmark, comparison, [PLAIN, *ours])
    best = max(ours, key=lambda side: comparison.ratio(side, "plain").median)
    ratio(benchmark, comparison, PLAIN, "plain", GOAL_PLAIN)
    ratio(benchmark, comparison, best, PLAIN, GOAL_OVER_COMPILED, note="best")
    ratio(benchmark, comparison, best, assisted, GOAL_OVER_ASSISTED, note="best")
    ratio(benchmark, comparison, best, "plain", GOAL_OVER_PLAIN, note="best")
    for side in ours:
        if side != best:
            ratio(benchmark, comparison, side, PLAIN)
    ratio(benchmark, comparison, MAIN, "model auto")
    check(benchmark, comparison, {"compiled": PLAIN}, dict.fromkeys(ours, "compiled"))


def test_batch_of_four(benchmark: Any, settings: Settings, dtype: torch.dtype, temperature: float) -> None:
    """Left-padded rows of different lengths."""
    prompts = read(settings, at_least=4)
    with Sides(dtype, temperature, settings.new_tokens, settings.draft_tokens, settings.models) as sides:
        ours = _ours(sides)
        costs = {PLAIN: sides.own_plain("compiled")} | free_sides(sides, "compiled", COUNTS)
        comparison = Comparison({"plain": sides.plain()} | costs | ours, sides.batches(prompts, 4))
        benchmark.group = "compiled, batch 4: seconds a batch"
        comparison.measure(benchmark, MAIN, settings.rounds)
    describe(benchmark, comparison, settings, sides.target, temperature, 4, kinds_of(prompts, 4))
    _outside(benchmark, comparison, [PLAIN, *ours])
    best = max([PLAIN, *ours], key=lambda side: comparison.ratio(side, "plain").median)
    ratio(benchmark, comparison, best, "plain", GOAL_BATCHED, note="best")
    for side in [PLAIN, *ours]:
        if side != best:
            ratio(benchmark, comparison, side, "plain")
    check(benchmark, comparison, {"compiled": PLAIN}, dict.fromkeys(ours, "compiled"))


def _ours(sides: Sides) -> dict[str, Any]:
    return {
        "compiled model k=3": sides.compiled("model", 3),
        MAIN: sides.compiled("model"),
        "compiled n-gram auto": sides.compiled("ngram"),
    }


def _outside(benchmark: Any, comparison: Comparison[Batch], compiled: list[str]) -> None:
    """Share of decoding (prefill aside) that is not inside a graph, and how often the host waits."""
    for side in compiled:
        stats = [call.stats for call in comparison.details(side) if call.stats is not None]
        decoding = sum(s.total_seconds - s.prefill_seconds for s in stats)
        # A prompt is one call, and nearly all of its prefill.
        inside = sum(s.graphs.seconds - s.prefill_seconds for s in stats)
        summary = benchmark.extra_info["sides"][side]
        summary["share_outside_graphs"] = 1 - inside / decoding
        summary["syncs_a_forward"] = sum(s.host_syncs for s in stats) / sum(s.rounds + 1 for s in stats)
