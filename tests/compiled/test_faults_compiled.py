"""Faults of a compiled call: NaN, and memory that runs out; the uncompiled ones are in tests/faults."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import traced
from models import prompts, tiny
from transformers import PreTrainedModel

import specdec
from specdec.compiled import Store, choose, support
from specdec.compiled import build as building
from specdec.compiled.fingerprint import key_of
from specdec.compiled.store import describe
from specdec.target import ModelRunner

FULL = torch.OutOfMemoryError("CUDA out of memory.")


def with_nan(noise: float, token: int) -> PreTrainedModel:
    """A tiny model that gives NaN after one token."""
    model = copy.deepcopy(tiny("llama", noise=noise))
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    assert traced.why_not_captured(model) is None
    return model


def decode(target: PreTrainedModel, draft: PreTrainedModel, **arguments: Any) -> Any:
    return specdec.generate(
        target, **prompts(1), drafter=draft, num_draft_tokens=3, max_new_tokens=24, compile=True,
        return_dict_in_generate=True, **arguments,
    )  # fmt: skip


@pytest.mark.parametrize("do_sample", [pytest.param(False, marks=pytest.mark.long), True])
def test_nan_of_the_target(do_sample: bool) -> None:
    """A typed error, as uncompiled: argmax would take NaN for the best."""
    text = tiny("llama").generate(**prompts(1), max_new_tokens=24)[0]
    draft = tiny("llama", noise=0.02)
    assert traced.why_not_captured(draft) is None
    sound = tiny("llama")
    assert traced.why_not_captured(sound) is None
    torch.manual_seed(0)
    out = decode(sound, draft, do_sample=do_sample)
    assert out.speculation.graphs.roles["target"] == "compiled"
    broken = with_nan(0.0, int((out.sequences[0] if do_sample else text)[15]))
    torch.manual_seed(0)
    with pytest.raises(specdec.NumericalError, match="NaN"):
        decode(broken, draft, do_sample=do_sample)


def test_nan_of_the_draft() -> None:
    """A guess as any other in greedy calls."""
    target = tiny("llama")
    assert traced.why_not_captured(target) is None
    expected = target.generate(**prompts(1), max_new_tokens=24)
    draft = with_nan(0.02, int(expected[0, 15]))
    out = decode(target, draft)
    assert torch.equal(out.sequences, expected)
    assert out.speculation.graphs.roles["draft"] == "compiled"
    assert 0 < out.speculation.accepted < out.speculation.drafted


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    monkeypatch.setattr(support, "get_cpp_compiler", lambda: "g++")
    return copy.deepcopy(tiny("llama"))


def roles(model: PreTrainedModel) -> str:
    out = specdec.generate(model, **prompts(1), max_new_tokens=6, compile=True, return_dict_in_generate=True)
    assert torch.equal(out.sequences, model.generate(**prompts(1), max_new_tokens=6))
    return out.speculation.graphs.roles["target"]


def test_no_memory_to_compile_may_pass(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call decodes uncompiled, and the next one tries again."""
    tries = []

    def build(*_: Any) -> Any:
        tries.append(1)
        raise FULL

    monkeypatch.setattr(building, "build", build)
    for count in (1, 2):
        assert "out of memory" in roles(model)
        assert len(tries) == count


def test_no_memory_to_load_does_not_cost_the_package(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    store, key = Store(), key_of(model)
    built = store.temporary(key)
    built.write_bytes(b"code")
    runner = ModelRunner(model)
    store.put(describe(key, "Llama", built, 1.0, list(choose.memory_shapes(runner))), built)

    def load(_: Any) -> Any:
        raise FULL

    monkeypatch.setattr(building, "load", load)
    for _ in range(2):
        assert "out of memory" in roles(model)
        assert store.find(key) is not None
