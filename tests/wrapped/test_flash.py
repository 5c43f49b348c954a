"""Flash attention: no mask per query and key, causal with the last query on the last key.

Its kernels need a GPU; here a function with its contract stands in under a name that transformers takes for flash
attention ("flash" in it is what counts), with the mask function of the real one.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import prompts, tiny
from same import assert_unchanged, snapshot
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import flash_attention_mask
from transformers.modeling_flash_attention_utils import _is_packed_sequence
from transformers.utils.generic import is_flash_attention_requested

import specdec

NAME = "flash_attention_stand_in"


class Calls:
    """Queries and keys of the forwards that reached the stand-in."""

    widths: list[tuple[int, int]] = []  # noqa: RUF012 - one list for the process, emptied by each test


def flash_stand_in(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_ids: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """[B, H, Q, D] attention as flash_attn_func: the mask is None or 2D (padding), positions are one sequence."""
    assert attention_mask is None or attention_mask.dim() == 2
    packed = attention_mask is None and _is_packed_sequence(position_ids, len(query))
    assert not packed, f"transformers would read {position_ids} as several sequences packed into one row"
    num_queries, num_keys = query.shape[2], key.shape[2]
    Calls.widths.append((num_queries, num_keys))
    visible = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    if attention_mask is not None:
        visible = visible & attention_mask[:, None, None].bool()
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, flash_stand_in)
AttentionMaskInterface.register(NAME, flash_attention_mask)


def flash(noise: float = 0.0) -> PreTrainedModel:
    model = copy.deepcopy(tiny("llama", noise=noise))
    # Loading by this name would look for a kernel on the hub.
    model.config._attn_implementation = NAME
    assert is_flash_attention_requested(model.config)
    Calls.widths.clear()
    return model


# Repetition, so that n-grams match.
FULL = {"input_ids": torch.tensor([[5, 6, 7] * 4])}
PADDED = {"input_ids": torch.tensor([[0, 0, *[5, 6, 7] * 4]]), "attention_mask": torch.tensor([[0, 0, *[1] * 12]])}


class Gapped(specdec.Drafter, specdec.DraftSession):
    """Proposes chains whose last nodes are not there, so that the window ends in padding."""

    def start(self, state: specdec.DecodeState) -> specdec.DraftSession:
        return self

    def propose(self, state: specdec.DecodeState, limit: Any) -> specdec.Proposal:
        tokens = torch.full((state.batch_size, max(limit)), 5)
        return specdec.Proposal.chain(tokens, (torch.arange(max(limit)) < 1).expand_as(tokens))


@pytest.mark.parametrize("inputs", [FULL, PADDED], ids=["full", "padded"])
@pytest.mark.parametrize("kind", ["none", "ngram", "gapped", "flash draft", "sdpa draft"])
def test_chains_of_one_row(kind: str, inputs: dict[str, Tensor]) -> None:
    """The window of a chain is what flash attention computes without a mask."""
    target = flash()
    expected = target.generate(**inputs, max_new_tokens=30)
    assert torch.equal(expected, tiny("llama").generate(**inputs, max_new_tokens=30))
    drafters: dict[str, Any] = {
        "none": None,
        "ngram": specdec.NgramDrafter(),
        "gapped": Gapped(),
        "flash draft": flash(noise=0.02),
        "sdpa draft": tiny("llama", noise=0.02),
    }
    before = snapshot(target)
    Calls.widths.clear()
    out = specdec.generate(target, **inputs, drafter=drafters[kind], num_draft_tokens=4, max_new_tokens=30)
    assert torch.equal(out, expected)
    assert kind == "none" or any(1 < queries < keys for queries, keys in Calls.widths)
    assert_unchanged(before, snapshot(target))


def test_a_flash_draft_of_another_target() -> None:
    inputs, target = prompts(1), tiny("llama")
    out = specdec.generate(target, **inputs, drafter=flash(noise=0.02), num_draft_tokens=4, max_new_tokens=30)
    assert torch.equal(out, target.generate(**inputs, max_new_tokens=30))
    assert Calls.widths


@pytest.mark.parametrize("kind", ["ngram", "flash draft", "sdpa draft"])
@pytest.mark.parametrize("num_return_sequences", [1, 2])
def test_several_rows(kind: str, num_return_sequences: int) -> None:
    """No mask can say that rows differ, so they stay level, behind a mask of their padding."""
    target = flash()
    arguments = {**prompts(3), "max_new_tokens": 30, "num_return_sequences": num_return_sequences}
    arguments["do_sample"], arguments["top_k"] = num_return_sequences > 1, 1
    expected = target.generate(**arguments)
    assert torch.equal(expected, tiny("llama").generate(**arguments))
    drafters: dict[str, Any] = {
        "ngram": specdec.NgramDrafter(min_ngram=1),
        "flash draft": flash(noise=0.02),
        "sdpa draft": tiny("llama", noise=0.02),
    }
    out = specdec.generate(target, **arguments, drafter=drafters[kind], num_draft_tokens=4)
    assert torch.equal(out, expected)


def test_several_rows_of_a_flash_draft() -> None:
    """The draft's rows must be level, so the target commits what its slowest row accepts."""
    target, arguments = tiny("llama"), {**prompts(3), "max_new_tokens": 30}
    out = specdec.generate(
        target, **arguments, drafter=flash(noise=0.02), num_draft_tokens=4, return_dict_in_generate=True
    )
    assert torch.equal(out.sequences, target.generate(**arguments))
    assert out.speculation.accepted > 0
    assert len(set(map(len, out.speculation.trace.tokens))) == 1


class Fork(specdec.Drafter, specdec.DraftSession):
    """Proposes two alternatives for the next token."""

    def start(self, state: specdec.DecodeState) -> specdec.DraftSession:
        return self

    def propose(self, state: specdec.DecodeState, limit: Any) -> specdec.Proposal:
        tokens = torch.tensor([[5, 6]]).expand(state.batch_size, -1)
        parents = torch.full_like(tokens, -1)
        valid = torch.ones_like(tokens, dtype=torch.bool)
        return specdec.Proposal(tokens=tokens, parents=parents, valid=valid, depth=1, width=2)


@pytest.mark.parametrize("kind", ["flash", "sdpa"])
def test_of_a_tree_the_first_chain_is_verified(kind: str) -> None:
    """No mask can tell branches apart; sdpa, which takes one, verifies all of it."""
    target = flash() if kind == "flash" else tiny("llama")
    expected = tiny("llama").generate(**prompts(1), max_new_tokens=8)
    out = specdec.generate(target, **prompts(1), drafter=Fork(), num_draft_tokens=3, max_new_tokens=8)
    assert torch.equal(out, expected)
