"""Graphs by shape, as a GPU has them; on this CPU with a recorder that makes the recorded call again.

What is tested is all but the GPU (tests/cuda has that): what is recorded, when, with which kernels, and that a replay
gives what the model gives.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fresh import own, own_family
from models import prompts
from stand_in import recorded, remade
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import specdec
from specdec.compiled import sampled
from specdec.compiled.chance import Recipe
from specdec.compiled.shapes import Compiler


def traced(counter: CompileCounterWithBackend) -> Compiler:
    return lambda program: torch.compile(program, backend=counter, fullgraph=True)


@pytest.mark.parametrize(
    ("batch_size", "name"),
    [(3, "mistral")]
    + [pytest.param(*others, marks=pytest.mark.long) for others in [(1, "llama"), (1, "mistral"), (3, "llama")]],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_equals_generate_with_few_kernels(name: str, batch_size: int) -> None:
    model = own_family(name)
    counter = CompileCounterWithBackend("eager")
    run = recorded(model, traced(counter))
    reference = model.generate(**prompts(batch_size), max_new_tokens=40, do_sample=False)
    arguments = {"drafter": specdec.NgramDrafter(min_ngram=1), "num_draft_tokens": 3, "do_sample": False}
    for _ in range(3):
        out = specdec.generate(
            model, **prompts(batch_size), **arguments, max_new_tokens=40, compile=True, return_dict_in_generate=True
        )
        assert torch.equal(out.sequences, reference)
        assert out.speculation.graphs.roles == {"target": "compiled"}
        assert out.speculation.graphs.calls >= out.speculation.rounds
    assert len(run.recordings.recorded) >= 3, "of widths 1 to 4"
    # One row and several, one token and several, and as many of their logits or fewer, are kernels of their own.
    assert 2 <= counter.frame_count <= 4


@pytest.mark.parametrize("batch_size", [1, 3])
def test_recorded_with_the_kernels_that_there_are(batch_size: int) -> None:
    model, draft = own(), own(noise=0.02)
    run = recorded(model)
    recorded(draft)
    for tokens in (12, 40):
        out = specdec.generate(model, **prompts(batch_size), drafter=draft, max_new_tokens=tokens, compile="auto")
        assert torch.equal(out, model.generate(**prompts(batch_size), max_new_tokens=tokens, do_sample=False))
    assert run.recordings.recorded


def test_kernels_that_cannot_be_made(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("no such kernel")

    model = own()
    recorded(model, lambda _: refuse)
    out = specdec.generate(model, **prompts(3), max_new_tokens=12, do_sample=False, compile=True)
    assert torch.equal(out, model.generate(**prompts(3), max_new_tokens=12, do_sample=False))
    assert any("no such kernel" in record.getMessage() for record in caplog.records)


def test_kernels_that_give_other_logits(caplog: pytest.LogCaptureFixture) -> None:
    def wrong(program: Any) -> Any:
        def run(*inputs: Any) -> Any:
            outcome, ends, logits = program(*inputs)
            for part in inputs[-1]:
                part.fill_(0.5)  # keys and values as well
            return outcome, ends, logits.roll(1, -1)

        return run

    model = own()
    recorded(model, wrong)
    out = specdec.generate(model, **prompts(1), max_new_tokens=12, do_sample=False, compile=True)
    assert torch.equal(out, model.generate(**prompts(1), max_new_tokens=12, do_sample=False))
    assert any("other numbers" in record.getMessage() for record in caplog.records)


def test_chance_recorded_decides_as_the_rule() -> None:
    recipe = Recipe.of([TemperatureLogitsWarper(0.8), TopKLogitsWarper(40), TopPLogitsWarper(0.9)])
    assert isinstance(recipe, Recipe)
    replays: list[int] = []

    def counted(*call: Any) -> Any:
        outputs, replay = remade(*call)
        return outputs, lambda: (replay(), replays.append(1))

    run = sampled.recorded_chance(recipe, counted)
    assert sampled._is_right(run, recipe, vocab_size=96, passes=3) and len(replays) > 8
    wrong = sampled.recorded_chance(
        recipe, lambda function, *places: remade(lambda *x: [o.roll(1, -1) for o in function(*x)], *places)
    )
    assert sampled._is_right(wrong, recipe, vocab_size=96, passes=3), "what is no replay of the call is not kept"
