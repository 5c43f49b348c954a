"""Windows of every width about the one from which keys pass by a ring instead of being written into it."""

from __future__ import annotations

import copy

import families
import pytest
import torch
from models import VOCAB_SIZE
from transformers import AutoModelForCausalLM, PreTrainedModel

import specdec
from specdec.cache.sliding import SLACK


def deep_mistral(window: int, width: int) -> PreTrainedModel:
    """So many layers that the last token's logits depend on what the first one of its part has seen."""
    config = copy.deepcopy(families.family("mistral").config)
    config.num_hidden_layers = 2 + width // (window - 1)
    config.initializer_range = 0.3
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(torch.float64).eval()
    return model


@pytest.mark.parametrize("width", range(SLACK - 1, SLACK + 5))
def test_a_prompt_in_parts(width: int) -> None:
    """The logits behind the prompt are those of a plain forward over all of it."""
    model = deep_mistral(families.WINDOW, width)
    length = 3 * width + 1
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
        expected = model(ids).logits[:, -1]
    assert (out.logits[0] - expected).abs().max() < 1e-6 * expected.std()
