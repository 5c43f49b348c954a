"""Rows that end early leave the batch: those that stay keep their own coins, prompts and lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equality.coupling import GumbelNoise
from lossless.test_matrix_sampled import NEW_TOKENS, ROWS, check, sampled
from models import prompts, tiny
from torch import Tensor
from transformers import LogitsProcessorList

import specdec

TARGET, DRAFT = tiny("llama"), tiny("llama", noise=0.02)
DRAFTERS = {
    "model": specdec.ModelDrafter(DRAFT),
    "tree": specdec.TreeDrafter(DRAFT, num_nodes=6),
    "n-gram": specdec.NgramDrafter(min_ngram=1),
}


class NoiseOfAll(GumbelNoise):
    """Depends on every token that it is shown, the prompt's first as well."""

    def _noise(self, tokens: list[int], size: int) -> Tensor:
        return super()._noise([*tokens, sum(tokens)], size)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_what_a_processor_is_shown(drafter: str) -> None:
    """Noise that is a function of the row's whole text; the first row leaves first."""
    options: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, **prompts(4)}
    options |= {"logits_processor": LogitsProcessorList([NoiseOfAll()])}
    free = TARGET.generate(**options)
    prompt_length = options["input_ids"].shape[1]
    # Ends of the first two rows: who stays is in another place than before.
    options["eos_token_id"] = [int(free[0, prompt_length + 9]), int(free[1, prompt_length + 14])]
    expected = TARGET.generate(**options)
    lengths = (expected[:, prompt_length:] != 0).sum(1)
    assert lengths[0] < lengths.max()
    assert torch.equal(specdec.generate(TARGET, **options, drafter=DRAFTERS[drafter], num_draft_tokens=4), expected)


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_coins_are_a_requests_own(rule: str) -> None:
    """Each row is replayed by itself; its coins' names have the row's index in the batch as it was given."""
    free = sampled("gpt2", "model", rule)
    first, others = free[0, -NEW_TOKENS:-6].tolist(), free[1:, -NEW_TOKENS:-3].flatten().tolist()
    eos = next(token for token in first if token not in others)  # the first row leaves first
    assert check("gpt2", "model", rule, eos=eos).new_tokens < ROWS * NEW_TOKENS
