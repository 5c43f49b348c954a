"""Tiny random models of real architectures whose output is worth comparing.

Default tiny models collapse to one token: embeddings are untied and every matrix is drawn wide, so that
greedy text uses many tokens and a perturbed copy of a target is accepted neither always nor never.
"""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation import logits_process as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB_SIZE = 96
DEVICE = os.environ.get("SPECDEC_TEST_DEVICE", "cpu")  # of models and prompts; tests/cuda runs others' tests on a GPU
_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
ARCHITECTURES: dict[str, dict[str, object]] = {
    "llama": _LLAMA_LIKE,
    "qwen3": {**_LLAMA_LIKE, "head_dim": 8},
    "phi3": _LLAMA_LIKE,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 32,
    },
}


def _penalty_knows_padding() -> bool:
    try:
        hf.RepetitionPenaltyLogitsProcessor(2.0, prompt_ignore_length=torch.tensor([0, 1]))
    except ValueError:  # transformers 5.17 takes one number for all rows, and counts padding as text
        return False
    return True


PENALTY_KNOWS_PADDING = _penalty_knows_padding()


@cache
def tiny(
    architecture: str,
    seed: int = 0,
    noise: float = 0.0,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float64,
    **changes: object,
) -> PreTrainedModel:
    """A random model; noise > 0 gives a draft that often, not always, agrees with the noiseless one."""
    config = CONFIG_MAPPING[architecture](**{**_COMMON, **ARCHITECTURES[architecture], **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                wide = 1.0 if "embed" in name or "lm_head" in name or "wte" in name else 0.3
                parameter.copy_(wide * torch.randn(parameter.shape, generator=generator, dtype=dtype))
                # Noise relative to the weight, drawn from a stream of its own so that noise=0 is the target.
                other = torch.Generator().manual_seed(seed + 1)
                parameter.add_(noise * wide * torch.randn(parameter.shape, generator=other, dtype=dtype))
    model.generation_config.pad_token_id = 0
    return model.to(DEVICE)


def prompts(batch_size: int, seed: int = 0, length: int = 11) -> dict[str, Tensor]:
    """Left-padded ragged prompts; row 0 has no padding."""
    ids = torch.randint(2, VOCAB_SIZE, (batch_size, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(1, batch_size):
        mask[row, : 2 * row + 1] = 0
    return {"input_ids": (ids * mask).to(DEVICE), "attention_mask": mask.to(DEVICE)}
