"""What a compiled package depends on, as one key: the model's weights and code, versions, threads, the processor."""

from __future__ import annotations

import hashlib
import inspect
import json
import pathlib
import platform
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch._inductor import cpu_vec_isa
from transformers import PreTrainedModel

# The files beside this one that decide what is in a package.
_OWN = ("attention.py", "graph.py", "options.py", "products.py")
_INERT = "transformers.utils.output_capturing"  # its hooks stay on a model, and do nothing while nobody asks
_PLAIN = frozenset((bool, int, float, str, tuple, type(None)))  # attributes of modules that a graph takes for constants
_NO_PART = ("name_or_path", "generate")  # attributes that say nothing about a forward
_SAMPLES = 32  # values of each weight that are compared at each call
_hashes: weakref.WeakKeyDictionary[PreTrainedModel, tuple[object, str]] = weakref.WeakKeyDictionary()


def key_of(model: PreTrainedModel, stamp: object = None) -> str:
    """Names the package of this model, as it is now, on this machine, with this number of threads.

    Frozen packages hold the weights, so that these are hashed byte by byte the first time (a second a gigabyte) and
    whenever they have changed.

    Args:
        stamp: of the weights as they are now, if it is known already.
    """
    parts = [weights_hash(model, stamp), _structure(model), str(model.dtype), str(model.device), environment()]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Survey:
    """What a walk over a model's modules shows; made at each call, so it must be quick.

    Args:
        tensors: parameters and buffers, each once.
        is_hooked: a module has hooks.
        structure: the modules' classes and their plain attributes, as text; the same in another process.
        configs: their configs, each once.
    """

    tensors: list[Tensor]
    is_hooked: bool
    structure: str
    configs: list[Any]

    @torch.no_grad()
    def stamp(self) -> object:
        """Changes with the model: structure and configs, where its weights lie, torch's count of writes, some values.

        The values notice what writes through `.data`, which torch does not count.
        """
        samples: dict[torch.dtype, list[Tensor]] = {}
        for tensor in self.tensors:
            size = tensor.numel()
            flat = tensor if tensor.is_contiguous() else tensor.contiguous()
            taken = min(size, _SAMPLES)
            if taken:
                samples.setdefault(flat.dtype, []).append(flat.as_strided((taken,), (size // taken,)))
        values = tuple(_bytes(torch.cat(kin)) for kin in samples.values())
        places = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in self.tensors)
        return places, values, self.structure, tuple(str(vars(config)) for config in self.configs)


def survey(model: nn.Module) -> Survey:
    """Walks over the modules once."""
    tensors: dict[int, Tensor] = {}
    configs: dict[int, Any] = {}
    structure: list[str] = []
    is_hooked, seen, waiting = False, set[int](), [model]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        is_hooked |= "_hf_hook" in module.__dict__ or any(getattr(h, "__module__", "") != _INERT for h in hooks)
        structure.append(f"{len(waiting)} {type(module).__module__}.{type(module).__qualname__}")
        for name, value in module.__dict__.items():
            if name.startswith("_") or name in _NO_PART:
                continue
            if type(value) in _PLAIN:
                structure.append(f"{name}={value!r}")
            elif hasattr(value, "to_dict"):
                configs[id(value)] = value
            elif hasattr(value, "__qualname__"):
                structure.append(f"{name}={value.__module__}.{value.__qualname__}")
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                tensors[id(tensor)] = tensor
        waiting.extend(m for m in module._modules.values() if m is not None)
    return Survey(list(tensors.values()), is_hooked, "\n".join(structure), list(configs.values()))


def weights_hash(model: PreTrainedModel, stamp: object = None) -> str:
    """Of all parameters and buffers, with their names and shapes."""
    now = survey(model).stamp() if stamp is None else stamp
    known = _hashes.get(model)
    if known is not None and known[0] == now:
        return known[1]
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in _tensors(model):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(_bytes(tensor.detach()))
    _hashes[model] = (now, digest.hexdigest())
    return digest.hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.reshape(-1).contiguous().cpu()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _structure(model: PreTrainedModel) -> str:
    """The modules, the config and the code of the model's own file (transformers' version covers its own)."""
    config: dict[str, Any] = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures"):
        config.pop(name, None)
    kind = type(model)
    source = "" if kind.__module__.startswith("transformers.") else _source(kind.__module__)
    return "\n".join([source, survey(model).structure, json.dumps(config, default=str)])


@cache
def _source(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError):
        return module


def environment() -> str:
    """Versions, processor and threads."""
    return f"{_machine()} threads {torch.get_num_threads()}"


@cache
def _machine() -> str:
    here = pathlib.Path(__file__).parent
    own = hashlib.blake2b(b"".join((here / name).read_bytes() for name in _OWN), digest_size=8).hexdigest()
    isa = str(cpu_vec_isa.pick_vec_isa()) if not torch.cuda.is_available() else ""
    flags = ""
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))]
        flags = hashlib.blake2b(" ".join(sorted(lines[0].split())).encode(), digest_size=8).hexdigest() if lines else ""
    versions = f"torch {torch.__version__} transformers {transformers.__version__} specdec {own}"
    return f"{versions} {platform.system()} {platform.machine()} {isa} {flags}"
