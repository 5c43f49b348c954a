"""A second device on a machine that has one: tensors of the CPU that say they are on "cpu:1".

Operations are computed for real. As on GPUs, one that meets tensors of both devices raises, unless it copies, or one of
them is a number; an index may stay on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FIRST, SECOND = torch.device("cpu"), torch.device("cpu", 1)
_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default}


class Far(Tensor):
    """A tensor on the second device: `near` is what it holds."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        made = Tensor._make_wrapper_subclass(
            cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device=SECOND
        )
        made.near = near
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.near})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("a tensor of the second device is used outside of two_devices()")


class Devices(TorchDispatchMode):
    """Sees what makes new tensors as well. `crossings` counts copies between the devices."""

    def __init__(self) -> None:
        super().__init__()
        self.crossings = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # inference mode leaves operations whole that are made of others
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        if func in _COPIES:
            before = args[0].device
            target = kwargs.get("device") or (args[1].device if func is _aten.copy_.default else before)
            self.crossings += before != target
        return _run(func, args, kwargs)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    places = {isinstance(t, Far) for t in tensors if t.dim()} or {isinstance(t, Far) for t in tensors}
    if len(places) > 1 and func not in _COPIES:
        if func not in _INDEXING or not isinstance(args[0], Far):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found two in {func}.")
        places = {True}
    wanted = kwargs.get("device")
    is_far = wanted == SECOND if wanted is not None else isinstance(args[0], Far) if func in _COPIES else True in places
    near = tree_map(lambda t: t.near if isinstance(t, Far) else t, (args, kwargs))
    if wanted is not None:
        near[1]["device"] = FIRST
    out = func(*near[0], **near[1])
    if func._schema.name.endswith("_") and not func._schema.name.endswith("__"):
        return args[0]
    return tree_map(lambda t: Far(t) if isinstance(t, Tensor) and is_far else t, out)


def move(module: nn.Module) -> None:
    """Puts a module's weights and buffers on the second device."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(Far(parameter.detach()), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = Far(buffer)


class _Made(TorchFunctionMode):
    """`torch.tensor` makes its tensor where no dispatch sees the device; `tolist` knows no other kinds of tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": FIRST}).to(kwargs["device"])
        if func is Tensor.tolist and isinstance(args[0], Far):
            return args[0].near.tolist()
        return func(*args, **kwargs)


@contextmanager
def two_devices() -> Iterator[Devices]:
    with _Made(), Devices() as devices:
        yield devices
