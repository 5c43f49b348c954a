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
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from specdec.cache import RollbackCache
from specdec.errors import UnsupportedModelError
from specdec.prompt import PromptInputs
from specdec.types import Proposal
from specdec.window import Plan, Window, plan, to_additive
from specdec.wrapped import uncompiled_call

_ATTENTION = ("eager", "sdpa")  # take a 4D mask per row
_NO_MASK = "takes no mask per row, which {what} need. Load it with attn_implementation='sdpa' instead."


@dataclass(frozen=True, slots=True)
class TargetOutput:
    """What one forward gives."""

    logits: Tensor  # [B, K, V] of the window's tokens that were asked for, in the model's dtype
    hidden_states: tuple[Tensor, ...] | None  # where asked: embeddings and every layer's output, each [B, W, H]


class ModelRunner:
    """Runs windows of one causal language model through a RollbackCache.

    Args:
        model: any decoder-only model with full attention, `position_ids` and a transformers `Cache`.

    Raises:
        UnsupportedModelError: the model has another kind of memory, or attention that takes no 4D mask.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        config = model.config.get_text_config(decoder=True)
        names = parameters(model.forward)
        check_supported(model, config, names)
        self._embeddings = model.get_input_embeddings()
        self.num_layers: int = config.num_hidden_layers
        self.vocab_size: int = config.vocab_size
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None)
        self.rope_switch: int | None = _rope_switch(config)
        self.takes_masks = config._attn_implementation in _ATTENTION
        self._keeps_logits = "logits_to_keep" in names

    @property
    def device(self) -> torch.device:
        """Where the model takes its input now; it may have been moved since."""
        return _device_of(self._embeddings, self.model)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def new_cache(self, batch_size: int, capacity: int) -> RollbackCache:
        """An empty cache for this model with room for `capacity` tokens a row."""
        return RollbackCache(self.num_layers, batch_size, self.device, capacity)

    def check_batch(self, batch_size: int) -> None:
        """Raises UnsupportedModelError for a batch whose rows accept different amounts, where no mask can say so."""
        if batch_size > 1 and not self.takes_masks:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} runs flash attention, which "
                f"{_NO_MASK.format(what=f'batches ({batch_size} rows)')} Or decode one prompt a call."
            )

    def plan(self, seen: Sequence[int], lengths: Sequence[int], proposal: Proposal) -> Plan:
        """The window of rows of which the cache has seen `seen` of `lengths` tokens.

        Raises:
            UnsupportedModelError: it needs a mask, and the attention takes none.
        """
        shape = plan(seen, lengths, proposal, causal_at_end=not self.takes_masks)
        if shape.masked and not self.takes_masks:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} runs flash attention, which {_NO_MASK.format(what='draft trees')}"
            )
        return shape

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
        if not self.takes_masks:
            # transformers takes positions that do not go on for several sequences packed into one row, so those of
            # a window's padding must go on too. Slots do, and for a chain of one row they are the positions.
            window = replace(window, positions=window.slots)
        cache.begin(window.slots, window.extent, window.level)
        mask = None if window.mask is None else to_additive(window.mask, self.dtype)
        kwargs: dict[str, Any] = {"input_ids": window.tokens, "position_ids": window.positions}
        if self._keeps_logits:
            kwargs["logits_to_keep"] = keep if isinstance(keep, int) else torch.tensor(keep)
        if hidden_states:
            kwargs["output_hidden_states"] = True
        if prompt is not None:
            kwargs.update(prompt.inputs(window, is_prompt))
        forward = uncompiled_call(self.model)
        output = forward(attention_mask=mask, past_key_values=cache, use_cache=True, return_dict=True, **kwargs)
        logits: Tensor = output.logits
        if isinstance(keep, int):
            logits = logits[:, -keep:]
        elif not self._keeps_logits:
            logits = logits[:, torch.tensor(keep)]
        # A model spread over devices ends on another one.
        return TargetOutput(logits.to(self.device), output.hidden_states if hidden_states else None)


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
    if first == max(roots):
        return logits[:, : num_nodes + 1]
    index = torch.tensor(roots, device=logits.device)[:, None] - first
    index = index + torch.arange(num_nodes + 1, device=logits.device)
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
    """Raises UnsupportedModelError, naming the reason and the remedy, for memory that cannot be rolled back yet."""
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder model; specdec decodes decoder-only models so far.")
    if "past_key_values" not in parameters and "cache_params" not in parameters:
        raise UnsupportedModelError(f"{name}.forward takes no cache (past_key_values), so nothing can be rolled back.")
    if getattr(model, "_is_stateful", False) or "past_key_values" not in parameters:
        raise UnsupportedModelError(
            f"{name} keeps a recurrent state, which specdec cannot roll back yet. Use model.generate() for it."
        )
    layer_types = set(getattr(config, "layer_types", None) or [])
    windowed = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if layer_types - {"full_attention"} or (windowed and not layer_types):
        kinds = sorted(layer_types - {"full_attention"}) or [f"sliding_window={windowed}"]
        raise UnsupportedModelError(
            f"{name} has layers that are not full attention ({', '.join(kinds)}), which specdec cannot roll back yet. "
            "Use model.generate() for it."
        )
    if "local" in (getattr(config, "attention_layers", None) or []):
        raise UnsupportedModelError(
            f"{name} has local attention layers, whose window it keeps by slot and not by position. "
            "Use model.generate() for it."
        )
    if "position_ids" not in parameters:
        raise UnsupportedModelError(
            f"{name}.forward takes no position_ids, so rows of different lengths cannot be verified together."
        )
    attention = getattr(config, "_attn_implementation", "eager")
    if attention not in _ATTENTION and not is_flash_attention_requested(config):
        raise UnsupportedModelError(
            f"{name} runs attn_implementation={attention!r}, which {_NO_MASK}".format(what="drafts")
        )
    if getattr(config, "alibi", False):
        raise UnsupportedModelError(f"{name} uses ALiBi, whose bias cannot be given per-row positions.")
