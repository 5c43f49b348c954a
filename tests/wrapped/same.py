"""What every test of this directory asks: our output is the object's own generate(), and the object is as before."""

from __future__ import annotations

import json
from typing import Any

import torch
from models import prompts
from torch import Tensor, nn

import specdec

Snapshot = dict[str, Any]


def snapshot(model: Any) -> Snapshot:
    """All that a call may not change: configs, attributes of every module, tensors (values unless on "meta")."""
    out: Snapshot = {"config": json.dumps(model.config.to_dict(), default=str, sort_keys=True)}
    for name, module in model.named_modules():
        out[f"{name}:type"] = type(module)
        out[f"{name}:attributes"] = sorted(vars(module))
        out[f"{name}:forward"] = vars(module).get("forward")
        out[f"{name}:hooks"] = len(module._forward_hooks) + len(module._forward_pre_hooks)
        out[f"{name}:training"] = module.training
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        value = None if tensor.is_meta else _plain(tensor).detach().clone()
        out[f"{name}:tensor"] = tensor.shape, tensor.device, tensor.dtype, tensor.requires_grad, value
    return out


def _plain(tensor: Tensor) -> Tensor:
    """torchao's tensors do not know `torch.equal`."""
    return tensor.dequantize() if type(tensor).__module__.startswith("torchao") else tensor


def assert_unchanged(before: Snapshot, after: Snapshot) -> None:
    assert before.keys() == after.keys()
    for key, value in before.items():
        if key.endswith(":tensor"):
            assert value[:-1] == after[key][:-1], key
            assert (value[-1] is None) == (after[key][-1] is None), key
            assert value[-1] is None or torch.equal(value[-1], after[key][-1]), key
        else:
            assert value == after[key], key


def assert_like_generate(target: Any, drafter: Any, inputs: dict[str, Any], num_new: int = 24) -> Tensor:
    """Greedy equality with the object's own generate(); returns the output."""
    expected = target.generate(**inputs, max_new_tokens=num_new)
    out = specdec.generate(target, **inputs, drafter=drafter, num_draft_tokens=4, max_new_tokens=num_new)
    assert torch.equal(out, expected)
    return out


def assert_works(target: Any, draft: Any, batches: tuple[int, ...] = (1, 3), num_new: int = 16) -> None:
    """As a target with both kinds of drafter and as a draft model, at each batch size; both objects stay as they were.

    Some of the draft's tokens must be accepted, or it would not have been tested.
    """
    # First, since the object's own generate() may write on it (peft sets attributes, bitsandbytes packs weights).
    expected = {n: target.generate(**prompts(n), max_new_tokens=num_new) for n in batches}
    draft.generate(**prompts(1), max_new_tokens=2)
    before = snapshot(target), snapshot(draft)
    for batch_size in batches:
        arguments = {**prompts(batch_size), "num_draft_tokens": 4, "max_new_tokens": num_new}
        out = specdec.generate(target, **arguments, drafter=specdec.NgramDrafter())
        assert torch.equal(out, expected[batch_size])
        speculative = specdec.generate(target, **arguments, drafter=draft, return_dict_in_generate=True)
        assert torch.equal(speculative.sequences, expected[batch_size])
        assert speculative.speculation.accepted
    for model, was in zip((target, draft), before, strict=True):
        assert_unchanged(was, snapshot(model))


def randomise(model: nn.Module, seed: int = 1, scale: float = 0.1) -> nn.Module:
    """Draws the trainable parameters (fresh adapters do nothing) and returns the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model
