"""Every strategy against plain decoding and transformers' nearest, in one alternating run; never fails for being slow.

docs/strategies.md shows its tables. All sides draft at most `--draft-tokens` deep, so that acceptance lengths compare.
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
from bench.sides import Engine, Sides
from bench.strategies import drafters_of

pytestmark = pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "t0.8"])
GOAL_OVER_NEAREST = 1.2
ASSISTED, LOOKUP, EXIT, UNIVERSAL = "assisted", "prompt lookup", "assistant_early_exit", "universal assisted"
# Each of ours, and what transformers has that comes nearest.
NEAREST = {
    "chain": ASSISTED,
    "chain auto": ASSISTED,
    "tree dynamic": ASSISTED,
    "tree optimal": ASSISTED,
    "tree static": ASSISTED,
    "n-gram": LOOKUP,
    "suffix": LOOKUP,
    "suffix auto": LOOKUP,
    "lookahead": LOOKUP,
    "mixed": LOOKUP,
    "mixed auto": LOOKUP,
    "early exit": EXIT,
    "layer skip": EXIT,
    "other tokenizer": UNIVERSAL,
}


def test_strategies(benchmark: Any, settings: Settings, dtype: torch.dtype, temperature: float) -> None:
    prompts, plain = read(settings), "own plain"
    with Sides(dtype, temperature, settings.new_tokens, settings.draft_tokens, settings.models) as sides:
        ours = _ours(sides)
        both = _peers(sides) | {plain: sides.own_plain("eager")} | ours
        costs = free_sides(sides, "eager", (1, 2, settings.draft_tokens))
        comparison = Comparison(both | costs, sides.batches(prompts, 1))
        benchmark.group = "strategies, batch 1: seconds a prompt"
        comparison.measure(benchmark, "chain auto", settings.rounds)
    describe(benchmark, comparison, settings, sides.target, temperature, 1, kinds_of(prompts, 1))
    best_chain = _best(comparison, ["chain", "chain auto"])
    strategies = [side for side in NEAREST if side in comparison.sides and side not in ("chain", "chain auto")]
    best = _best(comparison, strategies)
    ratio(benchmark, comparison, best, best_chain, 1.0, note="best of the others over the best chain")
    for side in NEAREST:
        if side in comparison.sides:
            ratio(benchmark, comparison, side, "plain", note="best" if side == best else "")
            if NEAREST[side] in comparison.sides:
                ratio(benchmark, comparison, side, NEAREST[side], GOAL_OVER_NEAREST)
    benchmark.extra_info["lengths"] = _lengths(benchmark.extra_info["sides"])
    check(benchmark, comparison, {"eager": plain}, dict.fromkeys(ours, "eager"))


def test_compiled_strategies(benchmark: Any, settings: Settings, dtype: torch.dtype, temperature: float) -> None:
    """The same through compiled graphs; the first run builds them."""
    prompts = read(settings)
    with Sides(dtype, temperature, settings.new_tokens, settings.draft_tokens, settings.models) as sides:
        drafters, autos = drafters_of(sides), ("chain", "suffix", "mixed")
        ours = {f"compiled {name}": sides.graphs(drafter, sides.draft_tokens) for name, drafter in drafters.items()}
        ours |= {f"compiled {name} auto": sides.graphs(drafters[name], None) for name in autos}
        plain = {"plain": sides.plain(), "compiled plain": sides.own_plain("compiled")}
        costs = free_sides(sides, "compiled", (1, 2, settings.draft_tokens))
        comparison = Comparison(plain | ours | costs, sides.batches(prompts, 1))
        benchmark.group = "compiled strategies, batch 1: seconds a prompt"
        comparison.measure(benchmark, "compiled chain auto", settings.rounds)
    describe(benchmark, comparison, settings, sides.target, temperature, 1, kinds_of(prompts, 1))
    best_chain = _best(comparison, ["compiled chain", "compiled chain auto"])
    best = _best(comparison, [s for s in ours if not s.startswith("compiled chain")])
    ratio(benchmark, comparison, best, best_chain, 1.0, note="best of the others over the best chain")
    for side in ours:
        ratio(benchmark, comparison, side, "compiled plain", note="best" if side == best else "")
    ratio(benchmark, comparison, best, "plain", note="best")
    engines: dict[str, Engine] = dict.fromkeys(ours, "compiled")
    check(benchmark, comparison, {"compiled": "compiled plain"}, engines)


def _ours(sides: Sides) -> dict[str, Any]:
    drafters = drafters_of(sides)
    ours = {name: sides.strategy(drafter, auto=False) for name, drafter in drafters.items()}
    return ours | {f"{name} auto": sides.strategy(drafters[name], auto=True) for name in ("chain", "suffix", "mixed")}


def _peers(sides: Sides) -> dict[str, Any]:
    peers = {
        "plain": sides.plain(),
        ASSISTED: sides.assisted(),
        LOOKUP: sides.prompt_lookup(),
        EXIT: sides.early_exit(sides.target.config.num_hidden_layers // 2),
    }
    universal = sides.universal()
    return peers if universal is None else peers | {UNIVERSAL: universal}


def _best(comparison: Comparison[Batch], names: list[str]) -> str:
    return max(names, key=comparison.rate)


def _lengths(sides: dict[str, Any]) -> dict[str, float]:
    """Acceptance length of each tree over that of the chain of the same depth."""
    chain = sides["chain"]["acceptance_length"]
    return {name: own["acceptance_length"] / chain for name, own in sides.items() if name.startswith("tree")}
