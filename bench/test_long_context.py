"""A step at long contexts: what it takes more than at short ones is attention's, and memory is transformers' own.

Steps of a random model of 8192 positions (`--weights-size` has no say here), ours and transformers', beside attention
alone: the same number of calls over keys and values of the same size. Peak memory is that of whole calls, each in a
process of its own (`bench.peak_memory`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from bench.conftest import Settings
from bench.constructed import heavy
from bench.forward_cost import forward_of
from bench.harness import Comparison, Outcome, Ratio
from bench.peak_memory import SIDES
from bench.weights import graph_of
from specdec.compiled.attention import attend
from specdec.target import ModelRunner

CONTEXTS = (128, 1024, 4096)
STEPS = 5  # a run's
SIZE = "small"


@dataclass(frozen=True)
class Attention:
    """The attention of all layers for a window behind a context, and nothing else.

    Args:
        query: [1, H, W, D]; keys, values: [1, G, context + W, D].
        mask: [1, 1, W, context + W], additive; None where one token looks at everything.
        in_float32: as compiled graphs do it; else torch's own, as the uncompiled model calls it.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor | None
    layers: int
    in_float32: bool

    @classmethod
    def of(cls, model: PreTrainedModel, context: int, width: int, in_float32: bool) -> Attention:
        config, dtype = model.config, model.dtype
        dim = config.hidden_size // config.num_attention_heads
        query = torch.randn(1, config.num_attention_heads, width, dim).to(dtype)
        keys, values = torch.randn(2, 1, config.num_key_value_heads, context + width, dim).to(dtype)
        mask = None
        if width > 1 or in_float32:
            seen = torch.arange(context + width) <= context + torch.arange(width)[:, None]
            mask = torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)[None, None]
        return cls(query, keys, values, mask, config.num_hidden_layers, in_float32)

    def __call__(self) -> None:
        for _ in range(self.layers):
            if self.in_float32:
                attend(torch.nn.Identity(), self.query, self.keys, self.values, self.mask)
            elif self.mask is None:
                F.scaled_dot_product_attention(self.query, self.keys, self.values, enable_gqa=True)
            else:  # transformers repeats keys and values where there is a mask
                each = self.query.shape[1] // self.keys.shape[1]
                keys, values = (t.repeat_interleave(each, 1) for t in (self.keys, self.values))
                F.scaled_dot_product_attention(self.query, keys, values, self.mask)


def _transformers(model: PreTrainedModel, context: int, width: int) -> Callable[[], None]:
    """transformers' own step: a forward over a DynamicCache, then back to where it was."""
    cache = DynamicCache(config=model.config)
    ids = torch.randint(2, 16_000, (1, context + width))
    with torch.inference_mode():
        model(ids[:, :context], past_key_values=cache, use_cache=True, logits_to_keep=1)

    def step() -> None:
        model(ids[:, context:], past_key_values=cache, use_cache=True)
        cache.crop(-width)

    return step


@pytest.mark.parametrize("width", [1, 5])
def test_step_by_context(benchmark: Any, settings: Settings, dtype: torch.dtype, width: int) -> None:
    contexts = CONTEXTS if settings.rounds > 1 else CONTEXTS[:1]
    model = heavy(SIZE, dtype)
    eager, graph = ModelRunner(model), graph_of(ModelRunner(model))
    with torch.inference_mode():
        calls: dict[str, list[Callable[[], None]]] = {
            "transformers": [_transformers(model, c, width) for c in contexts],
            "eager": [forward_of(eager, c, 1, width) for c in contexts],
            "compiled": [forward_of(graph, c, 1, width) for c in contexts],
            "attention": [Attention.of(model, c, width, in_float32=False) for c in contexts],
            "attention, float32 products": [Attention.of(model, c, width, in_float32=True) for c in contexts],
        }

    def side(name: str) -> Callable[[int], Outcome]:
        @torch.inference_mode()
        def run(item: int) -> Outcome:
            for _ in range(STEPS):
                calls[name][item]()
            return Outcome(STEPS)

        return run

    comparison = Comparison({name: side(name) for name in calls}, range(len(contexts)))
    benchmark.group = f"long context, {width} tokens, {STEPS} steps"
    comparison.measure(benchmark, "eager", rounds=max(settings.rounds, 7) if settings.rounds > 1 else 1)

    def growth(name: str) -> list[float]:
        """Of each round, seconds more at the longest context than at the shortest."""
        longest, shortest = (comparison.rates(name, item) for item in (len(contexts) - 1, 0))
        return [1 / a - 1 / b for a, b in zip(longest, shortest, strict=True)]

    ms = {name: [1e3 / comparison.rate(name, i) for i in range(len(contexts))] for name in calls}
    benchmark.extra_info |= settings.info() | {
        "kind": "long context",
        "dtype": str(dtype).removeprefix("torch."),
        "width": width,
        "contexts": list(contexts),
        "milliseconds": ms,
        # What a step takes more at the longest context, over what attention alone takes more there.
        "explained": {
            name: Ratio.of([a / max(1e-9, b) for a, b in zip(growth(name), growth(of), strict=True)]).spread
            for name, of in (
                ("transformers", "attention"),
                ("eager", "attention"),
                ("compiled", "attention, float32 products"),
            )
        },
    }


def test_peak_memory(benchmark: Any, settings: Settings) -> None:
    """Bytes, no times; two processes a side, the lower peak counts."""
    contexts, again = ((128, 2049, 4097), 2) if settings.rounds > 1 else ((128,), 1)
    found: list[dict[str, Any]] = []

    def measure(side: str, context: int) -> None:
        command = [sys.executable, "-m", "bench.peak_memory", side, str(context), "--threads", str(settings.threads)]
        # Tensors by mmap, given back as they end: else the mark is that of malloc's holes as well.
        env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        runs = [
            subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout for _ in range(again)
        ]
        found.append(min((json.loads(run.splitlines()[-1]) for run in runs), key=lambda r: r["peak"]))

    cases = [(side, context) for context in contexts for side in SIDES]
    upcoming = iter(cases)
    benchmark.group = "peak memory: seconds of a process"
    benchmark.pedantic(measure, setup=lambda: (next(upcoming), {}), rounds=len(cases), iterations=1)
    benchmark.extra_info |= settings.info() | {"kind": "peak memory", "model": SIZE, "peaks": found}
