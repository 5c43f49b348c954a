"""All of a model that a call could change, and of a cache."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

_HOOKS = [n for n in vars(torch.nn.Module()) if n.endswith("_hooks")]


def of_model(model: PreTrainedModel) -> dict[str, Any]:
    """Weights and buffers (values, places, whether they can be trained), configs, hooks, methods, modes, attributes."""
    out: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        out[f"value {name}"] = tensor.detach().clone()
        out[f"kind {name}"] = (tensor.requires_grad, tensor.is_inference(), tensor.dtype, tensor.device)
        out[f"grad {name}"] = tensor.grad
    for name, parameter in model.named_parameters():
        out[f"place {name}"] = parameter.data_ptr()
    for name, module in model.named_modules():
        out[f"mode {name}"] = module.training
        out[f"hooks {name}"] = {kind: list(getattr(module, kind)) for kind in _HOOKS}
        out[f"attributes {name}"] = sorted(vars(module))
        out[f"forward {name}"] = (vars(module).get("forward"), type(module).forward)
    out["config"] = json.dumps(model.config.to_dict(), default=str, sort_keys=True)
    out["config's attributes"] = copy.deepcopy({n: str(v) for n, v in vars(model.config).items()})
    out["generation config"] = copy.deepcopy(vars(model.generation_config))
    out["generate"] = (vars(model).get("generate"), type(model).generate)
    return out


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not the same; NaN is itself."""
    return sorted(n for n in one.keys() | other.keys() if n not in one or n not in other or not _same(one[n], other[n]))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(7.5), other.nan_to_num(7.5))
    return bool(one == other)


def of_cache(cache: Cache) -> list[Tensor]:
    """The keys and values of a DynamicCache."""
    return [states.clone() for layer in cache.layers for states in (layer.keys, layer.values)]
