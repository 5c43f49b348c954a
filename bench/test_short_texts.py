"""Many short texts under "auto": one decoder, which remembers what drafts lost, beside one for each call, over plain.

Compiled, on the bundled pair; each side decodes the same prompts in turn, several times over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import specdec
from bench.conftest import Settings
from bench.harness import Comparison, Outcome
from bench.prompts import Batch, read
from bench.sides import Sides
from bench.strategies import drafters_of
from bench.texts import Judge, fail_if_others

NEW_TOKENS = 64
# The drafter, rows, and the temperature: where short texts lost most (docs/performance/axes.md).
CASES: dict[str, tuple[str, int, float]] = {
    "tree, batch 1": ("tree dynamic", 1, 0.0),
    "chain, batch 1": ("chain", 1, 0.0),
    "n-gram, batch 4": ("n-gram", 4, 0.0),
    "n-gram, batch 8, t 0.8": ("n-gram", 8, 0.8),
}
PLAIN, APART, KEPT = "plain", "a decoder a call", "one decoder"


@pytest.mark.parametrize("case", list(CASES))
def test_short_texts(benchmark: Any, settings: Settings, dtype: torch.dtype, case: str) -> None:
    name, rows, temperature = CASES[case]
    prompts = read(settings, at_least=rows)
    with Sides(dtype, temperature, NEW_TOKENS, settings.draft_tokens, settings.models) as sides:
        batches = sides.batches(prompts, rows)

        def apart(batch: Batch) -> Outcome:
            return sides.graphs(drafter, None)(batch)

        drafter: specdec.Drafter = drafters_of(sides)[name]
        cast: dict[str, Callable[[Batch], Outcome]] = {
            PLAIN: sides.graphs(None, None),
            APART: apart,
            KEPT: sides.graphs(drafter, None),
        }
        comparison = Comparison(cast, batches)
        benchmark.group = "short texts"
        comparison.measure(benchmark, KEPT, settings.rounds)
    stats = {
        side: sum((d.stats for d in comparison.details(side)), specdec.SpeculationStats()) for side in (APART, KEPT)
    }
    calls = rows * len(comparison.details(KEPT))
    texts = None
    if not temperature:
        texts = Judge(sides.target).count(
            (ids[mask.bool()].tolist(), ours, plain)
            for side in (APART, KEPT)
            for batch, one, two in zip(
                batches * settings.rounds, comparison.details(side), comparison.details(PLAIN), strict=True
            )
            for ids, mask, ours, plain in zip(
                batch["input_ids"], batch["attention_mask"], one.rows, two.rows, strict=True
            )
        )
    benchmark.extra_info |= settings.info() | {
        "kind": "short texts",
        "new_tokens": NEW_TOKENS,
        "case": case,
        "dtype": str(dtype).removeprefix("torch."),
        "over_plain": {side: comparison.ratio(side, PLAIN).spread for side in (APART, KEPT)},
        "drafted": {side: found.drafted / calls for side, found in stats.items()},
        "texts": texts,
    }
    if texts is not None:
        fail_if_others(case, texts)
