"""ModelDrafter: vocabularies compared, caches kept in step, no forward too many."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from models import VOCAB_SIZE, prompts, tiny
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor

import specdec


def llama(vocab_size: int) -> LlamaForCausalLM:
    """A copy of the tiny llama with fewer or more token ids."""
    target = tiny("llama")
    config = LlamaConfig(**{**target.config.to_dict(), "vocab_size": vocab_size})
    model = LlamaForCausalLM(config).to(torch.float64).eval()
    state = target.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = torch.zeros(vocab_size, state[name].shape[1], dtype=torch.float64)
        rows[:VOCAB_SIZE] = state[name][:vocab_size]
        if name == "lm_head.weight":
            rows[VOCAB_SIZE:] = 9 * state[name][:1]  # tempting padding
        state[name] = rows
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE - 8, VOCAB_SIZE + 32])
def test_padded_vocabularies(vocab_size: int, do_sample: bool) -> None:
    """A draft with fewer or more (padding) ids than the target proposes only what the target can read."""
    target, inputs = tiny("llama"), prompts(2)
    arguments = {**inputs, "max_new_tokens": 30, "do_sample": do_sample, "bad_words_ids": [[5]]}
    out = specdec.generate(
        target, **arguments, drafter=llama(vocab_size), num_draft_tokens=3, return_dict_in_generate=True
    )
    assert out.sequences.max() < VOCAB_SIZE
    assert out.speculation.accepted > 0
    if not do_sample:
        assert torch.equal(out.sequences, target.generate(**arguments))


def test_a_draft_that_overflows_gets_a_typed_error() -> None:
    """NaN from the draft's last layers: no distribution to sample from, and no crash in an embedding."""
    broken = llama(VOCAB_SIZE)
    with torch.no_grad():
        broken.lm_head.weight.mul_(float("nan"))
    with pytest.raises(specdec.DrafterError, match="outside"):
        specdec.generate(
            tiny("llama"), **prompts(2), drafter=broken, num_draft_tokens=3, do_sample=True, max_new_tokens=9
        )


def test_forwards_a_round() -> None:
    """One draft forward a drafted token: the catch-up after full acceptance is part of the first."""
    target, inputs = tiny("llama"), prompts(1)
    for draft in (target, tiny("llama", noise=0.02)):
        out = specdec.generate(
            target, **inputs, drafter=draft, num_draft_tokens=4, max_new_tokens=41, return_dict_in_generate=True
        )
        assert out.speculation.draft_calls == out.speculation.drafted


def test_other_sizes_and_contents_are_refused() -> None:
    target = tiny("llama")
    config = LlamaConfig(**{**target.config.to_dict(), "vocab_size": 4096})
    other = LlamaForCausalLM(config).to(torch.float64)
    with pytest.raises(specdec.DraftMismatchError, match="96 token ids and the draft 4096"):
        specdec.generate(target, **prompts(1), drafter=other, max_new_tokens=3)


def test_the_size_is_compared_with_every_target() -> None:
    """A draft that was taken on trust for one target is not trusted with the next."""
    drafter = specdec.ModelDrafter(llama(VOCAB_SIZE))
    drafter.check(tiny("llama"))
    large, _, _ = specdec.bundled_pair()
    with pytest.raises(specdec.DraftMismatchError, match="4096"):
        drafter.check(large)


def test_tokenizers_are_compared_by_content() -> None:
    """Two tokenizers of one size are not the same tokenizer."""
    target, draft, tokenizer = specdec.bundled_pair()
    other = type(tokenizer).from_pretrained(specdec.bundled.bundled_dir() / "pair" / "target")
    other.add_tokens(["<new>"])
    with pytest.raises(specdec.DraftMismatchError, match="'<new>': id None in the target's, 4096"):
        specdec.ModelDrafter(draft, tokenizer=tokenizer, draft_tokenizer=other)
    with pytest.raises(specdec.DraftMismatchError, match="both"):
        specdec.ModelDrafter(draft, tokenizer=tokenizer)
    specdec.ModelDrafter(draft, tokenizer=tokenizer, draft_tokenizer=tokenizer).check(target)


def test_an_unproven_vocabulary_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    target = tiny("llama")
    drafter = specdec.ModelDrafter(llama(VOCAB_SIZE))
    with caplog.at_level(logging.WARNING, "specdec"):
        for _ in range(2):
            drafter.check(target)
        specdec.ModelDrafter(target).check(target)  # the target itself needs no proof
    assert len([r for r in caplog.records if "not compared" in r.message]) == 1


def test_an_attention_that_takes_no_mask_is_refused() -> None:
    model = LlamaForCausalLM(copy.deepcopy(tiny("llama").config))
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(specdec.UnsupportedModelError, match="sdpa"):
        specdec.generate(model, torch.tensor([[1, 2]]), max_new_tokens=2)
    with pytest.raises(specdec.UnsupportedModelError, match="sdpa"):
        specdec.ModelDrafter(model)


class EveryFourth(LogitsProcessor):
    """Every fourth new token is one of the last eight ids, and no other token is; has no answer for other texts."""

    def __init__(self, prompt_length: int) -> None:
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        new = input_ids[:, self.prompt_length :]
        high = torch.arange(new.shape[1] + 1) % 4 == 2
        assert torch.equal(new >= VOCAB_SIZE - 8, high[:-1].expand(new.shape)), "a forbidden text"
        allowed = (torch.arange(VOCAB_SIZE) >= VOCAB_SIZE - 8) == high[-1]
        return scores.masked_fill(~allowed, float("-inf"))


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_draft_that_lacks_what_a_constraint_allows(do_sample: bool) -> None:
    """Nothing is drafted where the allowed ids are none of the draft's; the constraint is asked about nothing else."""
    target, draft = tiny("llama"), llama(VOCAB_SIZE - 8)
    prompt = prompts(2)
    arguments = {**prompt, "logits_processor": [EveryFourth(prompt["input_ids"].shape[1])], "max_new_tokens": 20}
    out = specdec.generate(
        target, **arguments, do_sample=do_sample, drafter=draft, num_draft_tokens=4, return_dict_in_generate=True
    )
    assert out.speculation.accepted > 0
    if not do_sample:
        assert torch.equal(out.sequences, target.generate(**arguments))
