"""Which models can be made a graph: the reason why not, in words that a user can act on."""

from __future__ import annotations

import os
import sys
from typing import Any

from torch import Tensor, nn
from torch._inductor import exc
from torch._inductor.cpp_builder import get_cpp_compiler
from transformers.utils.generic import is_flash_attention_requested

from specdec.compiled.fingerprint import Survey
from specdec.compiled.store import Store
from specdec.target import ModelRunner
from specdec.wrapped import is_wrapped_call

MAX_LAYERS = 128  # a graph is as long as the model is deep, and so is its compilation


def why_not(runner: ModelRunner, survey: Survey) -> str | None:
    """Why this model decodes uncompiled; None if nothing is known against a graph of it."""
    return _memory(runner) or _model(runner, survey)


def _memory(runner: ModelRunner) -> str | None:
    layout = runner.layout
    if runner.attends_to_encoder:
        return "an encoder-decoder: its cross-attention is not part of the graph"
    if runner.replays:
        return "recurrent state, which a graph cannot put back by changing a length"
    if layout.level or layout.stepwise:
        return "its rows must be level (no position or mask per row), which the graph does not do"
    if len({kind.window for kind in runner.kinds if kind.window is not None}) > 1:
        return "sliding windows of several sizes"
    if is_flash_attention_requested(runner.model.config):
        return "flash attention, which takes no mask per row: load the model with attn_implementation='sdpa'"
    return None


def _model(runner: ModelRunner, survey: Survey) -> str | None:
    model: Any = runner.model
    if runner.ranks is not None:
        return "its weights are sharded over several processes, which a graph does not bring together"
    if model.training:
        return "the model is in training mode: call model.eval()"
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False):
        return "quantised weights"
    if survey.is_hooked:
        return "hooks on its modules (of accelerate, or your own), which would not run inside a graph"
    if any(type(t.data) is not Tensor for t in survey.tensors):
        return "quantised weights"  # torchao's quantize_ leaves no other mark than tensors of a class of its own
    if is_wrapped_call(model):
        return "the model is already under torch.compile, or its forward has been replaced"
    if _has_adapters(model):
        return "PEFT adapters: merge them first, with peft_model.merge_and_unload()"
    if len({t.device for t in survey.tensors}) > 1:
        return "its weights are on several devices"
    if len({t.dtype for t in survey.tensors if isinstance(t, nn.Parameter)}) > 1:
        return "its weights have several dtypes"
    if runner.num_layers > MAX_LAYERS:
        return f"{runner.num_layers} layers, more than {MAX_LAYERS}"
    return None


def why_not_here(runner: ModelRunner, survey: Survey) -> str | None:
    """Why no package of a model can be made or used on this machine."""
    device = runner.device.type
    if device == "cuda":
        return None
    if device != "cpu":
        return f"compiled steps need a CPU or a CUDA GPU, and the model is on {device}"
    if os.name != "posix":
        return "compiled packages need Linux or macOS"
    weights = sum(t.numel() * t.element_size() for t in survey.tensors)
    most = Store().most_bytes
    if weights > most:
        return f"a package holds a copy of the weights ({weights:,} bytes), and SPECDEC_CACHE_BYTES allows {most:,}"
    try:
        get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        return "no C++ compiler was found: install g++ or clang, or set CXX"
    return None


def _has_adapters(model: nn.Module) -> bool:
    peft: Any = sys.modules.get("peft")
    if peft is None:
        return False
    layer = peft.tuners.tuners_utils.BaseTunerLayer
    return any(isinstance(module, layer) for module in model.modules())
