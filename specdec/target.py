"""One forward of one Hugging Face model; every quirk of versions and architectures lives here.

Serves targets and draft models alike. Nothing of the model is changed: no config, no buffer, no hook.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import EncoderDecoderCache, PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from specdec.cache import LayerKind, RollbackCache, layer_kinds
from specdec.errors import UnsupportedModelError
from specdec.prompt import PromptInputs
from specdec.ranks import Ranks, ranks_of
from specdec.types import Proposal
from specdec.window import Plan, Window, plan, sliding_mask, to_additive
from specdec.wrapped import uncompiled_call

_MASKED = ("eager", "sdpa")  # attention that takes a 4D mask per row


@dataclass(frozen=True, slots=True)
class Layout:
    """What a model's windows must look like for its output to be right.

    Args:
        level: all rows stand at the same slot, as in transformers, since positions or masks are the batch's and not a
            row's; a round commits what its slowest row accepted.
        padded: level rows may begin with padding; else prompts must be of one length.
        trees: a window may be a tree.
        stepwise: a cached forward takes one token; drafts cannot be verified together.
    """

    level: bool = False
    padded: bool = True
    trees: bool = True
    stepwise: bool = False


@dataclass(frozen=True, slots=True)
class TargetOutput:
    """What one forward gives."""

    logits: Tensor  # [B, K, V] of the window's tokens that were asked for, in the model's dtype
    hidden_states: tuple[Tensor, ...] | None  # where asked: embeddings and every layer's output, each [B, W, H]


class ModelRunner:
    """Runs windows of one language model, or of an encoder-decoder's decoder, through a RollbackCache.

    Attributes:
        is_encoder_decoder: it has an encoder of its own.
        attends_to_encoder: its forward takes an encoder's output.
        kinds: what each layer remembers.
        is_mixed: some layers attend to everything, and some to a window.
        layout: how its windows look: the best that its class admits, until `probe` has tried it.
        replays: it has recurrent states, so that rows are fed again what they accepted; windows hold no padding then.
        longest_window: a prompt is fed in parts of at most so many tokens; None means at once.
        ranks: the processes that share a sharded model; None where it is whole.

    Raises:
        UnsupportedModelError: memory that cannot be rolled back.
    """

    longest_window: int | None = None

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.ranks: Ranks | None = ranks_of(model)
        config = model.config.get_text_config(decoder=True)
        names = parameters(model.forward)
        check_supported(model, config, names)
        self._names = names
        self.is_encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
        self.prefix = "decoder_" if self.is_encoder_decoder else ""
        self.attends_to_encoder = "encoder_outputs" in names
        self._cache_name = "past_key_values" if "past_key_values" in names else "cache_params"
        self._embeddings = model.get_input_embeddings()
        self.kinds: Sequence[LayerKind] = layer_kinds(config, type(model).__name__)
        self.num_layers: int = len(self.kinds)
        self._follow(self.kinds)
        self.layouts = _layouts(config, f"{self.prefix}position_ids" in names, self.replays)
        self.layout = self.layouts[0]
        self.vocab_size: int = config.vocab_size
        self.max_positions = _max_positions(config)
        self.rope_switch: int | None = _rope_switch(config)
        self._keeps_logits = "logits_to_keep" in names

    def _follow(self, kinds: Sequence[LayerKind]) -> None:
        """What windows look like for layers of these kinds."""
        self.replays = any(kind.num_states for kind in kinds)
        self._windows = {kind.window for kind in kinds if kind.window is not None}
        self.is_mixed = any(kind.attention and kind.window is None for kind in kinds) and bool(self._windows)
        self._attends = any(kind.attention for kind in kinds)

    def takes(self, name: str) -> bool:
        """Does the model's forward have a parameter of this name?"""
        return name in self._names

    @property
    def device(self) -> torch.device:
        """Where the model takes its input now; it may have been moved since."""
        return _device_of(self._embeddings, self.model)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def new_cache(self, batch_size: int, capacity: int, most: int | None = None) -> RollbackCache:
        """An empty cache for this model with room for `capacity` tokens a row, and at most for `most` if given."""
        kinds: Sequence[LayerKind] = self.kinds
        if self.layout.level:  # transformers' own masks then, which know slots in order
            kinds = [replace(kind, window=None) for kind in kinds]
        return RollbackCache(kinds, batch_size, self.device, capacity, most=most)

    def plan(
        self, seen: Sequence[int], lengths: Sequence[int], proposal: Proposal, most: Sequence[int] | None = None
    ) -> Plan:
        """The window of rows of which the cache has seen `seen` of `lengths` tokens."""
        return plan(seen, lengths, proposal, causal_at_end=self.layout.level, most=most)

    def release(self) -> None:
        """Undoes what inference mode leaves on a model: buffers that a forward replaced could not be trained with."""
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_inference():
                    module._buffers[name] = buffer.clone()

    def forward(
        self,
        window: Window,
        cache: RollbackCache,
        keep: int | Sequence[int],
        prompt: PromptInputs | None = None,
        *,
        is_prompt: bool = False,
        hidden_states: bool = False,
    ) -> TargetOutput:
        """Runs the window and returns the logits of its last `keep` tokens, or of those at the indices `keep`.

        Opens the cache's window; the caller commits it.

        Args:
            prompt: what the prompt brings besides token ids.
            is_prompt: this is the prompt's own forward.
            hidden_states: return them as well.
        """
        committed = window.num_pending if window.num_nodes == 0 else None
        cache.begin(window.slots, window.extent, window.level, committed, window.is_kept)
        kwargs: dict[str, Any] = {f"{self.prefix}input_ids": window.tokens}
        if f"{self.prefix}position_ids" in self._names:
            # Flash attention takes positions that do not go on for several texts packed into one row, so those of a
            # level window's padding must go on, too.
            is_plain = self.layout.level and window.columns is None
            kwargs[f"{self.prefix}position_ids"] = window.slots if is_plain else window.positions
        if self._keeps_logits:
            kwargs["logits_to_keep"] = keep if isinstance(keep, int) else torch.tensor(keep)
        if hidden_states:
            kwargs["output_hidden_states"] = True
        if prompt is not None:
            kwargs.update(prompt.inputs(window, is_prompt))
        if f"{self.prefix}attention_mask" in self._names:
            kwargs[f"{self.prefix}attention_mask"] = self._mask(window, cache)
        # Made anew each time: a cache that held it would be a cycle.
        kwargs[self._cache_name] = EncoderDecoderCache(cache, cache.cross) if self.attends_to_encoder else cache
        output = uncompiled_call(self.model)(use_cache=True, return_dict=True, **kwargs)
        logits: Tensor = output.logits
        if isinstance(keep, int):
            logits = logits[:, -keep:]
        elif not self._keeps_logits:
            logits = logits[:, torch.tensor(keep)]
        states = output.decoder_hidden_states if self.is_encoder_decoder else getattr(output, "hidden_states", None)
        # A model spread over devices ends on another one.
        return TargetOutput(logits.to(self.device), states if hidden_states else None)

    def _mask(self, window: Window, cache: RollbackCache) -> Tensor | dict[str, Tensor | None] | None:
        """The attention mask in the form that the model takes; None where plain causal attention is right."""
        if self.layout.level:
            return None if window.columns is None else window.columns.long()
        if not self._attends or (window.mask is None and not any(map(cache.is_ring, self._windows))):
            return None
        full = None if window.mask is None else to_additive(window.mask, self.dtype)
        if not self._windows:
            return full
        (size,) = self._windows
        sliding = to_additive(sliding_mask(window, cache.key_slots(size), size), self.dtype)
        return {"full_attention": full, "sliding_attention": sliding} if self.is_mixed else sliding


def kept_logits(roots: Sequence[int], width: int, num_nodes: int) -> int | list[int]:
    """Which logits of a window of `width` tokens a forward must give, for roots at the given indices.

    A ragged prefill needs one a row: its rows' last tokens, not all between the shortest row's end and the longest's,
    each of which would cost a product with the whole vocabulary.
    """
    if num_nodes == 0 and min(roots) < max(roots):
        return sorted(set(roots))
    return width - min(roots)


def at_nodes(logits: Tensor, keep: int | Sequence[int], roots: Sequence[int], num_nodes: int) -> Tensor:
    """Each row's root and nodes [B, N + 1, V], from the logits [B, K, V] that `kept_logits` named."""
    if not isinstance(keep, int):
        place = torch.tensor([keep.index(r) for r in roots], device=logits.device)
        return logits[torch.arange(len(roots), device=logits.device), place][:, None]
    first = min(roots)
    if first == max(roots) and logits.shape[1] > num_nodes:
        return logits[:, : num_nodes + 1]
    index = torch.tensor(roots, device=logits.device)[:, None] - first
    # A window that cuts a row's proposal short ends before its last nodes, which are not valid then.
    index = (index + torch.arange(num_nodes + 1, device=logits.device)).clamp(max=logits.shape[1] - 1)
    return logits.gather(1, index[:, :, None].expand(-1, -1, logits.shape[2]))


def _rope_switch(config: Any) -> int | None:
    """The length from which longrope rotates by other frequencies, for the whole sequence."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    return rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)


def input_device(model: PreTrainedModel) -> torch.device:
    """Where the model takes its token ids: not model.device when layers are spread, or on "meta" when offloaded."""
    return _device_of(model.get_input_embeddings(), model)


def _device_of(embeddings: torch.nn.Module, model: PreTrainedModel) -> torch.device:
    return _execution_device(embeddings) or _execution_device(model) or next(embeddings.parameters()).device


def _execution_device(module: torch.nn.Module) -> torch.device | None:
    """Where accelerate runs a module whose weights it may keep elsewhere; None without its hook."""
    hook: Any = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)):  # several hooks are chained in one
        device = getattr(part, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return None


def parameters(method: Any) -> frozenset[str]:
    """Names of a method's parameters, remembered per class: a millisecond saved at each call's start."""
    function = getattr(method, "__func__", None)  # what a hook put in a method's place is not kept alive
    return _parameters(function) if function is not None else frozenset(inspect.signature(method).parameters)


@lru_cache(maxsize=64)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def check_supported(model: PreTrainedModel, config: Any, parameters: frozenset[str]) -> None:
    """Raises UnsupportedModelError, naming the reason and the remedy, for memory that nothing here can roll back."""
    name = type(model).__name__
    if "past_key_values" not in parameters and "cache_params" not in parameters:
        raise UnsupportedModelError(
            f"{name}.forward takes no cache (past_key_values or cache_params), so nothing can be rolled back. "
            "Use model.generate() for it."
        )
    if "local" in (getattr(config, "attention_layers", None) or []):
        raise UnsupportedModelError(
            f"{name} has local attention layers, whose window it keeps by slot and not by position. "
            "Use model.generate() for it."
        )
    attention = getattr(config, "_attn_implementation", "eager")
    if attention not in _MASKED and not is_flash_attention_requested(config):
        raise UnsupportedModelError(
            f"{name} runs attn_implementation={attention!r}, which takes no mask per row. Load it with "
            "attn_implementation='sdpa' instead."
        )


def _layouts(config: Any, takes_positions: bool, replays: bool) -> tuple[Layout, ...]:
    """What to try, the best first: what the signature and the config do not exclude."""
    drafting = []
    masked = getattr(config, "_attn_implementation", "eager") in _MASKED
    # A model of recurrent states alone knows neither masks nor positions, and needs none.
    if masked and (takes_positions or replays) and not getattr(config, "alibi", False):
        drafting.append(Layout(trees=not replays))
    drafting += [Layout(level=True, padded=padded, trees=False) for padded in (True, False)]
    return (*drafting, *(replace(layout, trees=False, stepwise=True) for layout in drafting))


def _max_positions(config: Any) -> int | None:
    """Positions that the decoder has; None where it has no end."""
    for name in ("max_target_positions", "max_position_embeddings"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    return None
