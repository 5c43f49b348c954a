"""Every strategy against plain decoding and transformers' nearest, in one alternating run. Reports; never fails.

docs/strategies.md shows its tables. All sides draft at most `--draft-tokens` deep, so that acceptance lengths compare.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import specdec
from bench.conftest import Settings
from bench.harness import Comparison
from bench.sides import Batch, Sides
from bench.test_generate import describe, prompts_of, ratio

pytestmark = pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "t0.8"])
GOAL_OVER_NEAREST = 1.2
NODES = 16  # of the trees whose shape is chosen
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
    with Sides(dtype, temperature, settings.new_tokens, settings.draft_tokens) as sides:
        comparison = Comparison(_peers(sides) | _ours(sides), sides.batches(prompts_of(settings), 1))
        benchmark.group = "strategies, batch 1: seconds a prompt"
        comparison.measure(benchmark, "chain auto", settings.rounds)
    describe(benchmark, comparison, settings, sides.target, temperature, batch_size=1)
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


def test_compiled_strategies(benchmark: Any, settings: Settings, dtype: torch.dtype, temperature: float) -> None:
    """The same through compiled graphs; the first run builds them."""
    with Sides(dtype, temperature, settings.new_tokens, settings.draft_tokens) as sides:
        drafters, autos = _drafters(sides), ("chain", "suffix", "mixed")
        ours = {f"compiled {name}": sides.graphs(drafter, sides.draft_tokens) for name, drafter in drafters.items()}
        ours |= {f"compiled {name} auto": sides.graphs(drafters[name], None) for name in autos}
        plain = {"plain": sides.plain(), "compiled plain": sides.graphs(None, None)}
        comparison = Comparison(plain | ours, sides.batches(prompts_of(settings), 1))
        benchmark.group = "compiled strategies, batch 1: seconds a prompt"
        comparison.measure(benchmark, "compiled chain auto", settings.rounds)
    describe(benchmark, comparison, settings, sides.target, temperature, batch_size=1)
    best_chain = _best(comparison, ["compiled chain", "compiled chain auto"])
    best = _best(comparison, [s for s in ours if not s.startswith("compiled chain")])
    ratio(benchmark, comparison, best, best_chain, 1.0, note="best of the others over the best chain")
    for side in ours:
        ratio(benchmark, comparison, side, "compiled plain", note="best" if side == best else "")
    ratio(benchmark, comparison, best, "plain", note="best")


def _drafters(sides: Sides) -> dict[str, specdec.Drafter]:
    tokenizer = sides.tokenizer
    shared = {"tokenizer": tokenizer, "draft_tokenizer": tokenizer}
    draft, layers = sides.drafter.model, sides.target.config.num_hidden_layers
    drafters: dict[str, specdec.Drafter] = {
        "chain": sides.drafter,
        "tree dynamic": specdec.TreeDrafter(draft, num_nodes=NODES, children="best", **shared),
        "tree optimal": specdec.TreeDrafter(draft, num_nodes=NODES, acceptance="auto", **shared),
        "tree static": specdec.TreeDrafter(draft, widths=[2, 2, 1, 1], **shared),
        "n-gram": specdec.NgramDrafter(),
        "suffix": specdec.SuffixDrafter(),
        "lookahead": specdec.LookaheadDrafter(),
        "mixed": specdec.MixedDrafter([specdec.SuffixDrafter(), sides.drafter]),
        "early exit": specdec.EarlyExitDrafter(exit_layer=layers // 2),
        "layer skip": specdec.LayerSkipDrafter(skip=range(layers // 4, 3 * layers // 4)),
    }
    other = sides.other_draft()
    if other is not None:
        model, theirs = other
        drafters["other tokenizer"] = specdec.CrossTokenizerDrafter(
            model, target_tokenizer=tokenizer, draft_tokenizer=theirs
        )
    return drafters


def _ours(sides: Sides) -> dict[str, Any]:
    drafters = _drafters(sides)
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
