"""specdec against transformers, end to end. Reports; never fails for being slow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import specdec
from bench.conftest import Settings
from bench.harness import Comparison
from bench.sides import Batch, Generated, Sides
from specdec.arbitrate import first_divergence

pytestmark = pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "t0.8"])
# The drop-in default is what pytest-benchmark's own columns show.
MAIN = "model auto"
GOAL_OVER_ASSISTED, GOAL_OVER_PLAIN, GOAL_OVER_PLAIN_BATCHED = 1.3, 1.5, 1.2


def test_one_prompt_at_a_time(benchmark: Any, settings: Settings, dtype: torch.dtype, temperature: float) -> None:
    with Sides(dtype, temperature, settings.new_tokens, settings.draft_tokens) as sides:
        k = f"k={settings.draft_tokens}"
        ours = {
            f"model {k}": sides.model(auto=False),
            MAIN: sides.model(auto=True),
            f"n-gram {k}": sides.ngram(auto=False),
            "n-gram auto": sides.ngram(auto=True),
        }
        peers = {"plain": sides.plain(), f"assisted {k}": sides.assisted(), f"prompt lookup {k}": sides.prompt_lookup()}
        comparison = Comparison(peers | ours, sides.batches(prompts_of(settings), 1))
        benchmark.group = "generate, batch 1: seconds a prompt"
        comparison.measure(benchmark, MAIN, settings.rounds)
    describe(benchmark, comparison, settings, sides.target, temperature, batch_size=1)
    ratio(benchmark, comparison, f"model {k}", f"assisted {k}", goal=GOAL_OVER_ASSISTED)
    ratio(benchmark, comparison, f"n-gram {k}", f"prompt lookup {k}")
    for side in [s for s in peers if s != "plain"]:
        ratio(benchmark, comparison, side, "plain")
    against_plain(benchmark, comparison, list(ours), GOAL_OVER_PLAIN)


def test_batch_of_four(benchmark: Any, settings: Settings, dtype: torch.dtype, temperature: float) -> None:
    """Left-padded rows of different lengths, which transformers' assisted generation refuses."""
    with Sides(dtype, temperature, settings.new_tokens, settings.draft_tokens) as sides:
        ours = {
            f"model k={settings.draft_tokens}": sides.model(auto=False),
            MAIN: sides.model(auto=True),
            "n-gram auto": sides.ngram(auto=True),
        }
        comparison = Comparison({"plain": sides.plain()} | ours, sides.batches(prompts_of(settings, at_least=4), 4))
        benchmark.group = "generate, batch 4: seconds a batch"
        comparison.measure(benchmark, MAIN, settings.rounds)
    describe(benchmark, comparison, settings, sides.target, temperature, batch_size=4)
    against_plain(benchmark, comparison, list(ours), GOAL_OVER_PLAIN_BATCHED)


def prompts_of(settings: Settings, at_least: int = 1) -> list[str]:
    prompts = [p["prompt"] for p in specdec.bundled_prompts()]
    return prompts[: max(settings.prompts, at_least)] if settings.prompts else prompts


def describe(
    benchmark: Any,
    comparison: Comparison[Batch],
    settings: Settings,
    target: PreTrainedModel,
    temperature: float,
    batch_size: int,
) -> None:
    """Puts the circumstances and each side's own numbers into the benchmark's record."""
    benchmark.extra_info |= settings.info() | {
        "kind": "generate",
        "dtype": str(target.dtype).removeprefix("torch."),
        "temperature": temperature,
        "batch": batch_size,
        "prompts": len(comparison.items) * batch_size,
        "sides": {side: _summary(comparison, side, target, greedy=temperature == 0) for side in comparison.sides},
        "ratios": [],
    }


def _equal_rows(comparison: Comparison[Batch], side: str, target: PreTrainedModel) -> dict[str, int]:
    """Rows equal to plain decoding's, and how many of the others are near-ties, arbitrated in a wider dtype."""
    counts = {"rows": 0, "equal": 0, "near_ties": 0}
    runs = {(r.item, r.round): r.outcome.detail.rows for r in comparison.runs if r.side == side}
    plain = {(r.item, r.round): r.outcome.detail.rows for r in comparison.runs if r.side == "plain"}
    for (item, round_), rows in runs.items():
        batch = comparison.items[item]
        for row, (new, other) in enumerate(zip(rows, plain[item, round_], strict=True)):
            prompt = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
            found = first_divergence(target, prompt, new, other)
            counts["rows"] += 1
            counts["equal"] += found is None
            counts["near_ties"] += found is not None and found.is_near_tie
    return counts


def _summary(comparison: Comparison[Batch], side: str, target: PreTrainedModel, greedy: bool) -> dict[str, Any]:
    calls: list[Generated] = comparison.details(side)
    tokens = sum(len(row) for call in calls for row in call.rows)
    summary: dict[str, Any] = {
        "tokens_per_second": comparison.rate(side),
        "tokens": tokens,
        "target_forwards": sum(call.target_forwards for call in calls),
    }
    if greedy:  # rounding may tip a tie between two tokens, in bfloat16 above all
        summary["rows_equal_to_plain"] = _equal_rows(comparison, side, target)
    stats = [call.stats for call in calls if call.stats is not None]
    if stats:
        total = specdec.SpeculationStats(
            row_rounds=sum(s.row_rounds for s in stats),
            drafted=sum(s.drafted for s in stats),
            accepted=sum(s.accepted for s in stats),
        )
        summary["acceptance_rate"], summary["acceptance_length"] = total.acceptance_rate, total.acceptance_length
    return summary


def ratio(
    benchmark: Any, comparison: Comparison[Batch], side: str, over: str, goal: float | None = None, note: str = ""
) -> None:
    found = comparison.ratio(side, over)
    benchmark.extra_info["ratios"].append(
        {"side": side, "over": over, "ratio": found.median, "low": found.low, "high": found.high}
        | ({"goal": goal} if goal else {})
        | ({"note": note} if note else {})
    )


def against_plain(benchmark: Any, comparison: Comparison[Batch], ours: list[str], goal: float) -> None:
    """All of ours against plain decoding; the goal is the best one's."""
    best = max(ours, key=lambda side: comparison.ratio(side, "plain").median)
    for side in ours:
        if side == best:
            ratio(benchmark, comparison, side, "plain", goal, note="best")
        else:
            ratio(benchmark, comparison, side, "plain")
