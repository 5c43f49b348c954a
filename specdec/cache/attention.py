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

from specdec.cache.exchange import History, export, load
from specdec.cache.layers import FullAttentionLayer, Opening, Slots, mark_static
from specdec.errors import OptionError

_GRANULE = 64  # capacities are powers of two of this many slots: few reallocations, few shapes to compile


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
        history: what a finished call left in it; None while decoding.
    """

    def __init__(self, num_layers: int, batch_size: int, device: torch.device, capacity: int = _GRANULE) -> None:
        window = Slots(torch.empty(batch_size, 0, dtype=torch.int64, device=device))
        self._opening = Opening(batch_size, _round_up(capacity), window)
        self._attention = [FullAttentionLayer(self._opening) for _ in range(num_layers)]
        super().__init__(layers=list(self._attention))
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        mark_static(self.lengths)
        self._history: History | None = None
        self._aside: list[int] = []  # requests of the rows behind the active ones
        self._active = list(range(batch_size))  # requests of the active rows; kept while rows are set aside
        self._aside_lengths = self.lengths[:0]

    @property
    def history(self) -> History | None:
        return self._history

    @history.setter
    def history(self, history: History | None) -> None:
        self._history = history
        self._opening.columns = None if history is None else history.mask.shape[1]

    @property
    def seen(self) -> Tensor:
        """[B] int64: committed tokens that the cache covers."""
        return self.lengths

    @property
    def capacity(self) -> int:
        """Slots that a row has room for."""
        return self._opening.capacity

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
        opening = self._opening
        opening.slots, opening.extent, opening.level, opening.is_open = Slots(slots), extent, level, True

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
            source = self._opening.slots.slots.gather(1, keep.clamp(min=0))
            # Beyond the kept path a slot is copied onto itself: the shape stays fixed.
            source = torch.where(keep >= 0, source, destination)
            moved = Slots(source), Slots(destination)
            for layer in self._attention:
                if layer.is_initialized:
                    layer.move(*moved)
        self.lengths.add_(num_kept)
        self._opening.is_open = False

    def select_rows(self, rows: Tensor) -> None:
        """Rows leave, repeat or permute: row i becomes old row rows[i] ([R] int64)."""
        if self.history is None:
            self._select(rows, self._opening.extent)
            return
        with torch.inference_mode():  # as the loop that wrote the buffers
            # Rows that ended earlier may be longer than the last window's extent.
            self._select(rows, self.capacity)
        self.history = self.history.select(rows.tolist())

    def _select(self, rows: Tensor, extent: int) -> None:
        for layer in self._attention:
            if layer.is_initialized:
                layer.select_rows(rows, extent)
        self._opening.batch_capacity = max(self._opening.batch_capacity, len(rows))
        self.lengths = self.lengths[rows]
        self._active = list(range(len(rows)))

    def set_aside(self, rows: Sequence[int]) -> list[int]:
        """Active rows end: they move behind the rows that go on, with what they hold, until `restore`.

        Returns:
            The rows that go on, in their new order: only those that fill a gap have moved.
        """
        num_staying = len(self._active) - len(rows)
        gaps = [r for r in rows if r < num_staying]
        movers = [r for r in range(num_staying, len(self._active)) if r not in rows]
        order = list(range(len(self._active) + len(self._aside)))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap], order[mover] = mover, gap
        self._permute(order)
        requests = [[*self._active, *self._aside][r] for r in order]
        lengths = torch.cat([self.lengths, self._aside_lengths])[torch.tensor(order, device=self.lengths.device)]
        self._active, self._aside = requests[:num_staying], requests[num_staying:]
        self.lengths, self._aside_lengths = lengths[:num_staying].clone(), lengths[num_staying:]
        return order[:num_staying]

    @torch.inference_mode()  # as the loop that wrote the buffers
    def restore(self, lengths: Sequence[int]) -> None:
        """All rows come back in the order that they began in, cut to `lengths` (no more than they hold)."""
        requests = [*self._active, *self._aside]
        self._permute(sorted(range(len(requests)), key=requests.__getitem__))
        self.lengths = torch.tensor(lengths, device=self.lengths.device)
        mark_static(self.lengths)
        self._active, self._aside, self._aside_lengths = sorted(requests), [], self.lengths[:0]
        self._opening.is_open = False

    def _permute(self, order: Sequence[int]) -> None:
        """Row i becomes old row order[i]; copies the rows that move, and those only."""
        moved = [i for i, row in enumerate(order) if row != i]
        if moved:
            device = self.lengths.device
            places, rows = torch.tensor(moved, device=device), torch.tensor([order[i] for i in moved], device=device)
            for layer in self._attention:
                if layer.is_initialized:
                    layer.permute_rows(places, rows)

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
            A DynamicCache over all columns but the last, as `generate()` returns one. Padding, of the prompt and
            behind rows that ended early, takes zeros, which the attention mask must hide.

        Raises:
            OptionError: no finished call has left anything in this cache.
        """
        if self.history is None:
            raise OptionError("this cache holds no finished call: take the one that generate() returned.")
        return export(self._attention, self.history, into)

    def _grow(self, extent: int) -> None:
        # The shared capacity last: layers know their own, so that running out of memory half-way does no harm.
        capacity = _round_up(extent)
        for layer in self._attention:
            if layer.is_initialized:
                layer.grow(capacity)
        self._opening.capacity = capacity

    def _refused(self, *args: Any, **kwargs: Any) -> None:
        """Methods of a transformers Cache that know nothing of rows with lengths of their own."""
        raise TypeError(
            "a RollbackCache has select_rows() and to_dynamic_cache(); transformers' own methods to crop, reset, "
            "reorder or repeat a cache work on the latter."
        )

    crop = reset = reorder_cache = batch_repeat_interleave = batch_select_indices = _refused


def _round_up(slots: int) -> int:
    capacity = _GRANULE
    while capacity < slots:
        capacity *= 2
    return capacity
