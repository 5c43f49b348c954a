"""Memory that runs out where it would leave something behind: in the probe, in a user's cache, between two layers."""

from __future__ import annotations

import copy
from typing import Any

import families
import pytest
import torch
from models import prompts, tiny
from transformers import DynamicCache, LogitsProcessor

import specdec
from specdec import probe as probing
from specdec.cache.layers import FullAttentionLayer
from specdec.target import ModelRunner

TARGET, DRAFT = tiny("llama"), tiny("llama", noise=0.02)
OUT_OF_MEMORY = {
    "a GPU's": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "a CPU's": RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"),
    "Python's": MemoryError(),
}


@pytest.mark.parametrize("at", [0, 3, 9])
@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
@pytest.mark.parametrize("name", ["llama", "lfm2"])
def test_the_probe_concludes_nothing_from_it(name: str, kind: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else trees or all drafts were given up for the rest of the process, or the model refused."""
    model = copy.deepcopy(families.family(name))
    monkeypatch.setattr(probing, "_found", {})
    wanted = ModelRunner(model)
    probing.probe(wanted)
    monkeypatch.setattr(probing, "_found", {})
    probing._found_by_model.pop(model, None)
    error, calls = OUT_OF_MEMORY[kind], [0]

    def fails(*_: Any) -> None:
        calls[0] += 1
        if calls[0] == at + 1:
            raise error

    handle = model.get_output_embeddings().register_forward_hook(fails)
    with pytest.raises(type(error)) as raised:
        probing.probe(ModelRunner(model))
    assert raised.value is error
    handle.remove()
    again = ModelRunner(model)
    probing.probe(again)
    assert again.layout == wanted.layout


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_a_processor_without_memory_is_not_called_impure(kind: str) -> None:
    error = OUT_OF_MEMORY[kind]

    class Fails(LogitsProcessor):
        calls = 0

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 3:  # asked with the rows in another order
                raise error
            return scores

    with pytest.raises(type(error)) as raised:
        specdec.generate(TARGET, **prompts(3), drafter=DRAFT, max_new_tokens=4, logits_processor=[Fails()])
    assert raised.value is error


@pytest.mark.parametrize("at", range(1, 7))
@pytest.mark.parametrize("is_empty", [True, False])
def test_a_users_cache_is_overwritten_wholly_or_not(is_empty: bool, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of its layers of this turn and half of the last would be read by transformers without a word."""
    inputs = prompts(1)
    past = DynamicCache()
    ids = inputs["input_ids"]
    if not is_empty:
        ids = TARGET.generate(ids, past_key_values=past, max_new_tokens=4)
    before = [states.clone() for layer in past.layers for states in (layer.keys, layer.values)]
    zeros, calls = torch.zeros, [0]

    def fails(*shape: Any, **options: Any) -> torch.Tensor:
        if len(shape) == 4:
            calls[0] += 1
            if calls[0] == at:
                raise OUT_OF_MEMORY["a GPU's"]
        return zeros(*shape, **options)

    monkeypatch.setattr("specdec.cache.exchange.torch.zeros", fails)
    with pytest.raises(torch.OutOfMemoryError):
        specdec.generate(TARGET, ids, past_key_values=past, drafter=DRAFT, max_new_tokens=6)
    monkeypatch.undo()
    after = [states for layer in past.layers for states in (layer.keys, layer.values)]
    assert len(after) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    out = specdec.generate(TARGET, ids, past_key_values=past, drafter=DRAFT, max_new_tokens=6)
    assert torch.equal(out, TARGET.generate(ids, max_new_tokens=6))


def test_an_empty_users_cache_stays_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where transformers' own code runs out of memory, after some layers."""
    past, update, calls = DynamicCache(), DynamicCache.update, [0]

    def fails(self: DynamicCache, *given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise OUT_OF_MEMORY["a GPU's"]
        return update(self, *given)

    monkeypatch.setattr(DynamicCache, "update", fails)
    with pytest.raises(torch.OutOfMemoryError):
        specdec.generate(TARGET, **prompts(1), past_key_values=past, drafter=DRAFT, max_new_tokens=6)
    assert calls[0] == 3
    assert len(past.layers) == 0


def ending() -> int:
    """A token that ends the first or the second of three rows early, so that the third one moves."""
    new = TARGET.generate(**prompts(3), max_new_tokens=14)[:, 11:]
    return next(t for t in new[:2, 6:].flatten().tolist() if t not in new[2] and t not in new[:, :6])


@pytest.mark.parametrize("at", range(1, 4))
def test_a_cache_whose_rows_were_changing_places_is_refused(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that disagree about whose row is where would give one user another's text."""
    inputs = prompts(3)
    first = specdec.generate(TARGET, **inputs, max_new_tokens=4, return_dict_in_generate=True)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 4, dtype=torch.int64)], 1)
    second = {"input_ids": first.sequences, "attention_mask": mask, "max_new_tokens": 10, "eos_token_id": ending()}
    expected = TARGET.generate(**second)
    permute, calls = FullAttentionLayer.permute_rows, [0]

    def fails(self: FullAttentionLayer, *given: Any) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise OUT_OF_MEMORY["a GPU's"]
        permute(self, *given)

    cache = copy.deepcopy(first.past_key_values)
    monkeypatch.setattr(FullAttentionLayer, "permute_rows", fails)
    with pytest.raises(torch.OutOfMemoryError):
        specdec.generate(TARGET, **second, past_key_values=cache, drafter=DRAFT)
    monkeypatch.undo()
    with pytest.raises(specdec.OptionError, match="no finished call"):
        specdec.generate(TARGET, **second, past_key_values=cache, drafter=DRAFT)
    assert torch.equal(specdec.generate(TARGET, **second, drafter=DRAFT), expected)


def test_buffers_after_a_growth_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a graph is given are the buffers that the layers have, also where only some have grown."""
    cache = ModelRunner(TARGET).new_cache(2, 8)
    cache.allocate([(2, 8, 8)] * 3, torch.float64)
    held = cache.buffers()
    grow, calls = FullAttentionLayer.grow, [0]

    def fails(self: FullAttentionLayer, capacity: int) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise OUT_OF_MEMORY["a GPU's"]
        grow(self, capacity)

    monkeypatch.setattr(FullAttentionLayer, "grow", fails)
    with pytest.raises(torch.OutOfMemoryError):
        cache.reserve(cache.capacity + 1)
    layers = [states for layer in cache.layers for states in (layer.keys, layer.values)]
    assert held[0] is not layers[0]
    assert all(a is b for a, b in zip(cache.buffers(), layers, strict=True))
