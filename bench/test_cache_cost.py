"""What the cache itself costs a step: it must not grow with the context.

No model runs: a step is one window written to all layers, then the decision which part of it to keep.
DynamicCache's step is what transformers' assisted generation does: `torch.cat` in each layer, then `crop`.
Both steps keep nothing, so that the context stays as long as the test says; what is kept makes no
difference to the work (a length changes; a tree's path is moved whatever becomes of the length).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from bench.conftest import Settings
from bench.harness import Comparison, Outcome
from specdec.cache import LayerKind, RollbackCache

CONTEXTS = (128, 1024, 4096)
STEPS = 20  # a run's steps; one alone is too short for the clock
LAYERS, HEADS, HEAD_DIM = 12, 4, 64  # the bundled target's


@dataclass(frozen=True, slots=True)
class Case:
    """Two caches that hold the same context, and a window to write behind it."""

    rollback: RollbackCache
    dynamic: DynamicCache
    context: int
    states: Tensor  # [1, H, W, D]
    keep: Tensor | None  # [1, K] a tree's accepted path; None for a chain

    def rollback_steps(self) -> Outcome:
        width = self.states.shape[2]
        none_kept = torch.zeros(1, dtype=torch.int64)
        for _ in range(STEPS):
            slots = self.rollback.lengths[:, None] + torch.arange(width)
            self.rollback.begin(slots, self.context + width, level=True)
            for layer in range(LAYERS):
                self.rollback.update(self.states, self.states, layer)
            self.rollback.commit(none_kept, self.keep)
        return Outcome(STEPS)

    def dynamic_steps(self) -> Outcome:
        for _ in range(STEPS):
            for layer in range(LAYERS):
                self.dynamic.update(self.states, self.states, layer)
            self.dynamic.crop(-self.states.shape[2])
        return Outcome(STEPS)


@pytest.mark.parametrize("commit", ["chain", "tree"])
def test_step_without_the_model(benchmark: Any, settings: Settings, dtype: torch.dtype, commit: str) -> None:
    path = torch.tensor([[0, 1, 4, 7]]) if commit == "tree" else None  # the pending token and three nodes
    width = 9 if commit == "tree" else 5
    cases = [_case(context, width, dtype, path) for context in CONTEXTS]
    comparison = Comparison({"dynamic": Case.dynamic_steps, "rollback": Case.rollback_steps}, cases)
    benchmark.group = f"cache, {STEPS} steps"
    comparison.measure(benchmark, "rollback", rounds=max(settings.rounds, 5) if settings.rounds > 1 else 1)
    benchmark.extra_info |= settings.info() | {
        "kind": "cache",
        "dtype": str(dtype).removeprefix("torch."),
        "commit": commit,
        "contexts": list(CONTEXTS),
        "milliseconds_per_step": {
            side: [1e3 / comparison.rate(side, i) for i in range(len(CONTEXTS))] for side in comparison.sides
        },
        # Cost at the longest context over the cost at the shortest: 1 is the claim.
        "growth": {
            side: comparison.ratio(side, side, item=0, over_item=len(CONTEXTS) - 1).median for side in comparison.sides
        },
        "ratios": [comparison.ratio("rollback", "dynamic", i).median for i in range(len(CONTEXTS))],
    }


def _case(context: int, width: int, dtype: torch.dtype, keep: Tensor | None) -> Case:
    rollback = RollbackCache([LayerKind()] * LAYERS, 1, torch.device("cpu"), capacity=2 * max(CONTEXTS))
    dynamic = DynamicCache()
    prompt = torch.randn(1, HEADS, context, HEAD_DIM).to(dtype)
    rollback.begin(torch.arange(context)[None], context, level=True)
    for layer in range(LAYERS):
        rollback.update(prompt, prompt, layer)
        dynamic.update(prompt, prompt, layer)
    rollback.commit(torch.tensor([context]))
    return Case(rollback, dynamic, context, torch.randn(1, HEADS, width, HEAD_DIM).to(dtype), keep)
