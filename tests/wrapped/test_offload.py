"""Models under accelerate's hooks: weights on "meta" outside their forward, the execution device on the hook."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_submodules
from models import DEVICE, prompts, tiny
from same import assert_works
from transformers import PreTrainedModel

import specdec
from specdec import probe as probing
from specdec.target import ModelRunner, input_device

Place = Callable[[PreTrainedModel, pathlib.Path], object]
HERE = torch.device(DEVICE)


def _dispatch(model: PreTrainedModel, path: pathlib.Path) -> None:
    """As from_pretrained(device_map=...) with some of it on disk, the embedding among that."""
    device_map = dict.fromkeys(["model.norm", "model.rotary_emb", "lm_head", "model.layers.1"], DEVICE)
    device_map |= dict.fromkeys(["model.embed_tokens", "model.layers.0", "model.layers.2"], "disk")
    accelerate.dispatch_model(model, device_map, main_device=DEVICE, offload_dir=str(path))


def _chained(model: PreTrainedModel, _: pathlib.Path) -> None:
    """Several hooks on one module."""
    accelerate.cpu_offload(model, execution_device=HERE)
    add_hook_to_module(model, ModelHook(), append=True)
    add_hook_to_module(model.get_input_embeddings(), ModelHook(), append=True)


WAYS: dict[str, Place] = {
    "cpu": lambda model, _: accelerate.cpu_offload(model, execution_device=HERE),
    "cpu, buffers too": lambda model, _: accelerate.cpu_offload(model, execution_device=HERE, offload_buffers=True),
    "disk": lambda model, path: accelerate.disk_offload(model, str(path), execution_device=HERE),
    "device map": _dispatch,
    "chained hooks": _chained,
    "hook without offload": lambda model, _: add_hook_to_module(model, AlignDevicesHook(HERE)),
    "whole model": lambda model, _: accelerate.cpu_offload_with_hook(model, execution_device=HERE),
}


def hooked(way: str, path: pathlib.Path, noise: float = 0.0) -> PreTrainedModel:
    model = copy.deepcopy(tiny("llama", noise=noise))
    path.mkdir(exist_ok=True)
    WAYS[way](model, path)
    return model


@pytest.mark.parametrize("way", WAYS)
def test_offloaded_models(way: str, tmp_path: pathlib.Path) -> None:
    target, draft = hooked(way, tmp_path / "target"), hooked(way, tmp_path / "draft", noise=0.02)
    assert input_device(target) == HERE
    assert probing.relative_error(ModelRunner(target)) < 1e-9  # the probe runs on them, whoever passed it before
    assert_works(target, draft)


def test_the_execution_device_of_the_embedding_comes_first() -> None:
    """Layers may be spread, so the model's own hook says less; without a hook the weights say it."""
    model = copy.deepcopy(tiny("llama"))
    assert input_device(model) == HERE
    add_hook_to_module(model, AlignDevicesHook(execution_device="meta"))
    assert input_device(model) == torch.device("meta")
    add_hook_to_module(model.get_input_embeddings(), AlignDevicesHook(execution_device=DEVICE))
    assert input_device(model) == HERE


def test_an_offloaded_model_can_be_trained_and_taken_back(tmp_path: pathlib.Path) -> None:
    """What inference mode leaves on "meta" is replaced by accelerate at the next forward."""
    model, inputs = hooked("cpu", tmp_path), prompts(3)
    specdec.generate(model, **inputs, drafter=specdec.NgramDrafter(), max_new_tokens=8)
    assert model(**inputs, labels=inputs["input_ids"]).loss.requires_grad
    specdec.generate(model, **inputs, drafter=specdec.NgramDrafter(), max_new_tokens=8)
    remove_hook_from_submodules(model)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
