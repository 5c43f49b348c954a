"""Model inputs besides token ids and a mask: token types, images, positions on several axes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import prompts, tiny
from same import assert_unchanged, snapshot
from vision import CONFIGS, tiny_vision, with_images

import specdec

SUPPORTED = [name for name in CONFIGS if name != "paligemma"]
DRAFTERS: dict[str, Any] = {
    "none": lambda _: None,
    "ngram": lambda _: specdec.NgramDrafter(),
    "text draft": lambda _: tiny("llama"),
    "itself without the image": tiny_vision,
}


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.long), 3])
@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("architecture", SUPPORTED)
def test_images(architecture: str, drafter: str, batch_size: int) -> None:
    """The image is read once with the prompt, and its positions count from then on."""
    target, inputs = tiny_vision(architecture), with_images(architecture, batch_size)
    arguments = {**inputs, "max_new_tokens": 16}
    expected = target.generate(**arguments)
    blind = {**arguments, "pixel_values": -inputs["pixel_values"]}
    assert not torch.equal(target.generate(**blind), expected), "the image must matter, or this tests nothing"
    before = snapshot(target)
    kept = {name: value.clone() for name, value in inputs.items()}
    out = specdec.generate(target, **arguments, drafter=DRAFTERS[drafter](architecture), num_draft_tokens=4)
    assert torch.equal(out, expected)
    assert_unchanged(before, snapshot(target))
    assert all(torch.equal(inputs[name], value) for name, value in kept.items())


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_text_alone(architecture: str) -> None:
    target, inputs = tiny_vision(architecture), prompts(3)
    out = specdec.generate(target, **inputs, drafter=tiny("llama"), num_draft_tokens=4, max_new_tokens=16)
    assert torch.equal(out, target.generate(**inputs, max_new_tokens=16))


def test_a_bidirectional_prompt_is_refused() -> None:
    """PaliGemma's attention without a mask is not causal, so that a chain behind a cache would see its own future."""
    target = tiny_vision("paligemma")
    for inputs in (with_images("paligemma", 1), prompts(3)):
        with pytest.raises(specdec.UnsupportedModelError, match=r"Use model\.generate\(\)"):
            specdec.generate(target, **inputs, drafter=specdec.NgramDrafter(), max_new_tokens=8)


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_chunks_do_not_cut_images(architecture: str) -> None:
    target, arguments = tiny_vision(architecture), {**with_images(architecture, 3), "max_new_tokens": 12}
    out = specdec.generate(target, **arguments, drafter=specdec.NgramDrafter(), prefill_chunk_size=4)
    assert torch.equal(out, target.generate(**arguments))


@pytest.mark.parametrize("architecture", ["qwen2_vl", "llava"])
def test_several_samples_of_one_image(architecture: str) -> None:
    """Under top_k=1, samples are greedy text: each row has the image."""
    target, inputs = tiny_vision(architecture), with_images(architecture, 1)
    arguments = {**inputs, "do_sample": True, "top_k": 1, "num_return_sequences": 3, "max_new_tokens": 12}
    out = specdec.generate(target, **arguments, drafter=specdec.NgramDrafter())
    assert torch.equal(out, target.generate(**inputs, max_new_tokens=12).expand(3, -1))


def test_an_earlier_call_leaves_no_positions_behind() -> None:
    """Qwen keeps the last call's position offsets on itself; ours are the call's own."""
    target = tiny_vision("qwen2_vl")
    for inputs in (with_images("qwen2_vl", 3), prompts(2), with_images("qwen2_vl", 1), prompts(1)):
        target.model.rope_deltas = torch.full((len(inputs["input_ids"]), 1), 17)
        out = specdec.generate(target, **inputs, drafter=specdec.NgramDrafter(), max_new_tokens=12)
        assert torch.equal(out, target.generate(**inputs, max_new_tokens=12))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("draft", [None, "ngram", "model"])
def test_token_types(batch_size: int, draft: str | None) -> None:
    """GPT-2 adds the embedding of a token's type; new tokens have the type of the prompt's last."""
    target, inputs = tiny("gpt2"), prompts(batch_size)
    types = torch.randint(2, 90, inputs["input_ids"].shape, generator=torch.Generator().manual_seed(5))
    arguments = {**inputs, "token_type_ids": types, "max_new_tokens": 20}
    expected = target.generate(**arguments)
    assert not torch.equal(expected, target.generate(**inputs, max_new_tokens=20))
    drafter = {None: None, "ngram": specdec.NgramDrafter(), "model": tiny("gpt2", noise=0.02)}[draft]
    assert torch.equal(specdec.generate(target, **arguments, drafter=drafter, num_draft_tokens=4), expected)
