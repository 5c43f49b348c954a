"""Models under torch.compile: decoded uncompiled, and their compiled code stays what it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from models import prompts, tiny
from same import assert_like_generate, assert_works
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

import specdec


@pytest.fixture(autouse=True)
def _dynamo_starts_afresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def base(noise: float = 0.0) -> PreTrainedModel:
    return copy.deepcopy(tiny("llama", noise=noise))


def compiled(how: str, noise: float = 0.0) -> Any:
    """fullgraph=True, so that a recompilation too many would raise."""
    model = base(noise)
    if how == "wrapped":
        return torch.compile(model, backend="eager", fullgraph=True)
    if how == "in place":
        model.compile(backend="eager", fullgraph=True)
    else:
        model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
    return model


@pytest.mark.parametrize("how", ["wrapped", "in place", "forward"])
def test_nothing_is_compiled_by_a_call(how: str) -> None:
    """Windows of many shapes would use up Dynamo's limit for the user's own calls too."""
    target, draft, inputs = compiled(how), compiled(how, noise=0.02), prompts(3)
    expected = base().generate(**inputs, max_new_tokens=24)
    for drafter in (specdec.NgramDrafter(), draft):
        out = specdec.generate(target, **inputs, drafter=drafter, num_draft_tokens=4, max_new_tokens=24)
        assert torch.equal(out, expected)
    assert not counters["stats"]


def test_as_generate_does() -> None:
    """transformers' own generate() on torch.compile(model) runs the model inside uncompiled as well."""
    assert_works(compiled("wrapped"), compiled("wrapped", noise=0.02))
    assert not counters["stats"]


@pytest.mark.parametrize("how", ["in place", "forward"])
def test_the_users_compiled_calls_still_work(how: str) -> None:
    target = compiled(how)
    ids = prompts(1)["input_ids"]
    before = target(ids).logits
    graphs = counters["stats"]["unique_graphs"]
    specdec.generate(target, ids, drafter=base(0.02), num_draft_tokens=4, max_new_tokens=24)
    assert torch.equal(target(ids).logits, before)
    assert counters["stats"]["unique_graphs"] == graphs == 1


def test_layers_compiled_one_by_one() -> None:
    """Their compiled code runs: the cache can be made and written inside Dynamo's trace."""
    target = base()
    for layer in target.model.layers[:1]:
        layer.compile(backend="eager")
    assert_like_generate(target, specdec.NgramDrafter(), prompts(1), num_new=8)
    assert counters["stats"]["unique_graphs"]
