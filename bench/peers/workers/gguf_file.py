"""A Llama checkpoint of transformers -> one GGUF file, with the `gguf` package. Runs in llama.cpp's environment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(model: Path, tokenizer: Path, out: Path, dtype: str) -> None:
    """Writes `out`.

    Args:
        model: folder with config.json and model.safetensors of a Llama.
        tokenizer: folder with a byte-level BPE tokenizer.json.
        dtype: of the matrices, "bfloat16" or "float32"; norms are float32, as llama.cpp wants them.
    """
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama":
        raise ValueError(f"{model} is a {config['model_type']}; only Llamas are converted here")
    writer = gguf.GGUFWriter(out, "llama")
    _settings(writer, config)
    _vocabulary(writer, config, json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8")))
    kind = {"bfloat16": gguf.GGMLQuantizationType.BF16, "float32": gguf.GGMLQuantizationType.F32}[dtype]
    for name, values in _tensors(model / "model.safetensors"):
        if name.endswith("q_proj.weight"):
            values = _halves_to_pairs(values, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            values = _halves_to_pairs(values, config["num_key_value_heads"])
        if values.ndim == 1 or kind is gguf.GGMLQuantizationType.F32:
            writer.add_tensor(_name(name), values)
        else:
            writer.add_tensor(_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _settings(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": "default"}
    if rope["rope_type"] != "default":
        raise ValueError(f"rope type {rope['rope_type']!r} is not converted here")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _vocabulary(writer: Any, config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    bpe = tokenizer["model"]
    if bpe["type"] != "BPE":
        raise ValueError(f"a {bpe['type']} tokenizer is not converted here")
    tokens = [f"<unused{i}>" for i in range(config["vocab_size"])]
    kinds = [int(gguf.TokenType.UNUSED)] * len(tokens)
    for token, i in bpe["vocab"].items():
        tokens[i], kinds[i] = token, int(gguf.TokenType.NORMAL)
    for added in tokenizer.get("added_tokens", ()):
        tokens[added["id"]], kinds[added["id"]] = added["content"], int(gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def _name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{_LAYER_NAMES[part]}.weight"


def _halves_to_pairs(values: Any, heads: int) -> Any:
    """Rows of a head: transformers turns the i-th with the i-th of the other half, llama.cpp with the next one."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _tensors(path: Path) -> Iterator[tuple[str, Any]]:
    """Names and float32 arrays of a safetensors file; numpy has no bfloat16."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    header.pop("__metadata__", None)
    for name, about in header.items():
        begin, end = about["data_offsets"]
        raw = data[begin:end]
        if about["dtype"] == "BF16":
            values = (numpy.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        elif about["dtype"] in ("F32", "F16"):
            values = numpy.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[about["dtype"]]).astype("<f4")
        else:
            raise ValueError(f"{path}: {name} is {about['dtype']}, which is not converted here")
        yield name, values.reshape(about["shape"])
