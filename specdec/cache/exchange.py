"""Keys and values in and out of transformers' DynamicCache, whose rows are padded where ours are not."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from specdec.errors import UnsupportedOptionError


@dataclass(frozen=True, slots=True)
class History:
    """What a finished call left in a cache.

    Args:
        tokens: of each row, all that the model has read and the one behind it; None where they are not known (a
            prompt of embeddings, a cache of transformers').
        mask: [B, C] bool on the host, where each row's memory stands in the user's layout: all columns of
            `sequences` but the last.
        model: whose memory this is; it may be gone.
    """

    def cut(self, lengths: Sequence[int]) -> History:
        """The same, of rows that have been cut to `lengths`."""
        held = self.mask.cumsum(1)  # [B, C] tokens up to each column
        whole = (held <= torch.tensor(lengths)[:, None]).all(0)
        return replace(self, mask=self.mask[:, : int(whole.sum())])

    def select(self, rows: Sequence[int]) -> History:
        """The same, of the given rows."""
        tokens = None if self.tokens is None else [self.tokens[r] for r in rows]
        return replace(self, tokens=tokens, mask=self.mask[list(rows)])

    tokens: list[list[int]] | None
    mask: Tensor
    model: weakref.ref[Any]


@torch.no_grad()
def export(layers: Sequence[CacheLayerMixin], history: History, into: Cache | None = None) -> DynamicCache:
    """Copies keys and values [B, H, slot, D] to the columns of `history.mask`; into: a cache to overwrite.

    All copies are made before any is handed over, so that `into` is overwritten wholly or, after an exception, not.
    """
    cache: Any = DynamicCache() if into is None else into
    copies = [_padded(layer, history) for layer in layers]
    count = len(cache.layers)
    try:
        for index, states in enumerate(copies[count:], count):
            cache.update(*states, index)
    except BaseException:
        del cache.layers[count:]
        raise
    for other, states in zip(cache.layers, copies[:count], strict=False):
        if not other.is_initialized:
            other.lazy_initialization(*states)
        other.keys, other.values = states
    return cache


def _padded(layer: CacheLayerMixin, history: History) -> list[Tensor]:
    """A layer's keys and values in the user's layout."""
    assert layer.keys is not None and layer.values is not None
    states = []
    for source in (layer.keys, layer.values):
        batch_size, columns = history.mask.shape
        padded = torch.zeros(
            batch_size, source.shape[1], columns, source.shape[3], dtype=source.dtype, device=source.device
        )
        for row, mask in enumerate(history.mask.to(source.device)):
            padded[row, :, mask] = source[row, :, : int(mask.sum())]
        states.append(padded)
    return states


def check_dynamic(cache: Cache, num_layers: int) -> None:
    """Raises UnsupportedOptionError unless the cache is transformers' DynamicCache of full attention layers."""
    kinds = {type(layer) for layer in cache.layers}
    if not isinstance(cache, DynamicCache) or kinds - {DynamicLayer} or len(cache.layers) not in (0, num_layers):
        what = ", ".join(sorted(k.__name__ for k in kinds)) or "no layers"
        raise UnsupportedOptionError(
            f"past_key_values={type(cache).__name__} ({what}) cannot be taken over: give a DynamicCache of "
            f"{num_layers} full attention layers, the past_key_values that specdec returned, or none."
        )


def num_rows(cache: Cache) -> int:
    """Rows of a DynamicCache that is not empty."""
    return int(cast(Any, cache.layers[0]).keys.shape[0])


def columns(cache: Cache) -> int:
    """Tokens a row, padding included, that a DynamicCache covers."""
    return int(cache.get_seq_length()) if cache.layers else 0


def load(cache: Cache, mask: Tensor, layers: Sequence[CacheLayerMixin]) -> None:
    """Copies a DynamicCache's keys and values into empty `layers`; padding, where mask [B, C] is False, left out."""
    for source, layer in zip(cast(Any, cache.layers), layers, strict=True):
        layer.lazy_initialization(source.keys, source.values)
        for states, buffer in ((source.keys, layer.keys), (source.values, layer.values)):
            assert buffer is not None
            for row, keep in enumerate(mask.to(states.device)):
                kept = states[row, :, : len(keep)][:, keep]
                buffer[row, :, : kept.shape[1]] = kept
