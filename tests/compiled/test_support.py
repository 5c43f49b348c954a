"""What cannot be a graph is named with its reason, and decoded uncompiled."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch
from fresh import own, own_family
from models import prompts
from torch import nn
from torch._inductor import exc
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

import specdec
from specdec.compiled import choose, compiled, support
from specdec.errors import OptionError
from specdec.probe import probe
from specdec.stats import GraphUse
from specdec.target import Layout, ModelRunner
from specdec.wrapped import unwrap

# peft's own, towards transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ENCODER_DECODER = "an encoder-decoder: its cross-attention is not part of the graph"
RECURRENT = "recurrent state, which a graph cannot put back by changing a length"
LEVEL = "its rows must be level (no position or mask per row), which the graph does not do"
TRAINING = "the model is in training mode: call model.eval()"
UNDER_COMPILE = "the model is already under torch.compile, or its forward has been replaced"
QUANTISED = "quantised weights"
HOOKS = "hooks on its modules (of accelerate, or your own), which would not run inside a graph"
ADAPTERS = "PEFT adapters: merge them first, with peft_model.merge_and_unload()"
DTYPES = "its weights have several dtypes"
ASKED_FOR = "a package was asked for"
DEVICES = "its weights are on several devices"


def why_not(runner: ModelRunner) -> str | None:
    """The reason that a call gives; None for a model that would now be compiled."""
    choose._known.clear()
    use = GraphUse()
    assert compiled(runner, True, 16, use, "target") is runner
    words = use.roles["target"]
    return None if words == f"it cannot be captured (RuntimeError: {ASKED_FOR})" else words


def reason(model: Any) -> str | None:
    runner = ModelRunner(unwrap(model))
    probe(runner)
    return why_not(runner)


def compiled_by_user(how: str) -> Any:
    model = own()
    if how == "in place":
        model.compile(backend="eager")
    else:
        model.forward = torch.compile(model.forward, backend="eager")
    return model


def hooked(how: str) -> Any:
    model = own()
    if how == "forward":
        model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    elif how == "before forward":
        model.lm_head.register_forward_pre_hook(lambda *_: None)
    else:
        accelerate = pytest.importorskip("accelerate")
        accelerate.hooks.add_hook_to_module(model.model.layers[0], accelerate.hooks.AlignDevicesHook("cpu"))
    return model


def quantised(mark: str) -> Any:
    model = own()
    setattr(model, mark, True)
    return model


def lora() -> Any:
    """A model with an adapter that changes its output."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    return peft.get_peft_model(own(), config).eval()


def in_two_dtypes() -> Any:
    model = own()
    model.model.norm.double()
    return model


PLAIN = {
    "full attention": lambda: own(),
    "learned positions": lambda: own("gpt2"),
    "sliding window": lambda: own_family("mistral"),
    "mixed": lambda: own_family("gemma3_text"),
    "experts": lambda: own_family("mixtral"),
    "float64": lambda: own(dtype=torch.float64),
    "bfloat16": lambda: own(dtype=torch.bfloat16),
    "eager": lambda: own(attention="eager"),
    "inside torch.compile": lambda: torch.compile(own(), backend="eager"),  # the model itself runs as it was
}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "t5": (lambda: own_family("t5"), ENCODER_DECODER),
    "bart": (lambda: own_family("bart"), ENCODER_DECODER),
    "mamba2": (lambda: own_family("mamba2"), RECURRENT),
    "jamba": (lambda: own_family("jamba"), RECURRENT),
    "bloom": (lambda: own_family("bloom"), LEVEL),
    "falcon with alibi": (lambda: own_family("falcon_alibi"), LEVEL),
    "compiled in place": (lambda: compiled_by_user("in place"), UNDER_COMPILE),
    "compiled forward": (lambda: compiled_by_user("forward"), UNDER_COMPILE),
    "quantiser": (lambda: quantised("hf_quantizer"), QUANTISED),
    "quantised": (lambda: quantised("is_quantized"), QUANTISED),
    "forward hook": (lambda: hooked("forward"), HOOKS),
    "pre-forward hook": (lambda: hooked("before forward"), HOOKS),
    "accelerate's hook": (lambda: hooked("accelerate"), HOOKS),
    "LoRA": (lora, ADAPTERS),
    "two dtypes": (in_two_dtypes, DTYPES),
}


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing depends on the compiler that is installed."""

    def build(*_: Any) -> Any:
        raise RuntimeError(ASKED_FOR)

    monkeypatch.setattr(choose.building, "build", build)
    monkeypatch.setattr(support, "get_cpp_compiler", lambda: "g++")


@pytest.mark.parametrize("kind", PLAIN)
def test_nothing_against_it(kind: str) -> None:
    assert reason(PLAIN[kind]()) is None


@pytest.mark.parametrize("kind", REFUSED)
def test_reasons(kind: str) -> None:
    make, words = REFUSED[kind]
    assert reason(make()) == words


def test_training_mode() -> None:
    model = own()
    assert reason(model.train()) == TRAINING
    assert reason(model.eval()) is None


def test_hooks_that_were_removed() -> None:
    model = own()
    handle = model.model.layers[1].register_forward_hook(lambda *_: None)
    assert reason(model) == HOOKS
    handle.remove()
    assert reason(model) is None


def test_a_hook_of_accelerate_on_the_model_itself() -> None:
    """As from_pretrained(device_map=...) puts there: the words are about hooks, although `forward` is replaced."""
    accelerate = pytest.importorskip("accelerate")
    model = own()
    accelerate.hooks.add_hook_to_module(model, accelerate.hooks.AlignDevicesHook("cpu"))
    assert reason(model) == HOOKS


def test_an_adapter_that_was_merged() -> None:
    model = lora()
    assert reason(model) == ADAPTERS
    model.merge_adapter()
    assert reason(model) == ADAPTERS, "it may be unmerged again"
    model.unmerge_adapter()
    assert reason(model.merge_and_unload()) is None
    assert reason(own()) is None, "peft is imported, but has nothing to do with this one"


def test_weights_on_several_devices() -> None:
    model = own()
    runner = ModelRunner(model)
    model.model.norm.to("meta")
    assert why_not(runner) == DEVICES


def test_a_layout_of_one_token_at_a_time() -> None:
    runner = ModelRunner(own())
    assert why_not(runner) is None
    runner.layout = Layout(trees=False, stepwise=True)
    assert why_not(runner) == LEVEL


def test_windows_of_several_sizes() -> None:
    runner = ModelRunner(own())
    runner.kinds = tuple(replace(kind, window=8 + i) for i, kind in enumerate(runner.kinds))
    assert why_not(runner) == "sliding windows of several sizes"


def test_flash_attention() -> None:
    """Its kernels need a GPU; the name is what counts, and the function behind it is not called here."""
    name = "flash_attention_by_name"
    AttentionInterface.register(name, lambda *_, **__: None)
    AttentionMaskInterface.register(name, flash_attention_mask)
    model = own()
    runner = ModelRunner(model)
    model.config._attn_implementation = name
    assert why_not(runner) == (
        "flash attention, which takes no mask per row: load the model with attn_implementation='sdpa'"
    )


def test_more_layers_than_can_be_compiled_in_reasonable_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "MAX_LAYERS", 2)
    assert reason(own()) is None
    monkeypatch.setattr(support, "MAX_LAYERS", 1)
    assert reason(own()) == "2 layers, more than 1"


def test_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = ModelRunner(own())
    monkeypatch.setattr(ModelRunner, "device", torch.device("xpu"))
    assert why_not(runner) == "compiled steps need a CPU or a CUDA GPU, and the model is on xpu"


def test_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "os", SimpleNamespace(name="nt"))
    assert reason(own()) == "compiled packages need Linux or macOS"


def test_less_room_than_the_weights_take(monkeypatch: pytest.MonkeyPatch) -> None:
    model = own()
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    monkeypatch.setenv("SPECDEC_CACHE_BYTES", str(size))
    assert reason(model) is None
    monkeypatch.setenv("SPECDEC_CACHE_BYTES", "9999")
    words = reason(model)
    assert words is not None
    assert re.fullmatch(
        r"a package holds a copy of the weights \([\d,]+ bytes\), and SPECDEC_CACHE_BYTES allows 9,999", words
    )


@pytest.mark.parametrize("error", [exc.InvalidCxxCompiler(), RuntimeError("no compiler")])
def test_no_compiler(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise error

    monkeypatch.setattr(support, "get_cpp_compiler", missing)
    assert reason(own()) == "no C++ compiler was found: install g++ or clang, or set CXX"


def check_uncompiled(model: Any, words: str, drafter: Any = None, **arguments: Any) -> Any:
    """Decoded as ever, and the call says why."""
    arguments = {**arguments, "max_new_tokens": 16, "do_sample": False}
    # Dynamo would compile the model's own call for each length.
    expected = (own() if words == UNDER_COMPILE else model).generate(**arguments)
    out = specdec.generate(model, **arguments, drafter=drafter, compile=True, return_dict_in_generate=True)
    assert torch.equal(out.sequences, expected)
    graphs = out.speculation.graphs
    assert graphs.roles["target"] == words
    assert (graphs.calls, graphs.seconds) == (0, 0.0)
    return out


@pytest.mark.parametrize("kind", ["bart", "mamba2", "bloom", "compiled forward", "quantised", "forward hook", "LoRA"])
def test_the_call_says_why(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    make, words = REFUSED[kind]
    model = make()
    inputs = families.inputs(kind, 3) if kind in families.ARCHITECTURES else prompts(3)
    for _ in range(2):
        check_uncompiled(model, words, specdec.NgramDrafter(), **inputs)
    name = type(unwrap(model)).__name__
    logged = [record.getMessage() for record in caplog.records if record.name == "specdec"]
    assert logged == [f"{name} is decoded uncompiled: {words}."], "once, not at every call"
    assert caplog.records[0].levelno == logging.WARNING


def test_the_statistics_show_it() -> None:
    out = check_uncompiled(hooked("forward"), HOOKS, **prompts(1))
    assert f"target runs           {HOOKS}" in str(out.speculation)


def test_one_warning_for_a_class_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    other = own("gpt2")
    other.transformer.h[0].register_forward_hook(lambda *_: None)
    for model in (hooked("forward"), hooked("before forward"), quantised("is_quantized"), other, other):
        specdec.generate(model, **prompts(1), max_new_tokens=2, compile=True)
    assert [record.getMessage() for record in caplog.records] == [
        f"LlamaForCausalLM is decoded uncompiled: {HOOKS}.",
        f"LlamaForCausalLM is decoded uncompiled: {QUANTISED}.",
        f"GPT2LMHeadModel is decoded uncompiled: {HOOKS}.",
    ]


@pytest.mark.parametrize("compile", ["auto", False])
def test_no_warning_where_nobody_insists(compile: Any, caplog: pytest.LogCaptureFixture) -> None:
    out = specdec.generate(
        hooked("forward"), **prompts(1), max_new_tokens=4, compile=compile, return_dict_in_generate=True
    )
    assert out.speculation.graphs.roles == ({"target": HOOKS} if compile == "auto" else {})
    assert not caplog.records


def test_each_role_has_its_own_reason() -> None:
    target, draft = quantised("is_quantized"), own(noise=0.02)
    draft.lm_head.register_forward_hook(lambda *_: None)
    out = check_uncompiled(target, QUANTISED, draft, **prompts(3))
    assert out.speculation.graphs.roles == {"target": QUANTISED, "draft": HOOKS}
    assert out.speculation.accepted


def test_hooks_still_run() -> None:
    """Why they are a reason: nothing inside a graph calls them."""
    model, calls = own(), []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    specdec.generate(model, **prompts(1), max_new_tokens=4, compile=True)
    assert len(calls) >= 4


def test_a_prompt_of_embeddings() -> None:
    model = own()
    inputs = prompts(3)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    assert isinstance(embeds, torch.Tensor)
    words = "the prompt brings more than token ids (embeddings, images, positions or token types)"
    embedded = {"inputs_embeds": embeds.detach(), "attention_mask": inputs["attention_mask"]}
    check_uncompiled(model, words, specdec.NgramDrafter(), **embedded)


def test_hidden_states() -> None:
    model, words = own(), "hidden states were asked for, which the graph does not return"
    arguments = {**prompts(3), "max_new_tokens": 8, "output_hidden_states": True, "return_dict_in_generate": True}
    expected: Any = model.generate(**arguments)
    out: Any = specdec.generate(model, **arguments, compile=True)
    assert torch.equal(out.sequences, expected.sequences)
    assert out.speculation.graphs.roles == {"target": words}
    assert len(out.hidden_states) == len(expected.hidden_states)
    torch.testing.assert_close(out.hidden_states[3][-1], expected.hidden_states[3][-1])


def test_hooks_of_transformers_itself() -> None:
    """It leaves some on a model whose hidden states were asked for once; they do nothing in other calls."""
    model, arguments = own(), {**prompts(1), "max_new_tokens": 2, "return_dict_in_generate": True}
    specdec.generate(model, **arguments, output_hidden_states=True)
    assert any(module._forward_hooks for module in model.modules()), "or this tests nothing"
    assert reason(model) is None


def test_a_bad_limit_is_an_error_before_any_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_CACHE_BYTES", "8G")
    tokens: list[Any] = []
    with pytest.raises(OptionError, match="SPECDEC_CACHE_BYTES"):
        specdec.generate(own(), **prompts(1), max_new_tokens=4, compile=True, on_commit=tokens.append)
    assert not tokens
    specdec.generate(own(), **prompts(1), max_new_tokens=4, on_commit=tokens.append)
    assert tokens, "it is read where something is compiled"


def test_modules_are_looked_through_to_the_last() -> None:
    """A hook deep inside counts as one on top does."""
    model = own()
    deepest = [module for module in model.modules() if not list(module.children())]
    assert isinstance(deepest[-1], nn.Module)
    for module in deepest[:: len(deepest) // 4]:
        handle = module.register_forward_pre_hook(lambda *_: None)
        assert reason(model) == HOOKS
        handle.remove()
