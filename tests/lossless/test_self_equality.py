"""Drafts of the target's own layers on its own cache: greedy text equals target.generate(), family by family.

Rings are written by drafts before the target writes them, hybrids take the way of a cache of their own, and an
encoder's states are the target's. Default: one family of each kind; all others are long.
"""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
from lossless.registry import REFUSED

import specdec

NEW_TOKENS = 40  # more than five windows of the sliding ones
# Their cached forwards take one token: nothing is drafted for them.
STEPWISE = ("mamba", "falcon_mamba", "jamba")
DEFAULT = ("gpt_neox", "falcon_alibi", "mistral", "gemma2", "lfm2", "t5")  # the matrix has others
NAMES = [n for n in families.names() if families.ARCHITECTURES[n].kind != "refused" and n not in STEPWISE]


def marked(name: str) -> Any:
    return name if name in DEFAULT else pytest.param(name, marks=pytest.mark.long)


def drafters(name: str) -> list[specdec.Drafter]:
    skips = [] if (name, "layer skip") in REFUSED else [specdec.LayerSkipDrafter([1])]
    return [specdec.EarlyExitDrafter(2), *skips]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", [marked(n) for n in NAMES])
def test_equals_generate(name: str, batch_size: int) -> None:
    target, inputs = families.family(name), families.inputs(name, batch_size)
    arguments = {**inputs, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    expected = target.generate(**arguments)
    accepted = 0
    for drafter in drafters(name):
        stats: list[specdec.SpeculationStats] = []
        decoder = specdec.SpeculativeDecoder(drafter, num_draft_tokens=4)
        out = decoder.generate(target, **arguments, on_finish=stats.append)
        assert torch.equal(out, expected), type(drafter).__name__
        assert stats[0].drafted > 0
        accepted += stats[0].accepted
    if batch_size == 1:
        assert accepted > 0
