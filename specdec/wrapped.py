"""The transformers model inside what the user holds: PEFT adapters and torch.compile wrap it.

Accelerate's hooks and quantisation change a model in place; they need nothing here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

from torch import nn

from specdec.errors import UnsupportedModelError

_REMEDY = "use peft_model.generate() for it, or an adapter of another kind (LoRA, IA3 and the like work)."
# Adapters that look at the whole call (its task ids, a first forward of their own), not at one forward.
_PER_CALL = ("POLY", "XLORA", "SHADOW")


def unwrap(model: Any) -> Any:
    """What to run in place of a model as the user holds it.

    - `torch.compile(model)`: the model itself. Its own `generate()` runs that one uncompiled, too.
    - `peft.PeftModel`: the base model, whose layers hold the adapters, whichever are active, merged or disabled.
    - anything else: as it is.

    Raises:
        UnsupportedModelError: an adapter outside the layers, or one that looks at the whole call.
    """
    while True:
        if "_orig_mod" in getattr(model, "_modules", {}):
            model = model._orig_mod
        elif _is_peft(model):
            _check_adapters(model)
            model = model.base_model.model
        else:
            return model


def uncompiled_call(model: nn.Module) -> Callable[..., Any]:
    """The model's `__call__` without its `model.compile()` or `model.forward = torch.compile(model.forward)`.

    Windows differ in width, extent and mask, and Dynamo would compile each kind anew: more than its limit of 8
    for a target and a draft, after which all models of the process run uncompiled (or raise, with
    fullgraph=True), the user's own calls as well. Hooks on the model itself run only where `forward` is its own.
    """
    forward = vars(model).get("forward")
    original = getattr(forward, "_torchdynamo_orig_callable", None)
    if original is not None:
        return cast(Callable[..., Any], original)
    return model._call_impl


def is_wrapped_call(model: nn.Module) -> bool:
    """Is the model's own call compiled, or its forward replaced on this object?"""
    return "forward" in vars(model) or getattr(model, "_compiled_call_impl", None) is not None


def _is_peft(model: Any) -> bool:
    """No adapter without peft imported, so it need not be a dependency."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel | peft.PeftMixedModel)


def _check_adapters(model: Any) -> None:
    """Raises UnsupportedModelError unless all that the active adapters do is inside the base model's layers."""
    active = model.active_adapters
    for name in [active] if isinstance(active, str) else active:
        config = model.peft_config[name]
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if config.is_prompt_learning:
            raise UnsupportedModelError(
                f"adapter {name!r} ({kind}) puts virtual tokens before the prompt, which only peft adds: {_REMEDY}"
            )
        if kind in _PER_CALL or getattr(config, "alora_invocation_tokens", None) is not None:
            raise UnsupportedModelError(
                f"adapter {name!r} ({kind}) looks at the whole prompt of a call, not at one forward: {_REMEDY}"
            )
