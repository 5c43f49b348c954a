"""The draft in drafts/other, whose tokenizer is not the bundled target's."""

from __future__ import annotations

import pathlib

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import specdec

OTHER = pathlib.Path(__file__).parents[2] / "drafts" / "other"


@pytest.mark.skipif(not OTHER.is_dir(), reason="drafts/ is in the checkout only, not in the wheel")
@pytest.mark.parametrize("method", ["text", "intersection"])
def test_it_drafts_for_the_bundled_target(method: str) -> None:
    target, _, tokenizer = specdec.bundled_pair(torch.float32)
    draft = LlamaForCausalLM.from_pretrained(OTHER, dtype=torch.float32).eval()
    other = AutoTokenizer.from_pretrained(OTHER)
    assert other("x").input_ids[0] == other.bos_token_id, "it puts <s> before a text, as the target's does not"
    drafter = specdec.CrossTokenizerDrafter(
        draft,
        target_tokenizer=tokenizer,
        draft_tokenizer=other,
        method=method,  # type: ignore[arg-type]
    )
    assert 0.2 < drafter.coverage < 0.5
    inputs = tokenizer(specdec.bundled_prompts()[0]["prompt"], return_tensors="pt")
    out = specdec.generate(
        target,
        **inputs,
        drafter=drafter,
        num_draft_tokens=4,
        max_new_tokens=32,
        do_sample=False,
        return_dict_in_generate=True,
    )
    # A wrong translation accepts next to nothing; how much more it is depends on the draft (drafts/README.md).
    assert out.speculation.acceptance_rate > 0.2
