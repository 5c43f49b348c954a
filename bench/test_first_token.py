"""Time to the first token, which speculation must not delay (transformers drafts before the prefill)."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

import specdec
from bench.conftest import Settings
from bench.harness import Comparison, Outcome
from bench.sides import Batch, Side, pair

CONTEXTS = (16, 128, 768)  # prompt tokens a row
GOAL = 0.95  # of plain generate's rate: at most 5 % later
MAIN = "model auto"


class _Clock(BaseStreamer):
    """Notes when the first new token comes, and then ends the call."""

    class Enough(Exception):
        """The first token is there."""

    def __init__(self) -> None:
        self._puts = 0
        self._begun = perf_counter()
        self.seconds = 0.0

    def put(self, value: Any) -> None:
        self._puts += 1
        if self._puts == 2:  # the first is the prompt
            self.seconds = perf_counter() - self._begun
            raise _Clock.Enough

    def end(self) -> None:
        """Nothing to flush."""


def _until_first(generate: Any, **settings: Any) -> Side:
    def side(batch: Batch) -> Outcome:
        clock = _Clock()
        with pytest.raises(_Clock.Enough):
            generate(**batch, streamer=clock, do_sample=False, **settings)
        return Outcome(1, seconds=clock.seconds)

    return side


@pytest.mark.parametrize("batch_size", [1, 4])
def test_first_token(benchmark: Any, settings: Settings, dtype: torch.dtype, batch_size: int) -> None:
    target, draft, _ = pair(dtype)
    model, ngram = specdec.ModelDrafter(draft), specdec.NgramDrafter()
    new = {"max_new_tokens": settings.new_tokens}
    plain: Any = target.generate
    sides = {
        "plain": _until_first(plain, **new),
        "n-gram auto": _until_first(specdec.SpeculativeDecoder(ngram).generate, target=target, **new),
        MAIN: _until_first(specdec.SpeculativeDecoder(model).generate, target=target, **new),
    }
    if batch_size == 1:
        sides["assisted"] = _until_first(plain, assistant_model=draft, **new)
    vocab_size = target.config.vocab_size
    random = torch.Generator().manual_seed(0)
    batches = []
    for context in CONTEXTS:
        ids = torch.randint(4, vocab_size, (batch_size, context), generator=random)
        lengths = torch.tensor([context, *[context // 2 + row for row in range(batch_size - 1)]])
        mask = (torch.arange(context) >= context - lengths[:, None]).long()
        batches.append({"input_ids": ids, "attention_mask": mask})
    comparison = Comparison(sides, batches)
    benchmark.group = "time to first token"
    comparison.measure(benchmark, MAIN, rounds=max(settings.rounds, 9) if settings.rounds > 1 else 1)
    benchmark.extra_info |= settings.info() | {
        "kind": "first token",
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch_size,
        "contexts": list(CONTEXTS),
        "goal": GOAL,
        "milliseconds": {s: [1e3 / comparison.rate(s, i) for i in range(len(CONTEXTS))] for s in sides},
        "ratios": {s: [_spread(comparison, s, i) for i in range(len(CONTEXTS))] for s in sides if s != "plain"},
    }


def _spread(comparison: Comparison[Batch], side: str, item: int) -> list[float]:
    ratio = comparison.ratio(side, "plain", item)
    return [ratio.median, ratio.low, ratio.high]
