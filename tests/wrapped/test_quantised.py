"""Models that transformers quantises on loading.

Weight-only methods run the same numbers whatever else is in the window, so equality is exact. Where activations are
quantised too (torchao's dynamic int8, bitsandbytes' LLM.int8), a rounding difference of 1e-7 may turn into one of a
whole step: transformers' own output then differs between batch sizes, and ours from it. Such a model is tested as a
draft, whose numbers do not decide the output.
"""

from __future__ import annotations

import importlib
import pathlib
from typing import Any

import pytest
import torch
from models import DEVICE, prompts, tiny
from same import assert_unchanged, assert_works, snapshot
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

import specdec


def _torchao(name: str) -> Any:
    pytest.importorskip("torchao")
    return TorchAoConfig(getattr(importlib.import_module("torchao.quantization"), name)())


def _fp8(name: str) -> Any:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("products of fp8 numbers need a GPU of capability 8.9")
    return _torchao(name)


def _bitsandbytes(**settings: Any) -> Any:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(**settings)


# Both take float32 activations here, so that near-ties are rare.
WEIGHTS_ONLY = {
    "torchao int8": lambda: _torchao("Int8WeightOnlyConfig"),
    "torchao fp8": lambda: _torchao("Float8WeightOnlyConfig"),
    "bitsandbytes 4 bit": lambda: _bitsandbytes(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
}
ACTIVATIONS_TOO = {
    "torchao int8": lambda: _torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao fp8": lambda: _fp8("Float8DynamicActivationFloat8WeightConfig"),
    "bitsandbytes 8 bit": lambda: _bitsandbytes(load_in_8bit=True),
}


def quantised(settings: Any, path: pathlib.Path, noise: float = 0.0) -> Any:
    tiny("llama", noise=noise, dtype=torch.float32, hidden_size=192, intermediate_size=256).save_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(
        path, quantization_config=settings, dtype=torch.float32, device_map=DEVICE
    ).eval()


@pytest.mark.parametrize("method", WEIGHTS_ONLY)
def test_quantised_weights(method: str, tmp_path: pathlib.Path) -> None:
    target = quantised(WEIGHTS_ONLY[method](), tmp_path / "target")
    assert_works(target, quantised(WEIGHTS_ONLY[method](), tmp_path / "draft", noise=0.02))


@pytest.mark.parametrize("method", ACTIVATIONS_TOO)
def test_quantised_activations_draft(method: str, tmp_path: pathlib.Path) -> None:
    """A quantised copy drafts for its own full-precision target."""
    draft, inputs = quantised(ACTIVATIONS_TOO[method](), tmp_path), prompts(3)
    target = tiny("llama", dtype=torch.float32, hidden_size=192, intermediate_size=256)
    draft.generate(**inputs, max_new_tokens=2)  # bitsandbytes prepares weights at the first forward
    before = snapshot(draft)
    out = specdec.generate(
        target, **inputs, drafter=draft, num_draft_tokens=4, max_new_tokens=24, return_dict_in_generate=True
    )
    assert torch.equal(out.sequences, target.generate(**inputs, max_new_tokens=24))
    assert out.speculation.accepted
    assert_unchanged(before, snapshot(draft))
