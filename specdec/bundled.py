"""The bundled target and draft: small Llamas that write Python, for trying things out offline."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from specdec.errors import SpecdecError


def bundled_dir() -> pathlib.Path:
    """Where the pair lies: inside the installed package, or in the checkout that the package runs from."""
    here = pathlib.Path(__file__).resolve().parent
    for place in (here / "_bundled", here.parent / "drafts"):
        if (place / "pair" / "target" / "model.safetensors").is_file():
            return place
    raise SpecdecError(
        f"the bundled pair is missing beside {here}: reinstall specdec-hf, or make it with drafts/recipe."
    )


def bundled_pair(
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads (target, draft, tokenizer) on the CPU.

    Args:
        dtype: of both models; the weights are stored in bfloat16.

    Example:
        >>> target, draft, tokenizer = specdec.bundled_pair()  # doctest: +SKIP
    """
    pair = bundled_dir() / "pair"
    options: dict[str, Any] = {"trust_remote_code": False}
    target = AutoModelForCausalLM.from_pretrained(pair / "target", dtype=dtype, **options).eval()
    draft = AutoModelForCausalLM.from_pretrained(pair / "draft", dtype=dtype, **options).eval()
    return target, draft, AutoTokenizer.from_pretrained(pair / "target", **options)


def bundled_prompts() -> list[dict[str, str]]:
    """Held-out prompts, which no training run of the pair has seen: dicts with "name" and "prompt"."""
    with open(bundled_dir() / "prompts.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
