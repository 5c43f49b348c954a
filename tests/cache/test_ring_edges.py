"""Windows of every width about the one from which keys pass by a ring instead of being written into it."""

from __future__ import annotations

import families
import pytest
import torch
from models import VOCAB_SIZE

import specdec
from specdec.cache.sliding import SLACK


@pytest.mark.parametrize("width", range(SLACK - 1, SLACK + 5))
def test_a_prompt_in_parts(width: int) -> None:
    """The logits behind the prompt are those of a plain forward over all of it."""
    model = families.family("mistral")
    length = 3 * width + 1  # the last part is a whole one, and three layers reach back to where it begins
    ids = torch.randint(2, VOCAB_SIZE, (1, length), generator=torch.Generator().manual_seed(width))
    out = specdec.generate(
        model,
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=1,
        do_sample=False,
        prefill_chunk_size=width,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with torch.no_grad():
        expected = model(ids).logits[:, -1].float()
    assert (out.logits[0] - expected).abs().max() < 1e-5 * expected.std()
