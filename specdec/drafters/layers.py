"""A model with some of its decoder layers left out: a second set of modules around the same weights.

Nothing of the model is written. Copied are the few modules on the way from the model to its list of layers, and their
configs; layers, embeddings, norm and head are the model's own objects, so that weights that are changed, moved or
merged are those of the clone as well. Layers keep their own index: each finds its own memory in the model's cache.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from specdec.errors import UnsupportedModelError
from specdec.ranks import ranks_of
from specdec.target import parameters
from specdec.wrapped import uncompiled_call

_DEPTHS = frozenset("num_hidden_layers n_layer n_layers num_layers num_layer decoder_layers num_decoder_layers".split())
# Attributes of one object, bound to it: they would run the whole model, or keep it alive.
_BOUND = ("forward", "generate", "_compiled_call_impl")
_PLAIN = (bool, int, float, str, tuple, type(None))
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Made:
    """A clone, and what the model's modules on its way were like when it was made."""

    clone: PreTrainedModel
    attributes: list[dict[str, Any]]
    configs: list[str]


_made: weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple[int, ...], _Made]] = weakref.WeakKeyDictionary()


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of a model's decoder layers: the only one under its decoder that is as long as its config says.

    Raises:
        UnsupportedModelError: there is none, or more than one; or something has replaced the forward of a module above
            it, which would run all layers.
    """
    name = type(model).__name__
    decoder: Any = model.get_decoder()
    depth = _depth(model.config)
    found = [m for m in _outermost_lists(decoder) if len(m) == depth]
    if len(found) != 1:
        raise UnsupportedModelError(
            f"{name} has {len(found)} lists of {depth} modules in its decoder, where its layers should be the only "
            "one: its own layers cannot draft. Use ModelDrafter(draft) or NgramDrafter()."
        )
    for module in _way(model, found[0]):
        forward = vars(module).get("forward")
        if forward is not None and not hasattr(forward, "_torchdynamo_orig_callable"):
            raise UnsupportedModelError(
                f"the forward of this {name}'s {type(module).__name__} has been replaced (accelerate does so for a "
                "model on several devices), and would run all layers: its own layers cannot draft. Load it on one "
                "device, or use ModelDrafter(draft) or NgramDrafter()."
            )
    return found[0]


def check_moved(layers: nn.ModuleList, kept: Sequence[int]) -> None:
    """Raises UnsupportedModelError for layers that are told their place at each call, if some of them moved."""
    if list(kept) == list(range(len(kept))):
        return
    for layer in layers:
        if "layer_idx" in parameters(layer.forward):
            raise UnsupportedModelError(
                f"a {type(layer).__name__} is told its place among the layers at each call, and would find another's "
                "memory with layers before it left out: use EarlyExitDrafter, which leaves out the last ones."
            )


def with_layers(model: PreTrainedModel, kept: Sequence[int], *, keep: bool = True) -> PreTrainedModel:
    """The model with the layers `kept` only (ascending indices); the same object for as long as the model is the same.

    Hooks that the user has put on the modules above the layers do not run in it; those on layers do.

    Args:
        keep: the clone stays with the model, so that later calls (and what is compiled for it) find it again.

    Raises:
        UnsupportedModelError: see `decoder_layers`.
    """
    key = tuple(kept)
    layers = decoder_layers(model)
    check_moved(layers, kept)
    way = [*_way(model, layers), layers]
    if not keep:
        return _cut_clone(model, layers, key, way)
    with _LOCK:
        known = _made.setdefault(model, {})
        found = known.get(key)
        if found is None or not _is_current(found, way):
            found = known[key] = _Made(_cut_clone(model, layers, key, way), *_state(way))
        return found.clone


@torch.inference_mode()
def choices_along(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """[1, T] the likeliest token behind each of the tokens [1, T]."""
    choice: Tensor = uncompiled_call(model)(input_ids=tokens, use_cache=False, return_dict=True).logits.argmax(-1)
    ranks = ranks_of(model)
    return choice if ranks is None else ranks.lead(choice)


def _cut_clone(
    model: PreTrainedModel, layers: nn.ModuleList, kept: tuple[int, ...], way: Sequence[nn.Module]
) -> PreTrainedModel:
    """A new clone whose configs say what it has."""
    made: dict[int, nn.Module] = {}
    clone = _clone(model, layers, kept, {id(m) for m in way}, made, {})
    for config in _configs(list(made.values())):
        kinds = _kinds(config)
        _cut(config, len(layers), kept)
        if kinds is not None and len(kinds) == len(layers) and _kinds(config) != [kinds[k] for k in kept]:
            raise UnsupportedModelError(
                f"{type(model).__name__}'s config cannot say that it has some of its layers only, which are of "
                "several kinds: its own layers cannot draft. Use ModelDrafter(draft) or NgramDrafter()."
            )
    return cast(PreTrainedModel, clone)


def _depth(config: Any) -> int | None:
    """Layers of the decoder."""
    if getattr(config, "is_encoder_decoder", False):  # their num_hidden_layers are the encoder's
        for name in ("decoder_layers", "num_decoder_layers"):
            if getattr(config, name, None) is not None:
                return int(getattr(config, name))
    return getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Lists of modules that are in no other list (experts are)."""
    for child in module._modules.values():
        if isinstance(child, nn.ModuleList):
            yield child
        elif child is not None:
            yield from _outermost_lists(child)


def _way(module: nn.Module, layers: nn.Module) -> Iterator[nn.Module]:
    """The modules above `layers`, from the model down, each once."""
    seen: set[int] = set()

    def above(module: nn.Module) -> list[nn.Module]:
        if id(module) in seen or isinstance(module, nn.ModuleList):
            return []
        seen.add(id(module))
        children = [c for c in module._modules.values() if c is not None]
        below = [m for c in children for m in above(c)]
        return [module, *below] if below or any(c is layers for c in children) else []

    yield from above(module)


def _clone(
    module: nn.Module,
    layers: nn.ModuleList,
    kept: tuple[int, ...],
    way: set[int],
    made: dict[int, nn.Module],
    memo: dict[int, Any],
) -> nn.Module:
    """A module on the way anew, around the same children where these are not; `memo` is that of the configs' copies."""
    if module is not layers and id(module) not in way:
        return module
    if id(module) in made:  # under a second name
        return made[id(module)]
    kind: Any = type(module)
    new: nn.Module = kind.__new__(kind)
    for name, value in vars(module).items():
        if isinstance(value, PreTrainedConfig):
            value = copy.deepcopy(value, memo)
        elif "_hooks" in name and isinstance(value, dict):
            value = OrderedDict()
        if name not in _BOUND:
            new.__dict__[name] = value
    made[id(module)] = new
    if module is layers:
        new.__dict__["_modules"] = {str(i): layers[k] for i, k in enumerate(kept)}
    else:
        children = module._modules.items()
        new.__dict__["_modules"] = {
            name: None if c is None else _clone(c, layers, kept, way, made, memo) for name, c in children
        }
    return new


def _configs(modules: Sequence[nn.Module]) -> list[Any]:
    """The decoder's configs of these modules, each once."""
    found: dict[int, Any] = {}
    for module in modules:
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig):
            for part in (config, config.get_text_config(decoder=True)):
                found[id(part)] = part
    return list(found.values())


def _cut(config: Any, depth: int, kept: tuple[int, ...]) -> None:
    """Makes a config say that only these of `depth` layers are there."""
    values = vars(config)  # past the checks of attributes, which hold for all of them together only
    for name, value in list(values.items()):
        if name in _DEPTHS and value == depth:
            values[name] = len(kept)
        elif isinstance(value, list | tuple) and len(value) == depth and not _are_indices(name, value):
            values[name] = type(value)(value[k] for k in kept)
        elif isinstance(value, list | tuple) and _are_indices(name, value):
            values[name] = type(value)(kept.index(v) for v in value if v in kept)


def _are_indices(name: str, values: Sequence[Any]) -> bool:
    """Does a list name some of the layers, by their places?"""
    words = ("layer_indices", "layers_indices", "layer_ids", "layer_idxs", "layers_idxs")
    return name.endswith(words) and all(type(v) is int for v in values)


def _kinds(config: Any) -> list[Any] | None:
    """What each layer is; a property in some configs, made of other values."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    return None if kinds is None else list(kinds)


def _state(modules: Sequence[nn.Module]) -> tuple[list[dict[str, Any]], list[str]]:
    """What a clone copies of these modules: their children, plain attributes and tables of weights; and configs."""
    attributes: list[dict[str, Any]] = []
    for module in modules:
        values = {n: v for n, v in vars(module).items() if isinstance(v, _PLAIN) or n in ("_parameters", "_buffers")}
        children = {f"module {name}": child for name, child in module._modules.items()}
        attributes.append({**{n: v for n, v in values.items() if n not in _BOUND}, **children})
    return attributes, [str(vars(c)) for c in _configs(modules)]


def _is_current(made: _Made, modules: Sequence[nn.Module]) -> bool:
    """Is all that the clone was made of still as it was?"""
    attributes, configs = _state(modules)
    if len(attributes) != len(made.attributes) or configs != made.configs:
        return False
    for then, now in zip(made.attributes, attributes, strict=True):
        for name, value in then.items():
            other = now.get(name, made)
            if other is not value and not (isinstance(value, _PLAIN) and other == value):
                return False
    return True
