"""PEFT adapters: what acts inside the layers is decoded as peft's own generate() does, the rest is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import prompts, tiny
from same import assert_like_generate, assert_works, randomise
from transformers import GenerationConfig, PreTrainedModel

import specdec

peft = pytest.importorskip("peft")

pytestmark = [
    # peft's own, towards transformers and torch.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),
]
CAUSAL = {"task_type": "CAUSAL_LM"}
ADAPTERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **CAUSAL),
    "lora, head and embeddings": lambda: peft.LoraConfig(
        r=4, target_modules="all-linear", modules_to_save=["lm_head", "embed_tokens"], **CAUSAL
    ),
    "lora without a task": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL),
    "adaption prompt": lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, **CAUSAL),
}
REFUSED: dict[str, Callable[[], Any]] = {
    "prefix tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4, **CAUSAL),
    "prompt tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=4, **CAUSAL),
    "p-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=8, **CAUSAL),
    "poly": lambda: peft.PolyConfig(r=4, n_tasks=1, n_skills=1, target_modules=["q_proj"], **CAUSAL),
    "activated lora": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], alora_invocation_tokens=[5], **CAUSAL),
}


def base(noise: float = 0.0) -> PreTrainedModel:
    return copy.deepcopy(tiny("llama", noise=noise))


def adapted(kind: str, noise: float = 0.0) -> Any:
    return randomise(peft.get_peft_model(base(noise), ADAPTERS[kind]()).eval())


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_part_of_the_model(kind: str) -> None:
    target = adapted(kind)
    assert_works(target, adapted(kind, noise=0.02))
    inputs = prompts(1)
    assert not torch.equal(
        target.generate(**inputs, max_new_tokens=24), tiny("llama").generate(**inputs, max_new_tokens=24)
    )


def test_the_active_adapter_is_the_one_that_counts() -> None:
    """Switching and disabling are followed from call to call."""
    model, inputs = adapted("lora"), prompts(3)
    torch.manual_seed(3)
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False, **CAUSAL))
    first = assert_like_generate(model, specdec.NgramDrafter(), inputs)
    model.set_adapter("other")
    second = assert_like_generate(model, specdec.NgramDrafter(), inputs)
    with model.disable_adapter():
        plain = assert_like_generate(model, specdec.NgramDrafter(), inputs)
    assert torch.equal(plain, tiny("llama").generate(**inputs, max_new_tokens=24))
    assert not torch.equal(first, second) and not torch.equal(second, plain)
    assert torch.equal(assert_like_generate(model, specdec.NgramDrafter(), inputs), second)


def test_merged_adapters() -> None:
    model, inputs = adapted("lora"), prompts(3)
    merged = assert_like_generate(model, specdec.NgramDrafter(), inputs)
    model.merge_adapter()
    assert torch.equal(assert_like_generate(model, specdec.NgramDrafter(), inputs), merged)
    model.unmerge_adapter()
    assert torch.equal(assert_like_generate(model.merge_and_unload(), specdec.NgramDrafter(), inputs), merged)


def test_adapters_of_transformers_and_mixed_ones() -> None:
    """`model.add_adapter` leaves a transformers model; a PeftMixedModel is a class of its own."""
    own = base()
    own.add_adapter(ADAPTERS["lora"]())
    assert_works(randomise(own).eval(), base(0.02))
    mixed = peft.get_peft_model(base(), ADAPTERS["lora"](), mixed=True)
    mixed.add_adapter("second", peft.LoHaConfig(r=4, target_modules=["q_proj"], init_weights=False))
    mixed.set_adapter(["default", "second"])
    assert_works(randomise(mixed).eval(), base(0.02))


def test_adapters_around_and_inside_a_compiled_model() -> None:
    """Wrappers may be stacked either way."""
    outer = torch.compile(adapted("lora"), backend="eager")
    inner = randomise(peft.get_peft_model(torch.compile(base(), backend="eager"), ADAPTERS["lora"]()).eval())
    for model in (outer, inner):
        assert_like_generate(model, specdec.NgramDrafter(), prompts(3))


def test_attached() -> None:
    """The wrapper's generate() is what other code calls."""
    model, arguments = adapted("lora"), {**prompts(3), "max_new_tokens": 16}
    expected = model.generate(**arguments)
    with specdec.attached(model, drafter=specdec.NgramDrafter()) as attachment:
        assert torch.equal(model.generate(**arguments), expected)
    assert attachment.calls == 1
    assert "generate" not in vars(model)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_acts_on_the_whole_call_is_refused(kind: str) -> None:
    """As a target and as a draft, naming the remedy."""
    model = randomise(peft.get_peft_model(base(), REFUSED[kind]()).eval())
    for call in (
        lambda: specdec.generate(model, **prompts(1), max_new_tokens=4),
        lambda: specdec.generate(base(), **prompts(1), drafter=model, max_new_tokens=4),
        lambda: specdec.ModelDrafter(model),
    ):
        with pytest.raises(specdec.UnsupportedModelError, match=r"peft_model\.generate\(\)"):
            call()


def test_an_activated_lora_really_depends_on_the_prompt() -> None:
    """Why it is refused: inside the layers alone it is another model than peft's own generate() runs."""
    model = randomise(peft.get_peft_model(base(), REFUSED["activated lora"]()).eval())
    inputs = prompts(3)
    inputs["input_ids"][:, -3] = 5
    inner = model.get_base_model().generate(**inputs, max_new_tokens=24)
    assert not torch.equal(model.generate(**inputs, max_new_tokens=24), inner)


def test_a_generation_config_of_the_wrapper_counts() -> None:
    """peft's generate() reads what was set on the wrapper, not on the model inside."""
    model, inputs = adapted("lora"), prompts(1)
    model.generation_config = GenerationConfig(max_new_tokens=7, suppress_tokens=[5, 6], pad_token_id=0)
    out = specdec.generate(model, **inputs, drafter=specdec.NgramDrafter())
    assert out.shape[1] == 11 + 7
    assert torch.equal(out, model.generate(**inputs))
    longer = specdec.generate(model, **inputs, drafter=specdec.NgramDrafter(), max_new_tokens=9)
    assert longer.shape[1] == 11 + 9
