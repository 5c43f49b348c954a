"""Greedy decoding in float64 equals target.generate(), token for token."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, prompts, tiny
from torch import Tensor
from transformers import PreTrainedModel

import specdec

NEW_TOKENS = 48


@cache
def reference(architecture: str, batch_size: int, attention: str = "sdpa") -> Tensor:
    """HF's own output; asserts that it is worth comparing and that no step is a near-tie."""
    target, inputs = tiny(architecture, attention=attention), prompts(batch_size)
    output = target.generate(
        **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    top = torch.stack(output.logits, 1).topk(2).values
    assert (top[..., 0] - top[..., 1]).min() > 1e-4, "a near-tie: choose another seed"
    new = output.sequences[:, -NEW_TOKENS:]
    assert all(len(set(row.tolist())) >= 10 for row in new), "a degenerate model proves nothing"
    return output.sequences


def drafter(kind: str, architecture: str, target: PreTrainedModel) -> specdec.Drafter:
    if kind == "ngram":
        return specdec.NgramDrafter(min_ngram=1)
    draft = target if kind == "self" else tiny(architecture, noise=0.02)
    return specdec.ModelDrafter(draft)


# transformers' own eager attention gives NaN in float64 for left-padded rows, so eager is compared at batch 1.
@pytest.mark.parametrize(("batch_size", "attention"), [(1, "sdpa"), (3, "sdpa"), (1, "eager")])
@pytest.mark.parametrize("kind", ["model", "ngram", "self"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_generate(architecture: str, kind: str, batch_size: int, attention: str) -> None:
    target = tiny(architecture, attention=attention)
    inputs = prompts(batch_size)
    out = specdec.generate(
        target,
        **inputs,
        drafter=drafter(kind, architecture, target),
        num_draft_tokens=4,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert torch.equal(out.sequences, reference(architecture, batch_size, attention))
    stats = out.speculation
    assert stats.host_syncs == stats.rounds + 1
    if kind == "self":
        assert stats.acceptance_rate == 1.0
        assert stats.rounds == -(-(NEW_TOKENS - 1) // 5)
    else:  # both outcomes of verification were exercised
        assert 0 < stats.accepted < stats.drafted
    if kind == "model":
        assert 0.05 < stats.acceptance_rate < 0.95
        assert stats.accepted_per_depth[-1] > 0


@pytest.mark.parametrize("batch_size", [1, 3])
def test_auto_number_of_draft_tokens(batch_size: int) -> None:
    """Changing the number of draft tokens from round to round, down to none, changes no token."""
    target, inputs = tiny("llama"), prompts(batch_size)
    out = specdec.generate(
        target, **inputs, drafter=tiny("llama", noise=0.02), max_new_tokens=NEW_TOKENS, do_sample=False
    )
    assert torch.equal(out, reference("llama", batch_size))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_eos_inside_an_accepted_block(batch_size: int) -> None:
    """Rows stop at EOS even when it was accepted in the middle of a draft; finished rows are padded."""
    target, inputs = tiny("llama"), prompts(batch_size)
    free = reference("llama", batch_size)
    eos = [int(free[0, -30]), int(free[-1, -20])]
    arguments = {**inputs, "max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": eos, "pad_token_id": 0}
    expected = target.generate(**arguments)
    out = specdec.generate(target, **arguments, drafter=target, num_draft_tokens=7)
    assert expected.shape[1] < free.shape[1]
    if batch_size > 1:
        assert (expected[:, -1] == 0).any()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("max_new_tokens", range(1, 8))
def test_never_overshoots(max_new_tokens: int) -> None:
    """A draft longer than the room that is left neither overshoots nor is verified past the end."""
    target, inputs = tiny("llama"), prompts(3)
    arguments = {**inputs, "max_new_tokens": max_new_tokens, "do_sample": False}
    out = specdec.generate(target, **arguments, drafter=target, num_draft_tokens=5)
    assert torch.equal(out, target.generate(**arguments))


def test_up_to_the_last_position() -> None:
    """Learned positions end at 256: prompt and output may fill them to the last one."""
    target, inputs = tiny("gpt2"), prompts(2, length=200)
    arguments = {**inputs, "max_new_tokens": 56, "do_sample": False}
    out = specdec.generate(target, **arguments, drafter=tiny("gpt2", noise=0.02), num_draft_tokens=5)
    assert torch.equal(out, target.generate(**arguments))


def test_a_draft_with_a_shorter_context_stops_drafting() -> None:
    """Past its own context the draft falls silent; the target goes on alone."""
    target = tiny("llama")
    config = type(target.config)(**{**target.config.to_dict(), "max_position_embeddings": 30})
    draft = type(target)(config).to(target.device, torch.float64).eval()
    draft.load_state_dict(target.state_dict())
    inputs = prompts(2)
    arguments = {**inputs, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    positions: list[int] = []

    def note(_: Any, __: Any, given: dict[str, Tensor]) -> None:
        positions.append(int(given["position_ids"].max()))

    draft.register_forward_pre_hook(note, with_kwargs=True)
    out = specdec.generate(target, **arguments, drafter=draft, num_draft_tokens=4, return_dict_in_generate=True)
    assert torch.equal(out.sequences, target.generate(**arguments))
    assert 25 < max(positions) < 30
    assert 0 < out.speculation.drafted < 4 * out.speculation.row_rounds
