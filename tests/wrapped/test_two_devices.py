"""Models whose layers accelerate has spread over two devices, of which the second is a stand-in (two_devices.py).

Computed for real; an operation of ours that meets tensors of both devices raises, as it would on two GPUs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import accelerate
import families
import pytest
import torch
from models import prompts, tiny
from transformers import PreTrainedModel
from two_devices import FIRST, SECOND, Devices, Far, move, two_devices

import specdec
from specdec.probe import attempt
from specdec.target import Layout, ModelRunner

NEW = 8


@pytest.fixture
def devices() -> Iterator[Devices]:
    with two_devices() as found:
        yield found


def spread(model: PreTrainedModel, *, every: int = 2) -> PreTrainedModel:
    """A copy as device_map="auto" leaves it: every second layer and the head are on the second device."""
    model = copy.deepcopy(model)
    decoder = model.get_decoder()
    name = next(n for n, m in model.named_modules() if m is decoder)
    layers = next(n for n, m in decoder.named_children() if isinstance(m, torch.nn.ModuleList))
    device_map = {f"{name}.{n}": "cpu" for n, _ in decoder.named_children() if n != layers}
    for i in range(len(getattr(decoder, layers))):
        device_map[f"{name}.{layers}.{i}"] = str(SECOND) if i % every == 1 else "cpu"
    head = model.get_output_embeddings()
    device_map |= {n: str(SECOND) for n, m in model.named_modules() if m is head}
    return accelerate.dispatch_model(model, device_map, main_device="cpu", force_hooks=True)


def test_the_stand_in_is_as_strict_as_a_gpu(devices: Devices) -> None:
    near = torch.arange(3.0)
    far = near.to(SECOND)
    assert isinstance(far, Far) and far.device == SECOND and near.device == FIRST
    assert torch.equal((far * 2).to("cpu"), near * 2)
    assert isinstance(torch.zeros(2, device=SECOND), Far) and isinstance(torch.tensor([1], device=SECOND), Far)
    assert isinstance(far + 1, Far) and isinstance(far + torch.tensor(1.0), Far)  # numbers may come from anywhere
    for wrong in (lambda: far + near, lambda: torch.cat([far, near]), lambda: near.index_copy_(0, far.long(), near)):
        with pytest.raises(RuntimeError, match="same device"):
            wrong()
    assert devices.crossings == 3


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        pytest.param(kind, rows, marks=[] if (kind, rows) in (("tree", 3), ("n-grams", 1)) else pytest.mark.long)
        for kind in ("none", "n-grams", "chain", "tree", "spread draft")
        for rows in (1, 3)
    ],
)
def test_equals_generate(devices: Devices, kind: str, rows: int) -> None:
    whole, draft = tiny("llama"), tiny("llama", noise=0.02)
    target = spread(whole)
    drafter = {
        "none": lambda: None,
        "n-grams": specdec.NgramDrafter,
        "chain": lambda: draft,
        "tree": lambda: specdec.TreeDrafter(draft, num_nodes=8),
        "spread draft": lambda: spread(draft),
    }[kind]()
    expected = whole.generate(**prompts(rows), max_new_tokens=NEW, eos_token_id=9)
    assert torch.equal(target.generate(**prompts(rows), max_new_tokens=NEW, eos_token_id=9), expected)
    out = specdec.generate(
        target,
        **prompts(rows),
        drafter=drafter,
        num_draft_tokens=4,
        max_new_tokens=NEW,
        eos_token_id=9,
        return_dict_in_generate=True,
        output_hidden_states=True,
    )
    assert torch.equal(out.sequences, expected)
    assert devices.crossings
    assert {layer.keys.device for layer in out.past_key_values.layers} == {FIRST, SECOND}


@pytest.mark.long
def test_sampling_and_a_cache_that_goes_on(devices: Devices) -> None:
    whole, draft = tiny("llama"), tiny("llama", noise=0.02)
    target, texts = spread(whole), []
    for model in (whole, target):
        first = specdec.generate(
            model,
            **prompts(2),
            drafter=draft,
            num_draft_tokens=4,
            max_new_tokens=8,
            do_sample=True,
            generator=torch.Generator().manual_seed(3),
            return_dict_in_generate=True,
        )
        ids = torch.cat([first.sequences, first.sequences[:, :1]], dim=1)
        mask = torch.cat([prompts(2)["attention_mask"], torch.ones(2, 9, dtype=torch.int64)], dim=1)
        moved = first.past_key_values.to_dynamic_cache()
        for cache in (first.past_key_values, moved):
            out = specdec.generate(
                model, ids, attention_mask=mask, drafter=draft, max_new_tokens=8, past_key_values=cache
            )
            texts.append(out.tolist())
    assert texts[0] == texts[1] == texts[2] == texts[3]


@pytest.mark.parametrize(
    "name",
    [
        "mistral",
        *(pytest.param(n, marks=pytest.mark.long) for n in ("gemma3_text", "mixtral", "falcon_h1", "qwen3_next")),
    ],
)
def test_other_memories(devices: Devices, name: str) -> None:
    """Rings, recurrent states, both kinds in one model."""
    whole, inputs = families.family(name), families.inputs(name, 3)
    target, draft = spread(whole), families.family(name, noise=families.ARCHITECTURES[name].noise)
    expected = whole.generate(**inputs, max_new_tokens=NEW)
    for drafter in (draft, specdec.NgramDrafter()):
        out = specdec.generate(target, **inputs, drafter=drafter, num_draft_tokens=4, max_new_tokens=NEW)
        assert torch.equal(out, expected)
    assert devices.crossings


def test_the_probe_finds_trees_and_free_rows(devices: Devices) -> None:
    """What another layout would hide: the best one does not raise on two devices."""
    error = attempt(ModelRunner(spread(tiny("llama"))), Layout())
    assert isinstance(error, float) and error < 1e-9


def test_its_own_layers_and_graphs_are_refused_by_name(devices: Devices) -> None:
    target = spread(tiny("llama"))
    with pytest.raises(specdec.UnsupportedModelError, match="several devices"):
        specdec.generate(target, **prompts(1), drafter=specdec.EarlyExitDrafter(1), max_new_tokens=4)
    out = specdec.generate(target, **prompts(1), max_new_tokens=4, compile=True, return_dict_in_generate=True)
    assert "hooks" in out.speculation.graphs.roles["target"]


def test_a_draft_elsewhere_is_refused_by_name(devices: Devices) -> None:
    draft = accelerate.dispatch_model(
        copy.deepcopy(tiny("llama", noise=0.02)), {"": str(SECOND)}, main_device=str(SECOND), force_hooks=True
    )
    with pytest.raises(specdec.DraftMismatchError, match="takes its input on cpu"):
        specdec.generate(tiny("llama"), **prompts(1), drafter=draft, max_new_tokens=4)


@pytest.mark.parametrize(
    "name",
    [
        "bart",
        "gpt2",
        *(pytest.param(n, marks=pytest.mark.long) for n in ("gemma3_text", "zamba2", "mixtral", "whisper")),
    ],
)
def test_a_whole_model_elsewhere(devices: Devices, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that has been moved to a GPU: what the loop and the probe make for it must be made there."""
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # the stand-in's views cannot be made in it
    model, draft = (copy.deepcopy(families.family(name, noise)) for noise in (0.0, families.ARCHITECTURES[name].noise))
    expected = model.generate(**families.inputs(name, 2), max_new_tokens=NEW, do_sample=False)
    for part in (model, draft):
        move(part)
    inputs = {key: value.to(SECOND) for key, value in families.inputs(name, 2).items()}
    out = specdec.generate(model, **inputs, drafter=draft, num_draft_tokens=3, max_new_tokens=NEW, do_sample=False)
    assert out.device == SECOND and torch.equal(out.to("cpu"), expected)
