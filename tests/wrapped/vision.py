"""Tiny random vision-language models and prompts with images for them, in float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from models import VOCAB_SIZE
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

IMAGE, VIDEO, START, END = 90, 91, 92, 93
_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_PATCHES = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 2}
_QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "vision_use_head": False,
}


def _mrope(*sections: int) -> dict[str, Any]:
    return {**_TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}}


CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        **_QWEN_TOKENS,
        "text_config": _mrope(1, 1, 2),
        "vision_config": {**_PATCHES, "depth": 1, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
    },
    "qwen2_5_vl": {
        **_QWEN_TOKENS,
        "text_config": _mrope(1, 1, 2),
        "vision_config": {
            **_PATCHES, "depth": 1, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32,
            "window_size": 16, "fullatt_block_indexes": [0],
        },
    },
    "qwen3_vl": {
        **_QWEN_TOKENS,
        "text_config": _mrope(2, 1, 1),
        "vision_config": {
            **_PATCHES, "depth": 2, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
    },
    "llava": {
        "image_token_index": IMAGE,
        "vision_feature_layer": -1,
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": _SIGLIP,
        "vision_feature_select_strategy": "full",
    },
    "gemma3": {
        "image_token_id": IMAGE,
        "mm_tokens_per_image": 4,
        "text_config": {**_TEXT, "layer_types": ["full_attention"] * 2},
        "vision_config": _SIGLIP,
    },
    "paligemma": {
        "image_token_id": IMAGE,
        "projection_dim": 32,
        "text_config": {**_TEXT, "model_type": "gemma"},
        "vision_config": {**_SIGLIP, "projection_dim": 32},
    },
}  # fmt: skip


@cache
def tiny_vision(architecture: str, seed: int = 0) -> PreTrainedModel:
    """A random model whose text depends on the image."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[architecture](**CONFIGS[architecture], tie_word_embeddings=False)
    model = AutoModelForImageTextToText.from_config(config).to(torch.float64).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                wide = 1.0 if "embed_tokens" in name or "lm_head" in name else 0.3
                parameter.copy_(wide * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    model.generation_config.pad_token_id = 0
    return model


def with_images(architecture: str, batch_size: int, seed: int = 0) -> dict[str, Tensor]:
    """Left-padded ragged prompts of up to three rows, an image in each, as the model's processor makes them."""
    generator = torch.Generator().manual_seed(seed)
    qwen = architecture.startswith("qwen")
    # Patches of Qwen's images, which merges four to a token; the others' images have four tokens each.
    grids = [(1, 4, 4), (1, 2, 4), (1, 4, 2)] if qwen else [(1, 4, 4)] * 3
    rows, kinds = [], []
    for row, (time, height, width) in enumerate(grids):
        num_tokens = time * height * width // 4
        before, after = (torch.randint(2, 80, (n,), generator=generator).tolist() for n in (4 - row, 7 - 2 * row))
        rows.append([*before, START, *[IMAGE] * num_tokens, END, *after])
        kinds.append([*[0] * (len(before) + 1), *[1] * num_tokens, *[0] * (1 + len(after))])
    ids, types = _left_padded(rows, 0), _left_padded(kinds, 0)
    mask = _left_padded([[1] * len(row) for row in rows], 0)
    out = {"input_ids": ids, "attention_mask": mask}
    if qwen:
        patches = [t * h * w for t, h, w in grids]
        pixels = torch.randn(sum(patches), 3 * 2 * 4 * 4, generator=generator, dtype=torch.float64)
        out |= {"mm_token_type_ids": types, "pixel_values": pixels[: sum(patches[:batch_size])]}
        out["image_grid_thw"] = torch.tensor(grids)[:batch_size]
    else:
        out["pixel_values"] = torch.randn(3, 3, 8, 8, generator=generator, dtype=torch.float64)[:batch_size]
        if architecture == "gemma3":
            out["token_type_ids"] = types
        if architecture == "paligemma":
            out["token_type_ids"] = torch.zeros_like(types)  # all prefix
    return {name: value if "pixel" in name or "grid" in name else value[:batch_size] for name, value in out.items()}


def _left_padded(rows: list[list[int]], pad: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[pad] * (width - len(row)) + row for row in rows])
