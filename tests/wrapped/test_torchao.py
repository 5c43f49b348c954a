"""torchao's weight-only int8 and int4, as targets and as drafts, on the CPU.

Weight-only methods compute the same whatever else is in a forward, so equality with the quantised model's own
generate() is exact. The law of sampled calls is proven elsewhere, for any logits; here there is one text to draw.
"""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import pytest
import torch
from models import DEVICE, prompts, tiny
from same import assert_works
from transformers import AutoModelForCausalLM, TorchAoConfig

import specdec

quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed: pip install torchao")

SIZES = {"hidden_size": 128, "intermediate_size": 256}
NEW = 20


def _int4() -> Any:
    """What torchao 0.18 computes on a CPU; its Int4WeightOnlyConfig needs a GPU, or kernels of another package."""
    return quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=quantization.PerGroup(32))


METHODS = {"int8": lambda: quantization.Int8WeightOnlyConfig(), "int4": _int4}
LONG_INT4 = ["int8", pytest.param("int4", marks=pytest.mark.long)]


def loaded(method: str, path: pathlib.Path, noise: float = 0.0) -> Any:
    """Quantised by transformers as it loads."""
    tiny("llama", noise=noise, dtype=torch.float32, **SIZES).save_pretrained(path)
    how = {"quantization_config": TorchAoConfig(METHODS[method]()), "dtype": torch.float32, "device_map": DEVICE}
    return AutoModelForCausalLM.from_pretrained(path, **how).eval()


def in_place(method: str, noise: float = 0.0) -> Any:
    """Quantised by torchao itself, after loading."""
    model = copy.deepcopy(tiny("llama", noise=noise, dtype=torch.float32, **SIZES))
    quantization.quantize_(model, METHODS[method]())
    return model


@pytest.mark.parametrize("method", LONG_INT4)
def test_as_loaded_by_transformers(method: str, tmp_path: pathlib.Path) -> None:
    assert_works(loaded(method, tmp_path / "target"), loaded(method, tmp_path / "draft", noise=0.02))


@pytest.mark.parametrize("method", [pytest.param("int8", marks=pytest.mark.long), "int4"])
def test_as_quantised_in_place(method: str) -> None:
    assert_works(in_place(method), in_place(method, noise=0.02))


@pytest.mark.parametrize("method", LONG_INT4)
def test_every_way_to_draft(method: str) -> None:
    """A tree, a layer of its own, and the quantised copy of a target as its draft."""
    whole, target = tiny("llama", dtype=torch.float32, **SIZES), in_place(method)
    for model, drafter in (
        (target, specdec.TreeDrafter(in_place(method, noise=0.02), num_nodes=8)),
        (target, specdec.EarlyExitDrafter(2)),
        (whole, specdec.ModelDrafter(target)),
    ):
        expected = model.generate(**prompts(3), max_new_tokens=NEW)
        out = specdec.generate(
            model,
            **prompts(3),
            drafter=drafter,
            num_draft_tokens=4,
            max_new_tokens=NEW,
            return_dict_in_generate=True,
        )
        assert torch.equal(out.sequences, expected)
        assert out.speculation.accepted


@pytest.mark.parametrize("method", LONG_INT4)
def test_sampled_tokens_are_likely_ones(method: str) -> None:
    """Of top_k=1 there is one text to draw, which rejection sampling must draw, whatever is drafted."""
    target, draft = in_place(method), in_place(method, noise=0.05)
    expected = target.generate(**prompts(3), max_new_tokens=NEW)
    for rule in ("rejection", "block"):
        out = specdec.generate(
            target,
            **prompts(3),
            drafter=draft,
            num_draft_tokens=4,
            rule=rule,
            do_sample=True,
            top_k=1,
            max_new_tokens=NEW,
        )
        assert torch.equal(out, expected)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_compiled_steps_are_refused_by_name(role: str) -> None:
    target, draft = tiny("llama", dtype=torch.float32, **SIZES), in_place("int8", noise=0.02)
    if role == "target":
        target, draft = draft, target
    reason = specdec.generate(
        target,
        **prompts(1),
        drafter=draft,
        num_draft_tokens=4,
        max_new_tokens=NEW,
        compile="auto",
        return_dict_in_generate=True,
    ).speculation.graphs.roles[role]
    assert "quantised weights" in reason
