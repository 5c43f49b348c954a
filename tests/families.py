"""Tiny random models of every family of architecture that we say works, or say that we refuse.

Their greedy text uses many tokens, depends on more than the last one, and leaves no near-ties; a noisy copy of a
model agrees with it often, not always. `test_families.py` holds all of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import models
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

NEW_TOKENS = 48
_MELS, _FRAMES = 8, 32  # of Whisper's input
WINDOW = 8  # of sliding attention, and of the chunks of a scan
Kind = Literal["attention", "sliding", "moe", "recurrent", "encoder-decoder", "refused"]


@dataclass(frozen=True)
class Family:
    """How to draw a model: matrices at `width` (embeddings at `embedding`), a draft's weights off by `noise`.

    Those with attention that know no sdpa are float32: in float64 the eager mask of transformers is filled with
    float64's minimum, which is minus infinity in its float32 softmax, and a padded row comes out as NaN.
    """

    kind: Kind
    model_type: str
    config: Mapping[str, object]
    seed: int = 0
    noise: float = 0.05
    width: float = 0.3
    embedding: float = 1.0
    attention: str = "sdpa"
    dtype: torch.dtype = torch.float64
    note: str = ""


_LLAMA: dict[str, object] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_PLAIN = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
_HEADS = {**_LLAMA, "head_dim": 8}
_MIXED = {**_HEADS, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
_MIXED["num_hidden_layers"] = 4
_DELTA_NET = {  # Qwen3-Next and its kin
    **_HEADS,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA1 = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 3, "time_step_rank": 4}
_MAMBA2 = {  # as Bamba and its kin name them
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": WINDOW,
}
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
_ENCODER_DECODER: dict[str, object] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_start_token_id": 1,
}

ARCHITECTURES: dict[str, Family] = {
    # Full attention
    "llama": Family("attention", "llama", _LLAMA, noise=0.03),
    "qwen2": Family("attention", "qwen2", _LLAMA),
    "qwen3": Family("attention", "qwen3", _HEADS, seed=1),
    "phi3": Family("attention", "phi3", _LLAMA, seed=1),
    "gpt2": Family(
        "attention", "gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}, seed=1, noise=0.1
    ),
    "gpt_neox": Family("attention", "gpt_neox", _PLAIN, noise=0.07),
    "opt": Family("attention", "opt", {**_PLAIN, "ffn_dim": 64, "word_embed_proj_dim": 32}, noise=0.1, seed=4),
    "bloom": Family(
        "attention",
        "bloom",
        {"hidden_size": 32, "n_layer": 3, "n_head": 4},
        attention="eager",
        dtype=torch.float32,
        seed=3,
        noise=0.15,
        width=0.2,
    ),
    "falcon": Family("attention", "falcon", {**_PLAIN, "num_kv_heads": 2, "new_decoder_architecture": True}, noise=0.1),
    "falcon_alibi": Family(
        "attention",
        "falcon",
        {**_PLAIN, "alibi": True, "multi_query": False, "num_kv_heads": 4},
        noise=0.15,
        width=0.2,
        embedding=2.0,
    ),
    # Sliding windows, alone and mixed with full attention
    "mistral": Family("sliding", "mistral", {**_LLAMA, "sliding_window": WINDOW}),
    "gemma2": Family(
        "sliding",
        "gemma2",
        {**_MIXED, "query_pre_attn_scalar": 8},
        attention="eager",
        embedding=0.2,
        dtype=torch.float32,
        seed=1,
    ),
    "gemma3_text": Family("sliding", "gemma3_text", {**_MIXED, "query_pre_attn_scalar": 8}, embedding=0.2),
    "cohere2": Family("sliding", "cohere2", {**_MIXED, "logit_scale": 1.0}),
    "gpt_oss": Family("sliding", "gpt_oss", {**_MIXED, **_EXPERTS}, attention="eager", seed=1, noise=0.02),
    "qwen2_sliding": Family(
        "sliding",
        "qwen2",
        {**_LLAMA, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        seed=2,
    ),
    # Mixtures of experts, and latent attention
    "mixtral": Family("moe", "mixtral", {**_LLAMA, **_EXPERTS}),
    "qwen3_moe": Family(
        "moe", "qwen3_moe", {**_HEADS, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
    ),
    "deepseek_v3": Family(
        "moe",
        "deepseek_v3",
        {
            **_LLAMA,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    # Recurrent states, alone and mixed with attention
    "mamba": Family("recurrent", "mamba", _MAMBA1, attention="eager"),
    "falcon_mamba": Family("recurrent", "falcon_mamba", _MAMBA1, attention="eager", noise=0.03),
    "mamba2": Family(
        "recurrent",
        "mamba2",
        {
            "hidden_size": 32,
            "state_size": 8,
            "num_hidden_layers": 3,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": WINDOW,
        },
        attention="eager",
    ),
    "jamba": Family(
        "recurrent",
        "jamba",
        {
            **_LLAMA,
            "num_hidden_layers": 4,
            "attn_layer_period": 4,
            "attn_layer_offset": 2,
            "num_experts": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
        noise=0.03,
    ),
    "falcon_h1": Family("recurrent", "falcon_h1", {**_HEADS, **_MAMBA2, "mamba_d_ssm": 64}, seed=1),
    "bamba": Family("recurrent", "bamba", {**_LLAMA, **_MAMBA2, "attn_layer_indices": [1]}, noise=0.02),
    "zamba2": Family(
        "recurrent",
        "zamba2",
        {
            **_LLAMA,
            "num_key_value_heads": 4,
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "chunk_size": WINDOW,
            "adapter_rank": 4,
            "use_mem_rope": True,
        },
        width=0.15,
    ),
    "qwen3_next": Family(
        "recurrent",
        "qwen3_next",
        {
            **_DELTA_NET,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
        noise=0.03,
    ),
    "qwen3_5_text": Family("recurrent", "qwen3_5_text", _DELTA_NET, noise=0.02),
    "olmo_hybrid": Family("recurrent", "olmo_hybrid", {**_DELTA_NET, "linear_num_key_heads": 4}, noise=0.03),
    "granitemoehybrid": Family(
        "recurrent",
        "granitemoehybrid",
        {
            **_LLAMA,
            **_MAMBA2,
            **_EXPERTS,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "shared_intermediate_size": 32,
            "attention_multiplier": 0.35,
        },
        noise=0.03,
    ),
    "nemotron_h": Family(
        "recurrent",
        "nemotron_h",
        {
            **_HEADS,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention"],
            "num_hidden_layers": 5,
            "ssm_state_size": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "chunk_size": WINDOW,
            "n_routed_experts": 4,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 32,
        },
    ),
    "lfm2": Family(
        "recurrent",
        "lfm2",
        {
            **_LLAMA,
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "block_multiple_of": 8,
        },
        note="its state is a short convolution, which transformers can crop",
        seed=1,
    ),
    # Encoder and decoder
    "t5": Family(
        "encoder-decoder",
        "t5",
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 3,
            "num_heads": 4,
            "relative_attention_num_buckets": 16,
            "relative_attention_max_distance": 64,
            "decoder_start_token_id": 0,
        },
        seed=2,
        noise=0.15,
        width=0.15,
        embedding=2.0,
    ),
    "bart": Family(
        "encoder-decoder",
        "bart",
        {**_ENCODER_DECODER, "max_position_embeddings": 256, "forced_eos_token_id": None},
        noise=0.1,
        width=0.15,
    ),
    "whisper": Family(
        "encoder-decoder",
        "whisper",
        {
            **_ENCODER_DECODER,
            "num_mel_bins": _MELS,
            "max_source_positions": _FRAMES // 2,
            "max_target_positions": 256,
            "begin_suppress_tokens": None,
        },
        seed=9,
    ),
    # To be refused
    "recurrent_gemma": Family(
        "refused",
        "recurrent_gemma",
        {**_HEADS, "lru_width": 32, "attention_window_size": WINDOW},
        embedding=0.2,
        note="keeps its state on its modules",
    ),
    "rwkv": Family(
        "refused",
        "rwkv",
        {"hidden_size": 32, "num_hidden_layers": 3, "attention_hidden_size": 32, "intermediate_size": 64},
        attention="eager",
        note="its state is a list of tensors, not a cache",
    ),
    "xlstm": Family(
        "refused",
        "xlstm",
        {  # its cache rounds head sizes up to 64 in all, its layers do not
            "hidden_size": 64,
            "embedding_dim": 64,
            "qk_dim_factor": 1.0,
            "num_hidden_layers": 3,
            "num_blocks": 3,
            "num_heads": 4,
            "chunk_size": WINDOW,
        },
        attention="eager",
        dtype=torch.float32,
        note="its cache is a class of its own",
    ),
    "gpt_neo": Family(
        "refused",
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": WINDOW,
            "max_position_embeddings": 256,
        },
        attention="eager",
        note="counts its local window in slots of the cache",
    ),
}
_CLASSES = {"t5": AutoModelForSeq2SeqLM, "bart": AutoModelForSeq2SeqLM, "whisper": AutoModelForSpeechSeq2Seq}


def names(*kinds: Kind) -> list[str]:
    """The families of these kinds, of all kinds when none is named."""
    return [name for name, family in ARCHITECTURES.items() if not kinds or family.kind in kinds]


@cache
def family(name: str, noise: float = 0.0, seed: int = 0) -> PreTrainedModel:
    """A random model; noise > 0 (`ARCHITECTURES[name].noise` suits) gives a draft for the noiseless one."""
    spec = ARCHITECTURES[name]
    arguments: dict[str, Any] = {**models._COMMON, **spec.config}
    config = CONFIG_MAPPING[spec.model_type](**arguments)
    config._experts_implementation = "eager"  # the grouped product knows no float64
    state = torch.get_rng_state()
    torch.manual_seed(spec.seed + seed)
    factory = _CLASSES.get(name, AutoModelForCausalLM)
    model: PreTrainedModel = factory.from_config(config, attn_implementation=spec.attention).to(spec.dtype).eval()
    torch.set_rng_state(state)
    _draw(model, spec, noise, spec.seed + seed)
    model.generation_config.pad_token_id = 0
    return model.to(models.DEVICE)


def _draw(model: PreTrainedModel, spec: Family, noise: float, seed: int) -> None:
    """Draw every matrix and bias anew; noise comes from a stream of its own, so that noise = 0 is the target."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    if head.weight is model.get_input_embeddings().weight:  # T5 ties them whatever its configuration says
        head.weight = nn.Parameter(torch.empty_like(head.weight))  # to be drawn
    generator = torch.Generator().manual_seed(seed)
    other = torch.Generator().manual_seed(seed + 1)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            change = torch.randn(parameter.shape, generator=other, dtype=parameter.dtype)
            data = parameter.data
            if name == "A_log":  # decay: some heads forget within a few tokens, some hardly
                data.copy_((0.05 + 0.95 * drawn.sigmoid()).log())
                continue
            if data.dim() == 1 and not name.endswith(("bias", "sinks")):
                continue  # norms
            if (module is head and name == "weight") or name == "sinks":
                width = 1.0
            elif isinstance(module, nn.Embedding):
                width = spec.embedding
            elif isinstance(module, nn.Conv1d):
                width = 0.5
            else:
                width = spec.width
            data.copy_(width * (drawn + noise * change))


def inputs(name: str, batch_size: int, seed: int = 0) -> dict[str, Tensor]:
    """What `generate` takes: left-padded prompts, or what the encoder reads (ragged, padded on the right)."""
    spec = ARCHITECTURES[name]
    if name == "whisper":
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(batch_size, _MELS, _FRAMES, generator=generator, dtype=spec.dtype)
        return {"input_features": features.to(models.DEVICE)}
    prompts = models.prompts(batch_size, seed)
    if spec.kind == "encoder-decoder":
        return {key: value.flip(1) for key, value in prompts.items()}
    return prompts
