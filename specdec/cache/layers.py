"""One full attention layer's memory: preallocated buffers, written where the cache's window says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin


class Slots:
    """Slots [B, W] of every row, as rows of flattened [B * H * capacity, D] buffers; computed once for all layers."""

    def __init__(self, slots: Tensor) -> None:
        self.slots = slots
        self._flat: dict[tuple[int, int, torch.device], Tensor] = {}

    def flat(self, buffer: Tensor) -> Tensor:
        """[B * H * W] int64 on the device of the buffer [.., H, capacity, D]; a buffer that is shorter is a ring."""
        heads, capacity = buffer.shape[1:3]
        key = (heads, capacity, buffer.device)
        if key not in self._flat:
            batch_size = self.slots.shape[0]
            planes = torch.arange(batch_size * heads, device=self.slots.device).view(batch_size, heads, 1)
            places = self.slots % capacity
            self._flat[key] = (planes * capacity + places[:, None, :]).flatten().to(buffer.device)
        return self._flat[key]


class Opening:
    """Where the layers of one cache write now; shared by them, so that none holds the cache itself (nor its memory).

    Attributes:
        batch_capacity: rows of the buffers.
        capacity: slots of the buffers.
        slots: [B, W] where the window's tokens go.
        extent: slots that attention may look at.
        level: all rows write to the last W slots of the extent.
        committed: [B] how many of the window's tokens are committed, if the others are padding; else None.
        is_open: between begin and commit.
        columns: what a finished cache covers in the user's layout; None while decoding.
    """

    def __init__(self, batch_capacity: int, capacity: int, slots: Slots) -> None:
        self.batch_capacity = batch_capacity
        self.capacity = capacity
        self.slots = slots
        self.extent = 0
        self.level = False
        self.committed: Tensor | None = None
        self.is_open = False
        self.columns: int | None = None

    @property
    def width(self) -> int:
        """Tokens a row that the window writes."""
        return self.slots.slots.shape[1]


class FullAttentionLayer(CacheLayerMixin):
    """Keys and values of one layer, [B, H, capacity, D]."""

    is_sliding = False

    def __init__(self, opening: Opening) -> None:
        super().__init__()
        self._opening = opening

    @property
    def places(self) -> int:
        """Slots of the buffers."""
        return self._opening.capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        buffers = []
        for states in (key_states, value_states):
            shape = (self._opening.batch_capacity, states.shape[1], self.places, states.shape[3])
            # Zeros, not empty: a masked slot still meets a zero weight, and 0 * NaN would be NaN.
            buffers.append(torch.zeros(shape, dtype=states.dtype, device=states.device))
        self.take(*buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the window's states [B, H, W, D]; returns views of the first `extent` slots.

        Raises:
            TypeError: no window is open: only specdec's loop can use this cache.
        """
        opening = self._opening
        if not opening.is_open:
            raise TypeError(
                "a RollbackCache works in specdec.generate() only; for model.generate() or a forward of your own "
                "take cache.to_dynamic_cache()."
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        batch_size, extent = key_states.shape[0], opening.extent
        if opening.level:  # one slice for all rows: half the price of an index
            start = extent - opening.width
            self.keys[:batch_size, :, start:extent] = key_states
            self.values[:batch_size, :, start:extent] = value_states
        else:
            for buffer, states in ((self.keys, key_states), (self.values, value_states)):
                index = opening.slots.flat(buffer)
                buffer.view(-1, buffer.shape[-1]).index_copy_(0, index, states.reshape(-1, states.shape[-1]))
        return self.keys[:batch_size, :, :extent], self.values[:batch_size, :, :extent]

    def move(self, source: Slots, destination: Slots) -> None:
        """Copies slots source -> destination."""
        assert self.keys is not None and self.values is not None
        for buffer in (self.keys, self.values):
            flat = buffer.view(-1, buffer.shape[-1])
            flat.index_copy_(0, destination.flat(buffer), flat.index_select(0, source.flat(buffer)))

    def select_rows(self, rows: Tensor, extent: int) -> None:
        """Row i becomes old row rows[i] up to `extent` slots, in place where the buffer has room."""
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            taken = buffer[rows.to(buffer.device), :, :extent]
            if len(rows) > buffer.shape[0]:
                buffer = buffer.new_zeros(len(rows), *buffer.shape[1:])
                setattr(self, name, buffer)
            buffer[: len(rows), :, :extent] = taken

    def permute_rows(self, places: Tensor, rows: Tensor) -> None:
        """Row places[i] becomes old row rows[i]; the others stay where they are."""
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            buffer[places.to(buffer.device)] = buffer[rows.to(buffer.device)]

    def grow(self, capacity: int) -> None:
        """Moves all slots to larger buffers."""
        assert self.keys is not None and self.values is not None
        self.take(*(b.new_zeros(*b.shape[:2], capacity, b.shape[3]) for b in (self.keys, self.values)))

    def take(self, keys: Tensor, values: Tensor) -> None:
        """Goes on in these buffers of zeros [B, H, capacity, D]."""
        for name, new in (("keys", keys), ("values", values)):
            old = getattr(self, name)
            if old is not None:
                new[:, :, : old.shape[2]] = old
            mark_static(new)
            setattr(self, name, new)
        self.is_initialized = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._opening.extent, 0

    def get_seq_length(self) -> int:
        opening = self._opening
        return opening.extent - opening.width if opening.columns is None else opening.columns

    def get_max_length(self) -> int:
        return -1


class NoLayer:
    """A layer without memory, or one that reads another's."""

    is_sliding = is_initialized = supports_early_init = False
    is_compileable = True
    keys = values = None

    def get_max_length(self) -> int:
        return -1


def mark_static(buffer: Tensor) -> None:
    """Tells compiled code that the buffer stays where it is."""
    if not torch.compiler.is_compiling():  # a model whose layers are compiled makes its buffers inside Dynamo's trace
        torch._dynamo.mark_static_address(buffer)
