"""Drafts of the target's first layers through a graph of theirs, over the cache of the target's graph."""

from __future__ import annotations

import logging
from typing import Any

import families
import pytest
import torch
import traced
from models import prompts, tiny
from transformers import PreTrainedModel

import specdec
from specdec.compiled import choose
from specdec.compiled.fingerprint import environment, key_of, survey
from specdec.drafters.layers import with_layers
from specdec.drafters.own_layers import LayersRunner
from specdec.probe import probe
from specdec.target import ModelRunner

NEW_TOKENS = 40


def captured(target: PreTrainedModel, kept: range) -> None:
    """Gives target and clone their graphs, as a build would."""
    assert traced.why_not_captured(target) is None
    whole = ModelRunner(target)
    probe(whole)
    runner = LayersRunner(whole, kept)
    if runner.model not in traced._graphs:
        traced._graphs[runner.model] = traced._graph(runner)
        assert choose._problem(runner, traced._graphs[runner.model]) is None
    known = choose._known.setdefault(runner.model, choose._Known())
    known.graphs[environment()] = (survey(runner.model).stamp(), traced._graphs[runner.model])


def decode(target: PreTrainedModel, batch_size: int, **kwargs: Any) -> Any:
    arguments = {"num_draft_tokens": 4, "max_new_tokens": NEW_TOKENS, "do_sample": False, **kwargs}
    drafter = specdec.EarlyExitDrafter(2)
    return specdec.generate(target, **prompts(batch_size), drafter=drafter, return_dict_in_generate=True, **arguments)


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}, {"do_sample": True, "top_k": 20}])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("architecture", ["llama", pytest.param("gpt2", marks=pytest.mark.long)])
def test_both_graphs_over_one_cache(architecture: str, batch_size: int, options: dict[str, Any]) -> None:
    target = tiny(architecture)
    captured(target, range(2))
    outs = []
    for compile in (True, False):
        generator = torch.Generator().manual_seed(2)
        outs.append(decode(target, batch_size, compile=compile, generator=generator, **options))
    compiled, plain = outs
    assert torch.equal(compiled.sequences, plain.sequences)
    if "do_sample" not in options:
        expected = target.generate(**prompts(batch_size), max_new_tokens=NEW_TOKENS, do_sample=False, **options)
        assert torch.equal(compiled.sequences, expected)
    roles = {"target", "draft", "sampling"} if "do_sample" in options else {"target", "draft"}
    assert compiled.speculation.graphs.roles == dict.fromkeys(roles, "compiled")
    assert compiled.speculation.accepted == plain.speculation.accepted > 0
    assert compiled.speculation.graphs.calls >= compiled.speculation.draft_calls + compiled.speculation.rounds


def test_windows_are_masks_there() -> None:
    """The target's graph keeps rings as full layers: uncompiled drafts over it look at the window only."""
    architecture = "mistral"
    target = families.family(architecture)
    assert traced.why_not_captured(target) is None
    inputs = families.inputs(architecture, 3)
    expected = target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    known = choose._known.setdefault(with_layers(target, range(2)), choose._Known())
    stamp = survey(with_layers(target, range(2))).stamp()
    known.refusals[environment()] = (stamp, "of a test")
    for compile in (True, False):
        out = specdec.generate(
            target,
            **inputs,
            drafter=specdec.EarlyExitDrafter(2),
            num_draft_tokens=4,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            compile=compile,
            return_dict_in_generate=True,
        )
        assert torch.equal(out.sequences, expected)
        if compile:
            assert out.speculation.graphs.roles == {"target": "compiled", "draft": "of a test"}
            accepted = out.speculation.accepted
    assert out.speculation.accepted == accepted > 0


def test_a_package_of_its_own() -> None:
    """The key is neither the whole model's nor another exit's, and the same for a second clone of the same layers."""
    target = tiny("llama")
    keys = [key_of(target), *(key_of(with_layers(target, kept)) for kept in ([0], [0, 1], [0, 2], [1, 2]))]
    assert len(set(keys)) == len(keys)
    twin = type(target)(target.config).to(torch.float64).eval()
    twin.load_state_dict(target.state_dict())
    assert key_of(with_layers(twin, [0, 1])) == keys[2]


def test_an_uncompiled_target_says_why_its_drafts_are(caplog: pytest.LogCaptureFixture) -> None:
    target = tiny("llama")
    captured(target, range(2))
    with caplog.at_level(logging.ERROR):
        out = decode(target, 1, compile=True, output_hidden_states=True)
    assert "uncompiled" in out.speculation.graphs.roles["draft"]
    assert torch.equal(out.sequences, target.generate(**prompts(1), max_new_tokens=NEW_TOKENS, do_sample=False))
