"""Where weights dominate: speed-up against acceptance, batch and context, beside the formula.

The target has 170 million random weights (`--weights-size`), the draft knows its text and is right with a given
probability at a given cost (`bench.constructed`). Uncompiled sides, transformers' among them, run in float32, which
such CPUs multiply fastest; compiled ones hold their weights in bfloat16 and compute in float32. Each decodes its own
model's greedy text. The formula is (1 - a^(k+1)) / ((1 - a) (k c + T(k+1) / T(1))), T measured in the same process.

With `SPECDEC_PEER_VLLM` (bench/peers), vLLM decodes the same weights without drafts, one prompt at a time, in both
dtypes.

A first run builds the package, which takes minutes: `python -m bench.weights build` does that beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from bench.conftest import Settings
from bench.constructed import FREE, Reading, TextDrafter, assisted, heavy, spoiled
from bench.forward_cost import forward_of, measure
from bench.harness import Comparison, Outcome
from bench.peers.sides import PAUSE_SECONDS
from bench.peers.workers.wire import Text
from bench.weights import graph_of
from bench.weights_peer import vllm
from specdec.target import ModelRunner

ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FEW = (0.7, 0.9)
CASES = {"batch 1": (1, 128), "batch 4": (4, 128), "batch 8": (8, 128), "context 1024": (1, 1024)}
COSTS = (0.0, 0.1)  # of a drafted token, in reads of the target's weights


@dataclass(frozen=True)
class Made:
    """A model, prompts, and the greedy text of each."""

    model: PreTrainedModel
    ids: Tensor
    texts: list[list[int]]


@cache
def _model(size: str, dtype: torch.dtype) -> PreTrainedModel:
    return heavy(size, dtype)


@cache
def _made(size: str, dtype: torch.dtype, batch_size: int, context: int, tokens: int, compile: bool) -> Made:
    model = _model(size, dtype)
    ids = torch.randint(2, 16_000, (batch_size, context), generator=torch.Generator().manual_seed(context))
    # Decoded once by the side that is to follow it, a chain verified as it will be: bfloat16 ties fall alike.
    texts: Any = specdec.generate(model, input_ids=ids, max_new_tokens=tokens, compile=compile, do_sample=False)
    return Made(model, ids, texts.tolist())


class Sides:
    """All ways to decode the texts, at one acceptance after another."""

    def __init__(
        self,
        plain: Made,
        graph: Made,
        tokens: int,
        k: int,
        cost: Reading,
        vocab_size: int,
        peers: dict[str, Callable[[], Text]],
    ) -> None:
        self.plain, self.graph, self.tokens, self.k = plain, graph, tokens, k
        self.cost, self.vocab_size, self.peers = cost, vocab_size, peers

    def all(self) -> dict[str, Callable[[float], Outcome]]:
        k = self.k
        sides: dict[str, Callable[[float], Outcome]] = {"transformers": lambda a: self._transformers(None)}
        if len(self.plain.ids) == 1:
            sides[f"assisted k={k}"] = self._transformers
        sides |= {"eager": lambda a: self._ours(self.plain, None, 0, False)}
        sides |= {f"eager k={k}": lambda a: self._ours(self.plain, a, k, False)}
        sides |= {"compiled": lambda a: self._ours(self.graph, None, 0, True)}
        sides |= {f"compiled k={k}": lambda a: self._ours(self.graph, a, k, True)}
        sides |= {"compiled auto": lambda a: self._ours(self.graph, a, "auto", True)}
        sides |= {f"vLLM {dtype}": self._vllm(engine) for dtype, engine in self.peers.items()}
        return sides

    def _vllm(self, engine: Callable[[], Text]) -> Callable[[float], Outcome]:
        expected = self.plain.texts[0][self.plain.ids.shape[1] :]

        def run(_: float) -> Outcome:
            sleep(PAUSE_SECONDS)
            text = engine()
            return Outcome(len(text.tokens), {"right": text.tokens == expected}, text.seconds)

        return run

    def _transformers(self, acceptance: float | None) -> Outcome:
        made, kwargs = self.plain, {"max_new_tokens": self.tokens, "do_sample": False}
        if acceptance is None:
            generate: Any = made.model.generate
            out = generate(made.ids, **kwargs)
        else:
            (text,) = self._spoiled(made, acceptance)
            out = assisted(made.model, text, self.k, self.cost, input_ids=made.ids, **kwargs)
        return Outcome(self.tokens * len(made.ids), {"right": out.tolist() == made.texts})

    def _ours(self, made: Made, acceptance: float | None, k: Any, compile: bool) -> Outcome:
        drafter = None if acceptance is None else TextDrafter(self._spoiled(made, acceptance), self.cost)
        decoder = specdec.SpeculativeDecoder(drafter, k if drafter else "auto", compile=compile)
        out: Any = decoder.generate(
            made.model, input_ids=made.ids, max_new_tokens=self.tokens, do_sample=False, return_dict_in_generate=True
        )
        stats = out.speculation
        assert not compile or stats.graphs.roles["target"] == "compiled", stats.graphs.roles
        return Outcome(
            self.tokens * len(made.ids),
            {
                "right": out.sequences.tolist() == made.texts,
                "rate": stats.acceptance_rate,
                "length": stats.acceptance_length,
                "drafted": stats.drafted / max(1, stats.row_rounds),
            },
        )

    def _spoiled(self, made: Made, acceptance: float) -> list[list[int]]:
        context = made.ids.shape[1]
        new = spoiled([text[context:] for text in made.texts], acceptance, self.vocab_size)
        return [text[:context] + tokens for text, tokens in zip(made.texts, new, strict=True)]


@pytest.mark.parametrize("cost", COSTS, ids=["free", "a tenth"])
@pytest.mark.parametrize("case", list(CASES))
def test_against_the_formula(
    benchmark: Any, settings: Settings, request: Any, case: str, cost: float, tmp_path: Path
) -> None:
    is_smoke = settings.rounds == 1
    if cost and case != "batch 1":
        pytest.skip("costly drafts at batch 1 only")
    size = "small" if is_smoke else request.config.getoption("--weights-size")
    batch_size, context = CASES[case]
    k, tokens = settings.draft_tokens, settings.new_tokens
    acceptances: Sequence[float] = FEW[:1] if is_smoke else FEW if cost or case != "batch 1" else ACCEPTANCES
    plain = _made(size, torch.float32, batch_size, context, tokens, False)
    graph = _made(size, torch.bfloat16, batch_size, context, tokens, True)
    num_bytes = 4 * sum(p.numel() for p in plain.model.parameters())
    reading = Reading(cost * num_bytes) if cost else FREE
    with ExitStack() as stack:
        peers = {}
        if batch_size == 1 and not cost:
            peers = stack.enter_context(vllm(plain.model, plain.ids, tokens, tmp_path))
        sides = Sides(plain, graph, tokens, k, reading, plain.model.config.vocab_size, peers).all()
        comparison = Comparison(sides, acceptances)
        benchmark.group = f"weights, {case}, drafts at {cost}"
        comparison.measure(benchmark, f"compiled k={k}", settings.rounds)
    with torch.inference_mode():
        steps = {
            "eager": _steps(ModelRunner(plain.model), context, batch_size, k, settings.rounds),
            "compiled": _steps(graph_of(ModelRunner(graph.model)), context, batch_size, k, settings.rounds),
        }
        reads = {"draft": lambda: reading.pay(batch_size, 1)}
        draft = measure(reads, repeats=3 * settings.rounds)["draft"] if cost else 0.0
    benchmark.extra_info |= settings.info() | {
        "kind": "weights",
        "size": size,
        "parameters": num_bytes // 4,
        "case": case,
        "batch": batch_size,
        "context": context,
        "k": k,
        "draft_cost": cost,
        "draft_milliseconds": draft,
        "step_milliseconds": steps,
        "rows": [_row(comparison, i, k, steps, draft) for i in range(len(acceptances))],
    }


def _steps(runner: ModelRunner, context: int, batch_size: int, k: int, rounds: int) -> list[float]:
    """Milliseconds of forwards of 1 and of k + 1 tokens."""
    calls = {str(width): forward_of(runner, context, batch_size, width) for width in (1, k + 1)}
    return list(measure(calls, repeats=3 * rounds).values())


def _row(
    comparison: Comparison[float], item: int, k: int, steps: dict[str, list[float]], draft: float
) -> dict[str, Any]:
    """Ratios at one acceptance, and what the formula says."""
    alpha = comparison.items[item]
    length = sum(alpha**i for i in range(k + 1))
    formula = {how: length * one / (k * draft + wide) for how, (one, wide) in steps.items()}
    pairs = [(f"{how} k={k}", how) for how in steps] + [("compiled auto", "compiled")]
    pairs += [(f"compiled k={k}", "transformers"), ("compiled", "transformers"), (f"eager k={k}", "transformers")]
    assisted_side = f"assisted k={k}"
    if assisted_side in comparison.sides:
        pairs += [(f"compiled k={k}", assisted_side), (f"eager k={k}", assisted_side), (assisted_side, "transformers")]
    peers = [side for side in comparison.sides if side.startswith("vLLM")]
    pairs += [(f"compiled{mode}", peer) for peer in peers for mode in ("", f" k={k}", " auto")]
    ratios = {}
    for side, over in pairs:
        ratio = comparison.ratio(side, over, item)
        ratios[f"{side} / {over}"] = [ratio.median, ratio.low, ratio.high]
    runs = [r for r in comparison.runs if r.item == item]
    return {
        "acceptance": alpha,
        "expected_length": length,
        "formula": formula,
        "ratios": ratios,
        "tokens_per_second": {side: comparison.rate(side, item) for side in comparison.sides},
        "right": {s: sum(r.outcome.detail["right"] for r in runs if r.side == s) for s in comparison.sides},
        "lengths": {r.side: r.outcome.detail["length"] for r in runs if "length" in r.outcome.detail},
        "auto_drafted": next(r.outcome.detail["drafted"] for r in runs if r.side == "compiled auto"),
    }
