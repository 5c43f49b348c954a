"""RollbackCache for full attention: preallocated, per-row lengths, rollback by changing a number.

A committed token lives in the slot of its own position, whatever the padding of the prompt was (windows
start with a row's first token, so left padding never enters). Slots at and after a row's length are
free: a rejected chain is forgotten by not advancing the length, and the next window overwrites it. A
tree writes its nodes to consecutive slots and moves its accepted path, inside the window, at commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from specdec.cache.exchange import History, export, load
from specdec.errors import OptionError

_GRANULE = 64  # capacities are powers of two of this many slots: few reallocations, few shapes to compile


class Slots:
    """Slots [B, W] of every row, as rows of flattened [B * H * capacity, D] buffers; computed once for all layers."""

    def __init__(self, slots: Tensor, capacity: int) -> None:
        self.slots = slots
        self._capacity = capacity
        self._flat: dict[tuple[int, torch.device], Tensor] = {}

    def flat(self, heads: int, device: torch.device) -> Tensor:
        """[B * H * W] int64 on the layer's device."""
        key = (heads, device)
        if key not in self._flat:
            batch_size = self.slots.shape[0]
            planes = torch.arange(batch_size * heads, device=self.slots.device).view(batch_size, heads, 1)
            self._flat[key] = (planes * self._capacity + self.slots[:, None, :]).flatten().to(device)
        return self._flat[key]


class FullAttentionLayer(CacheLayerMixin):
    """Keys and values of one layer, [B, H, capacity, D]; writes where the cache's window says."""

    is_sliding = False

    def __init__(self, owner: RollbackCache) -> None:
        super().__init__()
        self._owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        for name, states in (("keys", key_states), ("values", value_states)):
            _, heads, _, dim = states.shape
            shape = (self._owner.batch_capacity, heads, self._owner.capacity, dim)
            # Zeros, not empty: a masked slot still meets a zero weight, and 0 * NaN would be NaN.
            buffer = torch.zeros(shape, dtype=states.dtype, device=states.device)
            _mark_static(buffer)
            setattr(self, name, buffer)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the window's states [B, H, W, D]; returns views of the first `extent` slots."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        owner, batch_size, extent = self._owner, key_states.shape[0], self._owner.extent
        owner.check_open()
        if owner.level:  # one slice for all rows: half the price of an index
            start = extent - owner.window_width
            self.keys[:batch_size, :, start:extent] = key_states
            self.values[:batch_size, :, start:extent] = value_states
        else:
            for buffer, states in ((self.keys, key_states), (self.values, value_states)):
                index = owner.window.flat(states.shape[1], states.device)
                buffer.view(-1, buffer.shape[-1]).index_copy_(0, index, states.reshape(-1, states.shape[-1]))
        return self.keys[:batch_size, :, :extent], self.values[:batch_size, :, :extent]

    def move(self, source: Slots, destination: Slots) -> None:
        """Copies slots source -> destination."""
        assert self.keys is not None and self.values is not None
        for buffer in (self.keys, self.values):
            flat = buffer.view(-1, buffer.shape[-1])
            taken = flat.index_select(0, source.flat(buffer.shape[1], flat.device))
            flat.index_copy_(0, destination.flat(buffer.shape[1], flat.device), taken)

    def select_rows(self, rows: Tensor, extent: int) -> None:
        """Row i becomes old row rows[i], in place where the buffer has room."""
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            taken = buffer[rows.to(buffer.device), :, :extent]
            if len(rows) > buffer.shape[0]:
                buffer = buffer.new_zeros(len(rows), *buffer.shape[1:])
                setattr(self, name, buffer)
            buffer[: len(rows), :, :extent] = taken

    def grow(self, capacity: int, extent: int) -> None:
        """Moves the first `extent` slots to a larger buffer."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(old.shape[0], old.shape[1], capacity, old.shape[3])
            new[:, :, :extent] = old[:, :, :extent]
            _mark_static(new)
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._owner.extent, 0

    def get_seq_length(self) -> int:
        history = self._owner.history
        return self._owner.extent - self._owner.window_width if history is None else history.mask.shape[1]

    def get_max_length(self) -> int:
        return -1


class RollbackCache(Cache):
    """A transformers Cache whose rows have lengths of their own and can be rolled back for free.

    One step is `begin(...)`, one or more target forwards with `past_key_values=cache`, `commit(...)`.

    Args:
        num_layers: attention layers of the model.
        batch_size: rows.
        device: where lengths and slots live (the model's input device).
        capacity: slots to start with; grown geometrically when a window needs more.

    Attributes:
        lengths: [B] int64, committed tokens of each row (at a fixed address while no row leaves).
        extent: int, slots that the current window's attention may look at.
        history: what a finished call left in it; None while decoding.
    """

    def __init__(self, num_layers: int, batch_size: int, device: torch.device, capacity: int = _GRANULE) -> None:
        self._attention = [FullAttentionLayer(self) for _ in range(num_layers)]
        super().__init__(layers=list(self._attention))
        self.batch_capacity = batch_size
        self.capacity = _round_up(capacity)
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        _mark_static(self.lengths)
        self.extent = 0
        self.level = False
        self.history: History | None = None
        self._is_open = False
        self._aside: list[int] = []  # requests of the rows behind the active ones
        self._active = list(range(batch_size))  # requests of the active rows; kept while rows are set aside
        self._aside_lengths = self.lengths[:0]
        self.window = Slots(torch.empty(batch_size, 0, dtype=torch.int64, device=device), self.capacity)

    @property
    def seen(self) -> Tensor:
        """[B] int64: committed tokens that the cache covers."""
        return self.lengths

    @property
    def window_width(self) -> int:
        """Tokens a row that the current window writes."""
        return self.window.slots.shape[1]

    @property
    def cache_bytes(self) -> int:
        """Bytes held by keys and values."""
        return sum(
            buffer.numel() * buffer.element_size()
            for layer in self._attention
            for buffer in (layer.keys, layer.values)
            if buffer is not None
        )

    def begin(self, slots: Tensor, extent: int, level: bool = False) -> None:
        """Opens a window: the next forward writes its W tokens to `slots` and attends to `extent` slots.

        Args:
            slots: [B, W] int64, distinct within a row, at or after the row's length.
            extent: upper bound of all slots in use, known on the host (no sync here).
            level: all rows write to the last W slots of the extent, as the host knows; written as a slice.
        """
        if extent > self.capacity:
            self._grow(extent)
        self.window = Slots(slots, self.capacity)
        self.extent = extent
        self.level = level
        self._is_open = True

    def check_open(self) -> None:
        """Raises TypeError if a forward writes outside a window: only specdec's loop can use this cache."""
        if not self._is_open:
            raise TypeError(
                "a RollbackCache works in specdec.generate() only; for model.generate() or a forward of your own "
                "take cache.to_dynamic_cache()."
            )

    def commit(self, num_kept: Tensor, keep: Tensor | None = None) -> None:
        """Closes the window: `num_kept` [B] of its tokens become part of the row, the rest is forgotten.

        Args:
            num_kept: [B] int64, may be 0.
            keep: [B, K] int64, the kept tokens' indices in the window, in order, -1 padded. None means
                the first `num_kept` (always so for a chain): then nothing is copied.
        """
        if keep is not None and keep.shape[1]:
            steps = torch.arange(keep.shape[1], device=keep.device)
            destination = self.lengths[:, None] + steps
            source = self.window.slots.gather(1, keep.clamp(min=0))
            # Beyond the kept path a slot is copied onto itself: the shape stays fixed.
            source = torch.where(keep >= 0, source, destination)
            moved = Slots(source, self.capacity), Slots(destination, self.capacity)
            for layer in self._attention:
                if layer.is_initialized:
                    layer.move(*moved)
        self.lengths.add_(num_kept)
        self._is_open = False

    def select_rows(self, rows: Tensor) -> None:
        """Rows leave, repeat or permute: row i becomes old row rows[i] ([R] int64)."""
        if self.history is None:
            self._select(rows, self.extent)
            return
        with torch.inference_mode():  # as the loop that wrote the buffers
            # Rows that ended earlier may be longer than the last window's extent.
            self._select(rows, self.capacity)
        self.history = self.history.select(rows.tolist())

    def _select(self, rows: Tensor, extent: int) -> None:
        for layer in self._attention:
            if layer.is_initialized:
                layer.select_rows(rows, extent)
        self.batch_capacity = max(self.batch_capacity, len(rows))
        self.lengths = self.lengths[rows]
        self._active = list(range(len(rows)))

    def set_aside(self, rows: Sequence[int]) -> None:
        """Active rows end: they move behind the rows that go on, with what they hold, until `restore`."""
        staying = [r for r in range(len(self._active)) if r not in rows]
        lengths = torch.cat([self.lengths, self._aside_lengths])
        order = [*staying, *rows, *range(len(self._active), len(lengths))]
        self._permute(order)
        lengths = lengths[torch.tensor(order, device=lengths.device)]
        self._aside = [self._active[r] for r in rows] + self._aside
        self._active = [self._active[r] for r in staying]
        self.lengths, self._aside_lengths = lengths[: len(staying)].clone(), lengths[len(staying) :]

    @torch.inference_mode()  # as the loop that wrote the buffers
    def restore(self, lengths: Sequence[int]) -> None:
        """All rows come back in the order that they began in, cut to `lengths` (no more than they hold)."""
        requests = [*self._active, *self._aside]
        order = sorted(range(len(requests)), key=requests.__getitem__)
        self._permute(order)
        self.lengths = torch.tensor(lengths, device=self.lengths.device)
        _mark_static(self.lengths)
        self._active, self._aside, self._aside_lengths = sorted(requests), [], self.lengths[:0]
        self._is_open = False

    def _permute(self, order: Sequence[int]) -> None:
        if list(order) != list(range(len(order))):
            index = torch.tensor(order, device=self.lengths.device)
            for layer in self._attention:
                if layer.is_initialized:
                    layer.select_rows(index, self.capacity)  # rows set aside may be longer than the extent

    @torch.inference_mode()
    def load(self, cache: Cache, mask: Tensor) -> None:
        """Takes over a DynamicCache's memory into this empty cache; call `restore` with the lengths wanted.

        Args:
            cache: of full attention layers, as many as this one has.
            mask: [B, C] bool, False on padding, over the C columns that it covers; C within the capacity.
        """
        load(cache, mask, self._attention)

    def to_dynamic_cache(self, into: Cache | None = None) -> DynamicCache:
        """The same memory in transformers' form, laid out as the returned `sequences` are.

        Args:
            into: a DynamicCache to overwrite; a new one if omitted.

        Returns:
            A DynamicCache over the columns that all rows have: all but the last, as `generate()` returns one, or
            fewer where rows ended early (transformers then reads the rest again). Padding takes zeros, which the
            attention mask must hide.

        Raises:
            OptionError: no finished call has left anything in this cache.
        """
        if self.history is None:
            raise OptionError("this cache holds no finished call: take the one that generate() returned.")
        return export(self._attention, self.history, into)

    def _grow(self, extent: int) -> None:
        capacity = _round_up(extent)
        for layer in self._attention:
            if layer.is_initialized:
                layer.grow(capacity, self.capacity)
        self.capacity = capacity

    def _refused(self, *args: Any, **kwargs: Any) -> None:
        """Methods of a transformers Cache that know nothing of rows with lengths of their own."""
        raise TypeError(
            "a RollbackCache has select_rows() and to_dynamic_cache(); transformers' own methods to crop, reset, "
            "reorder or repeat a cache work on the latter."
        )

    crop = reset = reorder_cache = batch_repeat_interleave = batch_select_indices = _refused


def _mark_static(buffer: Tensor) -> None:
    """Tells compiled code that the buffer stays where it is."""
    if not torch.compiler.is_compiling():  # a model whose layers are compiled makes its buffers inside Dynamo's trace
        torch._dynamo.mark_static_address(buffer)


def _round_up(slots: int) -> int:
    capacity = _GRANULE
    while capacity < slots:
        capacity *= 2
    return capacity
