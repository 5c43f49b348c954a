"""What a model remembers, layer by layer, as transformers itself would lay it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache, cache_utils
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from specdec.errors import UnsupportedModelError

_DUMMY = getattr(cache_utils, "DummyLayer", None)  # 5.17 leaves such layers out


@dataclass(frozen=True, slots=True)
class LayerKind:
    """One layer's memory: attention over all tokens, or over a window; recurrent states; both, or nothing.

    Args:
        attention: keys and values are kept.
        window: attention looks at so many tokens, its own included; None means all.
        num_states: recurrent states (of convolutions and state space models) that the layer keeps.
    """

    attention: bool = True
    window: int | None = None
    num_states: int = 0

    @property
    def name(self) -> str:
        """In words."""
        parts = ["recurrent state"] if self.num_states else []
        if self.attention:
            parts.append("full attention" if self.window is None else f"sliding window {self.window}")
        return " and ".join(parts) or "no memory"


FULL = LayerKind()
_WINDOWED = (DynamicSlidingWindowLayer, LinearAttentionAndSlidingWindowAttentionLayer)
_ATTENTION = (DynamicLayer, LinearAttentionAndFullAttentionLayer, *_WINDOWED)
_RECURRENT = (
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)


def layer_kinds(config: Any, name: str) -> tuple[LayerKind, ...]:
    """The memory of each layer of a decoder with this config, read off the cache that transformers makes for it.

    Raises:
        UnsupportedModelError: a kind of layer that cannot be rolled back.
    """
    types = set(getattr(config, "layer_types", None) or [])
    if "chunked_attention" in types or getattr(config, "attention_chunk_size", None) is not None:
        raise UnsupportedModelError(
            f"{name} has chunked attention, whose chunks specdec cannot roll back. Use model.generate() for it."
        )
    try:
        layers = DynamicCache(config=config).layers
    except KeyError as error:
        raise _unknown(name, f"layers of type {error.args[0]!r}") from error
    kinds = []
    for layer in layers:
        if type(layer) not in (*_ATTENTION, *_RECURRENT, _DUMMY):
            raise _unknown(name, f"a {type(layer).__name__}")
        made: Any = layer
        window = made.sliding_window if isinstance(layer, _WINDOWED) else None
        states = made.number_of_states if isinstance(layer, _RECURRENT) else 0
        kinds.append(LayerKind(isinstance(layer, _ATTENTION), window, states))
    # Whisper's decoder without its encoder is still counted by the encoder's layers.
    missing = (getattr(config, "decoder_layers", None) or 0) - len(kinds)
    return tuple(kinds + kinds[-1:] * missing)


def _unknown(name: str, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name} keeps {what} in its cache, which specdec cannot roll back. Use model.generate() for it."
    )
