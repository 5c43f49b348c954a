"""TreeDrafter: greedy output equal to transformers', one draft forward a depth, caches kept in step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import families
import pytest
import torch
from families import ARCHITECTURES, NEW_TOKENS, family, inputs
from models import VOCAB_SIZE, prompts, tiny
from torch import Tensor

import specdec
from specdec import TreeDrafter

KINDS: dict[str, dict[str, Any]] = {
    "static": {"widths": [3, 2, 1]},
    "irregular": {"parents": [-1, 0, -1, 2, 1, 3, 3, 6]},
    "dynamic": {"num_nodes": 9},
    "eagle": {"num_nodes": 9, "expand": 3, "branch": 3},
    "optimal": {"acceptance": [0.5, 0.2, 0.1], "num_nodes": 10},
    "auto": {"acceptance": "auto", "num_nodes": 10, "branch": 4},
    "confident": {"num_nodes": 9, "min_confidence": 0.1},
}
TREES = [n for n in families.names("attention", "sliding", "moe") if n not in ("bloom", "falcon_alibi")]
EACH_CHANGE = ("llama", "gpt2", "mistral", "gemma2", "deepseek_v3")
COLUMN = [n if n in EACH_CHANGE else pytest.param(n, marks=pytest.mark.long) for n in TREES]


@cache
def reference(name: str, batch_size: int) -> Tensor:
    return family(name).generate(**inputs(name, batch_size), max_new_tokens=NEW_TOKENS, do_sample=False)


def noisy(name: str) -> Any:
    return family(name, ARCHITECTURES[name].noise)


def decode(name: str, batch_size: int, drafter: specdec.Drafter, **kwargs: Any) -> Any:
    arguments = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "num_draft_tokens": 4, **kwargs}
    return specdec.generate(
        family(name), **inputs(name, batch_size), drafter=drafter, return_dict_in_generate=True, **arguments
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", COLUMN)
def test_equals_generate(name: str, batch_size: int, kind: str) -> None:
    """48 tokens, past windows of 8."""
    out = decode(name, batch_size, TreeDrafter(noisy(name), **KINDS[kind]))
    assert torch.equal(out.sequences, reference(name, batch_size))
    stats = out.speculation
    assert stats.accepted > 10
    if kind != "confident":
        assert stats.draft_calls == stats.rounds * len(stats.drafted_per_depth) or stats.draft_calls <= 4 * stats.rounds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_the_draft_sees_what_it_would_see_without_a_cache(name: str, kind: str) -> None:
    """The target drafts for itself: its likeliest path is always right, also behind trees and past the window."""
    out = decode(name, 3, TreeDrafter(family(name), **KINDS[kind]))
    stats = out.speculation
    assert torch.equal(out.sequences, reference(name, 3))
    if kind in ("static", "optimal", "auto"):  # the likeliest path reaches the tree's end
        assert stats.acceptance_rate == 1.0
