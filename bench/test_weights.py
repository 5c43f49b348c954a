"""Where weights dominate: speed-up against acceptance, batch and context, beside the formula.

The target has 170 million random weights (`--weights-size`), the draft knows its text and is right with a given
probability at a given cost (`bench.constructed`). Uncompiled sides, transformers' among them, run in float32, which
such CPUs multiply fastest; compiled ones hold their weights in bfloat16, or as `--weights-dtype` says, and compute in
float32. Each decodes its own model's greedy text, and fails if ours is another. The formula is
tau / (k c + T(k+1) / T(1)), with tau = (1 - a^(k+1)) / (1 - a) for a chance a, or as it fell out, and T measured in the
same rounds, with drafts that cost nothing. A ratio above it fails (`bench.guard`).

With `SPECDEC_PEER_VLLM` (bench/peers), vLLM decodes the same prompts with the same weights without drafts, in both
dtypes.

A first run builds the package, which takes minutes: `python -m bench.weights build` does that beforehand.
"""

from __future__ import annotations

import copy
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
from bench import guard
from bench.conftest import Settings
from bench.constructed import FREE, Reading, TextDrafter, assisted, heavy, spoiled
from bench.forward_cost import measure
from bench.free import FreeDrafter
from bench.harness import Comparison, Outcome
from bench.peers.sides import PAUSE_SECONDS
from bench.peers.workers.wire import Texts
from bench.sides import Engine, Generated
from bench.static import reason_against, static_generate
from bench.texts import Judge, fail_if_others
from bench.weights_peer import vllm

ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FEW = (0.7, 0.9)
CASES = {"batch 1": (1, 128), "batch 4": (4, 128), "batch 8": (8, 128), "context 1024": (1, 1024)}
STATIC = "static cache, torch.compile"
ENGINES: tuple[Engine, ...] = ("eager", "compiled")
COSTS = (0.0, 0.1)  # of a drafted token, in reads of the target's weights


@dataclass(frozen=True)
class Made:
    """A model, prompts, and the greedy text of each."""

    model: PreTrainedModel
    ids: Tensor
    texts: list[list[int]]
    judge: Judge

    @property
    def new(self) -> list[list[int]]:
        """What follows the prompts."""
        return [text[self.ids.shape[1] :] for text in self.texts]

    def judged(self, calls: Sequence[Generated]) -> dict[str, int]:
        """How many rows are these texts."""
        return self.judge.count(t for c in calls for t in zip(self.ids.tolist(), c.rows, self.new, strict=True))


@cache
def _model(size: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    return heavy(size, dtype, device=device)


@cache
def _made(
    size: str, dtype: torch.dtype, batch_size: int, context: int, tokens: int, compile: bool, device: str
) -> Made:
    model = _model(size, dtype, device)
    ids = torch.randint(2, 16_000, (batch_size, context), generator=torch.Generator().manual_seed(context)).to(device)
    # Decoded once by the side that is to follow it, a chain verified as it will be: bfloat16 ties fall alike.
    texts: Any = specdec.generate(model, input_ids=ids, max_new_tokens=tokens, compile=compile, do_sample=False)
    return Made(model, ids, texts.tolist(), Judge(model))


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
        peers: dict[str, Callable[[], Texts]],
    ) -> None:
        self.plain, self.graph, self.tokens, self.k = plain, graph, tokens, k
        self.cost, self.vocab_size, self.peers = cost, vocab_size, peers
        # On a CPU it is slower than without (docs/performance/axes.md), and takes minutes to compile.
        self._static: Any = None
        if plain.ids.device.type == "cuda":
            self._static = static_generate(copy.deepcopy(plain.model), plain.ids.shape[1] + tokens)
            reason = reason_against(self._static, {"input_ids": plain.ids})
            assert reason is None, reason

    def made(self, side: str) -> Made:
        """Whose text the side writes."""
        return self.graph if side.startswith("compiled") else self.plain

    def all(self) -> dict[str, Callable[[float], Outcome]]:
        k = self.k
        sides: dict[str, Callable[[float], Outcome]] = {"transformers": lambda a: self._transformers(None)}
        if self.plain.ids.device.type == "cuda":
            sides[STATIC] = lambda a: self._transformers(None, self._static)
        if len(self.plain.ids) == 1:
            sides[f"assisted k={k}"] = self._transformers
        sides |= {"eager": lambda a: self._ours(self.plain, None, 0, False)}
        sides |= {f"eager k={k}": lambda a: self._ours(self.plain, a, k, False)}
        sides |= {"compiled": lambda a: self._ours(self.graph, None, 0, True)}
        sides |= {f"compiled k={k}": lambda a: self._ours(self.graph, a, k, True)}
        sides |= {"compiled auto": lambda a: self._ours(self.graph, a, "auto", True)}
        sides |= {f"vLLM {dtype}": self._vllm(engine) for dtype, engine in self.peers.items()}
        for how in ENGINES:
            sides |= {guard.free_name(how, n): self._free(how, n) for n in (0, k)}
        return sides

    def _vllm(self, engine: Callable[[], Texts]) -> Callable[[float], Outcome]:
        def run(_: float) -> Outcome:
            sleep(PAUSE_SECONDS)
            texts = engine()
            return Outcome(sum(map(len, texts.rows)), Generated(texts.rows, 0, None), texts.seconds)

        return run

    def _transformers(self, acceptance: float | None, generate: Any = None) -> Outcome:
        made, kwargs = self.plain, {"max_new_tokens": self.tokens, "do_sample": False}
        if acceptance is None:
            generate = generate or made.model.generate
            out = generate(input_ids=made.ids, **kwargs)
        else:
            (text,) = self._spoiled(made, acceptance)
            out = assisted(made.model, text, self.k, self.cost, input_ids=made.ids, **kwargs)
        return self._outcome(out, made, None)

    def _ours(self, made: Made, acceptance: float | None, k: Any, compile: bool) -> Outcome:
        drafter = None if acceptance is None else TextDrafter(self._spoiled(made, acceptance), self.cost)
        decoder = specdec.SpeculativeDecoder(drafter, k if drafter else "auto", compile=compile)
        out: Any = decoder.generate(
            made.model, input_ids=made.ids, max_new_tokens=self.tokens, do_sample=False, return_dict_in_generate=True
        )
        stats = out.speculation
        assert not compile or stats.graphs.roles["target"] == "compiled", stats.graphs.roles
        return self._outcome(out.sequences, made, stats)

    def _free(self, how: Engine, num_draft_tokens: int) -> Callable[[float], Outcome]:
        """T(N + 1): rounds with drafts that cost nothing."""
        made, drafter = (self.graph if how == "compiled" else self.plain), FreeDrafter(num_draft_tokens)
        decoder = specdec.SpeculativeDecoder(drafter, max(1, num_draft_tokens), compile=how == "compiled")

        def run(_: float) -> Outcome:
            decoder.generate(made.model, input_ids=made.ids, max_new_tokens=drafter.new_tokens, do_sample=False)
            rounds, seconds = drafter.rounds()
            return Outcome(rounds, None, seconds)

        return run

    def _outcome(self, out: Tensor, made: Made, stats: specdec.SpeculationStats | None) -> Outcome:
        return Outcome(self.tokens * len(made.ids), Generated(out[:, made.ids.shape[1] :].tolist(), 0, stats))

    def _spoiled(self, made: Made, acceptance: float) -> list[list[int]]:
        new = spoiled(made.new, acceptance, self.vocab_size)
        return [ids + tokens for ids, tokens in zip(made.ids.tolist(), new, strict=True)]


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
    device = settings.models.device
    dtype = getattr(torch, request.config.getoption("--weights-dtype"))
    acceptances: Sequence[float] = FEW[:1] if is_smoke else FEW if cost or case != "batch 1" else ACCEPTANCES
    # What a CPU multiplies fastest; a GPU has units for half precision.
    plain = _made(size, torch.float32 if device == "cpu" else dtype, batch_size, context, tokens, False, device)
    graph = _made(size, dtype, batch_size, context, tokens, True, device)
    num_parameters = sum(p.numel() for p in plain.model.parameters())
    num_bytes = num_parameters * plain.model.dtype.itemsize
    reading = Reading(cost * num_bytes, plain.model.dtype, device) if cost else FREE
    with ExitStack() as stack:
        peers = {}
        if not cost:
            peers = stack.enter_context(vllm(plain.model, plain.ids, tokens, tmp_path))
        sides = Sides(plain, graph, tokens, k, reading, plain.model.config.vocab_size, peers)
        comparison = Comparison(sides.all(), acceptances)
        benchmark.group = f"weights, {case}, drafts at {cost}"
        comparison.measure(benchmark, f"compiled k={k}", settings.rounds)
    with torch.inference_mode():
        reads = {"draft": lambda: reading.pay(batch_size, 1, wait=True)}
        draft = measure(reads, repeats=3 * settings.rounds)["draft"] if cost else 0.0
    parts = [Comparison(comparison.sides, comparison.items, comparison.of(i)) for i in range(len(acceptances))]
    plains, ours = {how: how for how in ENGINES}, {f"{how} k={k}": how for how in ENGINES}
    found = [guard.bounds(part, plains, ours | {"compiled auto": "compiled"}) for part in parts]
    steps = {how: guard.milliseconds(comparison, how) for how in ENGINES}
    benchmark.extra_info |= settings.info() | {
        "kind": "weights",
        "size": size,
        "parameters": num_parameters,
        "case": case,
        "batch": batch_size,
        "context": context,
        "k": k,
        "draft_cost": cost,
        "draft_milliseconds": draft,
        "graph_dtype": str(dtype).removeprefix("torch."),
        "step_milliseconds": {how: [ms[n] for n in (0, k)] for how, ms in steps.items()},
        "rows": [_row(part, i, k, draft, sides) for i, part in enumerate(parts)],
        "bounds": [bound.info() for one in found for bound in one],
    }
    for row in benchmark.extra_info["rows"]:
        for side, counts in row["texts"].items():
            if side.startswith(ENGINES):
                fail_if_others(side, counts)
    guard.fail_if_impossible([bound for one in found for bound in one])


def _row(comparison: Comparison[float], item: int, k: int, draft: float, sides: Sides) -> dict[str, Any]:
    """Ratios at one acceptance, and what the formula says of its chance and of what was accepted.

    Args:
        comparison: of this acceptance's runs.
        draft: milliseconds of a drafted token.
    """
    alpha = comparison.items[item]
    length = sum(alpha**i for i in range(k + 1))
    stats = {
        side: sum((d.stats for d in comparison.details(side)), specdec.SpeculationStats())
        for side in (*(f"{how} k={k}" for how in ENGINES), "compiled auto")
    }
    formula, formula_of_accepted = {}, {}
    for how in ENGINES:
        steps = guard.milliseconds(comparison, how)
        scale = steps[0] / (k * draft + steps[k])
        formula[how] = length * scale
        formula_of_accepted[how] = stats[f"{how} k={k}"].acceptance_length * scale
    pairs = [(f"eager k={k}", "eager"), (f"compiled k={k}", "compiled"), ("compiled auto", "compiled")]
    pairs += [(f"compiled k={k}", "transformers"), ("compiled", "transformers"), (f"eager k={k}", "transformers")]
    assisted_side = f"assisted k={k}"
    if assisted_side in comparison.sides:
        pairs += [(f"compiled k={k}", assisted_side), (f"eager k={k}", assisted_side), (assisted_side, "transformers")]
    peers = [side for side in comparison.sides if side.startswith("vLLM")]
    if STATIC in comparison.sides:
        pairs += [(f"compiled{mode}", STATIC) for mode in ("", f" k={k}", " auto")] + [(STATIC, "transformers")]
    pairs += [(f"compiled{mode}", peer) for peer in peers for mode in ("", f" k={k}", " auto")]
    ratios = {}
    for side, over in pairs:
        ratios[f"{side} / {over}"] = comparison.ratio(side, over).spread
    written = [side for side in comparison.sides if comparison.details(side)[0] is not None]
    return {
        "acceptance": alpha,
        "expected_length": length,
        "formula": formula,
        "formula_of_accepted": formula_of_accepted,
        "ratios": ratios,
        "tokens_per_second": {side: comparison.rate(side) for side in written},
        "texts": {side: sides.made(side).judged(comparison.details(side)) for side in written},
        "lengths": {side: s.acceptance_length for side, s in stats.items()},
        "auto_drafted": stats["compiled auto"].drafted / max(1, stats["compiled auto"].row_rounds),
    }
