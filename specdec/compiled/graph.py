"""The step that is compiled: masks, one forward over the cache's own buffers, and greedy acceptance.

A pure function of tensors but for the keys and values, which are written in place. Every size is free (rows, tokens,
slots, logits wanted), so that ONE graph serves prefill, plain steps, drafting and verification, ragged batches and
trees, and nothing is ever compiled again. A rejected token costs nothing: its slot lies behind the length that the
next step starts from.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from specdec.cache.layers import NoLayer
from specdec.compiled.attention import NAME
from specdec.target import ModelRunner
from specdec.window import to_additive

MemoryShape = tuple[int, int, int]  # heads, and the widths of a key and of a value

# Sizes that the graph is traced at. None is 0 or 1, which would be taken for constants.
_ROWS, _WIDTH, _SLOTS = 3, 5, 64


class Views(CacheLayerMixin):
    """One layer's buffers [B, H, n, D] for one forward."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self._slots = slots
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The buffers are there."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the window's states [B, H, W, D] to its slots; returns the whole buffers."""
        keys, values = self.keys, self.values
        assert keys is not None and values is not None
        batch_size, heads = keys.shape[:2]
        rows = torch.arange(batch_size, device=keys.device)[:, None, None]
        planes = torch.arange(heads, device=keys.device)[None, :, None]
        place = (rows, planes, self._slots[:, None, :])
        keys.index_put_(place, key_states.to(keys.dtype))
        values.index_put_(place, value_states.to(values.dtype))
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        assert self.keys is not None
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class StepGraph(nn.Module):
    """One window of a model as a function of tensors.

    Args:
        runner: of a model all of whose layers attend, over everything or over a window.
    """

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__()
        self.model = shared_copy(runner.model)
        self._has_memory = [kind.attention for kind in runner.kinds]
        self._windows = {kind.window for kind in runner.kinds if kind.window is not None}
        self._is_mixed = runner.is_mixed
        self._takes_positions = runner.takes("position_ids")
        self._keeps_logits = runner.takes("logits_to_keep")
        self._last_position = None if runner.max_positions is None else runner.max_positions - 1
        self._dtype = runner.dtype
        self._vocab_size = runner.vocab_size

    def forward(
        self,
        tokens: Tensor,
        offsets: Tensor,
        related: Tensor,
        starts: Tensor,
        num_valid: Tensor,
        keep: Tensor,
        memory: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Runs a window and verifies the chain in it.

        Args:
            tokens: [B, W] int64.
            offsets: [B, W] int64, each token's position counted from the row's start.
            related: [B, W, W] bool, which token of the window may look at which.
            starts: [B] int64, the slot (and position) of each row's first token; all before it is looked at.
            num_valid: [B] int64, drafted tokens of each row's chain.
            keep: [K] int64, tokens of the window whose logits are wanted.
            memory: keys [B, H, n, D] and values of each layer in turn; written in place.

        Returns:
            outcome [B, 3 + K] int64: drafted tokens; how many are accepted, each being its predecessor's argmax, in a
            chain behind token keep[0]; 1 where an id is outside the vocabulary; then the argmax at each kept
            token, which are the accepted tokens and the one behind them; -1 where a logit is NaN.
            ends [B] int64: the slot behind the last accepted token.
            logits [B, K, V].
        """
        width, num_slots, device = tokens.shape[1], memory[0].shape[2], tokens.device
        known = tokens.clamp(0, self._vocab_size - 1)
        broken = (known != tokens).any(1)
        slots = starts[:, None] + torch.arange(width, device=device)
        positions = starts[:, None] + offsets
        if self._last_position is not None:  # padding may stand behind the end
            positions = positions.clamp(max=self._last_position)
        kwargs: dict[str, Any] = {
            "input_ids": known,
            "attention_mask": self._mask(offsets, related, starts, num_slots),
        }
        if self._takes_positions:
            kwargs["position_ids"] = positions
        if self._keeps_logits:
            kwargs["logits_to_keep"] = keep
        buffers = iter(memory)
        layers: list[Any] = [
            Views(next(buffers), next(buffers), slots) if has_memory else NoLayer() for has_memory in self._has_memory
        ]
        cache = Cache(layers=layers)
        logits: Tensor = self.model(past_key_values=cache, use_cache=True, return_dict=True, **kwargs).logits
        if not self._keeps_logits:
            logits = logits[:, keep]
        choice = logits.argmax(-1)  # as in `greedy`: -1 where there is NaN
        choice = torch.where(logits.gather(2, choice[:, :, None])[:, :, 0].isnan(), -1, choice)
        follows = tokens[:, keep].roll(-1, 1)  # the token behind each; the last one's is its first, and is not valid
        is_drafted = torch.arange(choice.shape[1], device=device) < num_valid[:, None]
        num_accepted = ((follows == choice) & is_drafted).to(torch.int64).cumprod(1).sum(1)
        counts = torch.stack([num_valid, num_accepted, broken.to(torch.int64)], dim=1)
        return torch.cat([counts, choice], dim=1), starts + keep[0] + num_accepted + 1, logits

    def _mask(self, offsets: Tensor, related: Tensor, starts: Tensor, num_slots: int) -> Any:
        """What `window.build_window` and `sliding_mask` say, for all slots of the buffers."""
        batch_size, width = offsets.shape
        place = torch.arange(num_slots, device=offsets.device)[None] - starts[:, None]  # [B, n] in the window
        inside = place.clamp(min=0).clamp(max=width - 1)
        kin = related.gather(2, inside[:, None, :].expand(batch_size, width, num_slots))
        seen = (place < 0)[:, None, :] | (kin & (place < width)[:, None, :])
        full = to_additive(seen, self._dtype)
        if not self._windows:
            return full
        (size,) = self._windows
        position = torch.where(place < 0, place, offsets.gather(1, inside))  # counted from the start
        sliding = to_additive(seen & (offsets[:, :, None] - position[:, None, :] < size), self._dtype)
        return {"full_attention": full, "sliding_attention": sliding} if self._is_mixed else sliding


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model's modules and configs anew, around the same weights, with the graph's attention."""
    weights = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    clone = copy.deepcopy(model, weights)
    for module in clone.modules():
        config: Any = getattr(module, "config", None)
        if config is not None and getattr(config, "_attn_implementation", NAME) != NAME:
            config._attn_implementation = NAME
        if getattr(config, "_experts_implementation", None) is not None:
            config._experts_implementation = "batched_mm"  # the others choose experts on the host
    return clone


def example(shapes: Sequence[MemoryShape], dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    """Inputs to trace the step at."""
    tokens = torch.zeros(_ROWS, _WIDTH, dtype=torch.int64, device=device)
    steps = torch.arange(_WIDTH, device=device)
    memory = [
        torch.zeros(_ROWS, heads, _SLOTS, size, dtype=dtype, device=device)
        for heads, *sizes in shapes
        for size in sizes
    ]
    lengths = torch.full((_ROWS,), 7, device=device)
    related = (steps[None] <= steps[:, None]).expand(_ROWS, -1, -1).contiguous()
    offsets = steps.expand(_ROWS, -1).contiguous()
    return tokens, offsets, related, lengths, torch.full_like(lengths, _WIDTH - 1), steps, memory


def free_sizes(num_buffers: int) -> tuple[Any, ...]:
    """Which sizes of `example`'s tensors are free, for torch.export."""
    rows, width, slots, kept = (torch.export.Dim(n, min=2, max=1 << 20) for n in ("rows", "width", "slots", "kept"))
    window, row = {0: rows, 1: width}, {0: rows}
    return window, window, {0: rows, 1: width, 2: width}, row, row, {0: kept}, [{0: rows, 2: slots}] * num_buffers
