"""Lookahead's trees, and the chain that its first one is, through a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import traced
from models import prompts, tiny

import specdec


def run(target: Any, drafter: specdec.Drafter, compile: bool, do_sample: bool) -> Any:
    return specdec.generate(
        target,
        **prompts(3),
        drafter=drafter,
        num_draft_tokens=6,
        max_new_tokens=30,
        do_sample=do_sample,
        generator=torch.Generator().manual_seed(3),
        compile=compile,
        return_dict_in_generate=True,
    )


@pytest.mark.parametrize("do_sample", [False, True])
def test_compiled_rounds_are_the_uncompiled_ones(do_sample: bool) -> None:
    target = tiny("llama")
    assert traced.why_not_captured(target) is None
    compiled, plain = (run(target, specdec.LookaheadDrafter(4, 4, 3), compile, do_sample) for compile in (True, False))
    assert compiled.speculation.graphs.roles["target"] == "compiled"
    assert torch.equal(compiled.sequences, plain.sequences)
    assert compiled.speculation.accepted_per_depth == plain.speculation.accepted_per_depth
    if not do_sample:
        expected = target.generate(**prompts(3), max_new_tokens=30, do_sample=False)
        assert torch.equal(compiled.sequences, expected)


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_mix_with_a_compiled_draft(do_sample: bool) -> None:
    """A compiled draft's session wants counts only, and falls behind in rounds that it is not asked in."""
    target, draft = tiny("llama"), tiny("llama", noise=0.02)
    for model in (target, draft):
        assert traced.why_not_captured(model) is None
    drafter = specdec.MixedDrafter([specdec.NgramDrafter(min_ngram=1), specdec.ModelDrafter(draft)], costs=[0, 0.4])
    compiled, plain = (run(target, drafter, compile, do_sample) for compile in (True, False))
    roles = {"target", "draft", "sampling"} if do_sample else {"target", "draft"}
    assert compiled.speculation.graphs.roles == dict.fromkeys(roles, "compiled")
    assert torch.equal(compiled.sequences, plain.sequences)
    assert 0 < compiled.speculation.accepted == plain.speculation.accepted
    if not do_sample:
        expected = target.generate(**prompts(3), max_new_tokens=30, do_sample=False)
        assert torch.equal(compiled.sequences, expected)
