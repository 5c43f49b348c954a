"""The probe passes what can be rolled back, and refuses what cannot, whatever its name."""

from __future__ import annotations

import copy

import pytest
import torch
from families import family
from models import ARCHITECTURES, prompts, tiny
from transformers import (
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

import specdec
from specdec import probe as probing
from specdec.target import ModelRunner


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_attention_passes(architecture: str, attention: str) -> None:
    assert probing.relative_error(ModelRunner(tiny(architecture, attention=attention))) < 1e-5


def local_attention(window_size: int) -> PreTrainedModel:
    """GPTNeo's local layers look back over a window that no cache or mask of ours knows of."""
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=64, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=16, window_size=window_size,
        attention_types=[[["global", "local"], 1]], initializer_range=1.0,
    )  # fmt: skip
    return GPTNeoForCausalLM(config).eval()


class Forgetful(type(tiny("llama"))):  # type: ignore[misc]
    """Ignores every mask that it is given: what a model does that was written for batch-1 chains."""

    def forward(
        self,
        input_ids: object = None,
        attention_mask: object = None,
        position_ids: object = None,
        past_key_values: object = None,
        **kwargs: object,
    ) -> object:
        return super().forward(input_ids, None, position_ids, past_key_values, **kwargs)


def test_a_model_that_ignores_masks_keeps_its_rows_level() -> None:
    """Chains of level rows need no mask; padding does, and is refused."""
    model = Forgetful(tiny("llama").config).double().eval()
    model.load_state_dict(tiny("llama").state_dict())
    ids = prompts(1)["input_ids"].expand(2, -1)
    out = specdec.generate(model, ids, drafter=tiny("llama", noise=0.02), num_draft_tokens=3, max_new_tokens=20)
    assert torch.equal(out, tiny("llama").generate(ids, max_new_tokens=20))
    with pytest.raises(specdec.InputError, match="one length"):
        specdec.generate(model, **prompts(2), max_new_tokens=3)


@pytest.mark.parametrize("window_size", [2, 16, 256])
def test_a_hidden_window_is_refused(window_size: int) -> None:
    """Also one that is longer than the probe."""
    with pytest.raises(specdec.UnsupportedModelError, match="local"):
        specdec.generate(local_attention(window_size), torch.tensor([[5, 6, 7]]), max_new_tokens=3, pad_token_id=0)


def test_a_mixture_of_experts_decodes() -> None:
    """Nothing lists Mixtral: it passes the probe and equals generate()."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, sliding_window=None, initializer_range=0.6,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    ids = torch.randint(2, 64, (2, 6))
    out = specdec.generate(model, ids, drafter=model, num_draft_tokens=3, max_new_tokens=30)
    assert torch.equal(out, model.generate(ids, max_new_tokens=30))


def test_probed_once() -> None:
    """Once a class, dtype, attention and device; later calls cost nothing."""
    target = tiny("llama")
    specdec.generate(target, torch.tensor([[5, 6, 7]]), max_new_tokens=2)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = target.register_forward_hook(count)
    specdec.generate(target, torch.tensor([[5, 6, 7]]), max_new_tokens=2)
    handle.remove()
    assert calls == 2


def test_no_inference_tensor_is_left_on_the_model() -> None:
    """Dynamic rope replaces a buffer in its forward; under inference mode that would break later training."""
    torch.manual_seed(0)
    config = type(tiny("llama").config)(
        **{
            **tiny("llama").config.to_dict(),
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        }
    )
    model = type(tiny("llama"))(config).eval()
    ids = torch.randint(2, 64, (1, 5))
    model.model.rotary_emb.max_seq_len_cached = 4  # a longer text than ever makes the forward rebuild its buffer
    specdec.generate(model, ids, drafter=model, num_draft_tokens=2, max_new_tokens=40)  # longer than the probe's
    assert not any(b.is_inference() for b in model.buffers())
    model(ids, labels=ids).loss.backward()


def test_longrope_does_not_switch_in_the_middle() -> None:
    """Past its original length longrope rotates the whole text anew; a cache cannot follow."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 16.0}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 16}
    config = type(tiny("phi3").config)(**{**tiny("phi3").config.to_dict(), **changes})
    model = type(tiny("phi3"))(config).eval()
    ids = torch.randint(2, 64, (1, 10))
    with pytest.raises(specdec.InputError, match="longrope"):
        specdec.generate(model, ids, max_new_tokens=10)
    assert specdec.generate(model, ids, drafter=model, num_draft_tokens=2, max_new_tokens=6).shape[1] == 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["mamba", "falcon_mamba", "jamba", "mamba2", "falcon_h1", "zamba2", "gemma2", "bloom", "bart", "whisper"]
)
def test_half_precision_is_told_from_a_lost_state(name: str, dtype: torch.dtype) -> None:
    """The verdict is that of float64, whatever the dtype rounds."""
    precise, half = family(name), copy.deepcopy(family(name)).to(dtype)
    assert probing.choose(ModelRunner(half)) == probing.choose(ModelRunner(precise))


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba", "jamba", "recurrent_gemma"])
def test_a_state_that_hardly_shows(name: str) -> None:
    """Default weights make it a thousandth of the logits or less: still no rounding, nor a verdict on other weights."""
    torch.manual_seed(0)
    faint = type(family(name))(copy.deepcopy(family(name).config)).eval()
    if name == "recurrent_gemma":
        with pytest.raises(specdec.UnsupportedModelError, match="outside its cache"):
            probing.choose(ModelRunner(faint))
    else:
        assert probing.choose(ModelRunner(faint)).stepwise


def test_a_recurrent_model_is_probed_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models of one class may lose more or less of their state; two of attention lose none."""
    probed: list[object] = []
    monkeypatch.setattr(probing, "choose", lambda runner: probed.append(runner.model) or runner.layouts[0])
    monkeypatch.setattr(probing, "_found", {})
    for name, num in (("mamba2", 2), ("llama", 1)):
        probed.clear()
        for model in (copy.deepcopy(family(name)), copy.deepcopy(family(name))):
            for _ in range(2):
                probing.probe(ModelRunner(model))
        assert len(probed) == num


def test_nan_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "relative_error", lambda *_: float("nan"))
    monkeypatch.setattr(probing, "_found", {})
    with pytest.raises(specdec.UnsupportedModelError, match="nan"):
        probing.probe(ModelRunner(tiny("llama")))


def test_what_it_found_is_of_one_dtype_and_one_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another dtype or attention of the same class is asked anew, the same ones are not: each may lose other things."""
    asked, choose = [], probing.choose

    def counted(runner: ModelRunner) -> object:
        asked.append((runner.dtype, runner.model.config._attn_implementation))
        return choose(runner)

    monkeypatch.setattr(probing, "choose", counted)
    monkeypatch.setattr(probing, "_found", {})
    models = [
        tiny("llama"),
        tiny("llama", attention="eager"),
        copy.deepcopy(tiny("llama")).to(torch.float32),
    ]
    for model in [*models, *models, tiny("llama", noise=0.02)]:
        probing.probe(ModelRunner(model))
    assert asked == [(torch.float64, "sdpa"), (torch.float64, "eager"), (torch.float32, "sdpa")]
