"""RollbackCache: preallocated, per-row lengths, rollback by changing a number, whatever the layers remember.

A committed token lives in the slot of its own position, whatever the padding of the prompt was (windows
start with a row's first token, so left padding never enters). Slots at and after a row's length are
free: a rejected chain is forgotten by not advancing the length, and the next window overwrites it. A
tree writes its nodes to consecutive slots and moves its accepted path, inside the window, at commit. Layers
with a sliding window keep a ring of those slots (sliding.py); recurrent states go back to a snapshot, and a row's
length with them (recurrent.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from specdec.cache.exchange import History, export, load
from specdec.cache.kinds import LayerKind
from specdec.cache.layers import FullAttentionLayer, NoLayer, Opening, Slots, mark_static
from specdec.cache.recurrent import HybridLayer, HybridSlidingLayer, RecurrentLayer
from specdec.cache.sliding import SlidingLayer
from specdec.errors import OptionError

_FINE = 256  # and where attention looks at all slots: so few more cost it next to nothing
_GRANULE = 64  # short capacities are powers of two of this many slots: few reallocations
_SHORT = 1024  # slots; beyond, doubling would hold as much again as a long text needs


class RollbackCache(Cache):
    """A transformers Cache whose rows have lengths of their own and can be rolled back.

    One step is `begin(...)` and a forward with `past_key_values=cache`, once or several times, then `commit(...)`.

    Args:
        kinds: what each layer of the model remembers.
        batch_size: rows.
        device: where lengths and slots live (the model's input device).
        capacity: slots to start with; grown geometrically when a window needs more, long texts by a sixteenth.
        fine: grow by a few slots at a time from the start, for attention that looks at all slots there are.
        doubling: always grow to powers of two, for graphs of which each capacity needs one of its own.
        most: slots that will be needed in the end, so that none are made beyond; None if that is not known.
        lender: where the attention layers' buffers come from, given rows and a capacity: keys and values of each in
            turn, zeros; None makes them at the first forward, or by `allocate`.

    Attributes:
        lengths: [B] int64, committed tokens of each row (at a fixed address while no row leaves).
        cross: keys and values of an encoder's output.
        snapshot_bytes: bytes of recurrent states copied so far.
        history: what a finished call left in it; None while decoding.
    """

    def __init__(
        self,
        kinds: Sequence[LayerKind],
        batch_size: int,
        device: torch.device,
        capacity: int = _GRANULE,
        fine: bool = False,
        doubling: bool = False,
        most: int | None = None,
        lender: Callable[[int, int], Sequence[Tensor]] | None = None,
    ) -> None:
        window = Slots(torch.empty(batch_size, 0, dtype=torch.int64, device=device))
        self._fine, self._doubling, self._most, self._lender = fine, doubling, most, lender
        self._opening = Opening(batch_size, self._rounded(capacity), window)
        layers: list[Any] = [_layer(kind, self._opening) for kind in kinds]
        self._attention = [layer for layer in layers if isinstance(layer, FullAttentionLayer)]
        self._recurrent = [layer for layer in layers if isinstance(layer, RecurrentLayer)]
        self._sliding = [layer for layer in self._attention if isinstance(layer, SlidingLayer)]
        super().__init__(layers=layers)
        self.cross = DynamicCache()  # an encoder's keys and values, the same at every step
        self.snapshot_bytes = 0
        self._buffers: tuple[tuple[int, int], list[Tensor]] | None = None  # for rows and capacity as given
        self._num_loose = 0  # tokens a row of the open window that may be rejected
        self._covered = [0]  # tokens a row behind each snapshot of the open window, and behind its last forward
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        mark_static(self.lengths)
        self._history: History | None = None
        self._aside: list[int] = []  # requests of the rows behind the active ones
        self._active = list(range(batch_size))  # requests of the active rows; kept while rows are set aside
        self._aside_lengths = self.lengths[:0]
        self._is_torn = False
        if lender is not None:
            self._take(self.capacity)

    @property
    def is_torn(self) -> bool:
        """An exception came while rows changed places: layers may disagree about whose row is where."""
        return self._is_torn

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
        """Bytes held by keys, values and states."""
        buffers = [b for layer in self._attention for b in (layer.keys, layer.values) if b is not None]
        return sum(b.numel() * b.element_size() for b in buffers) + sum(r.state_bytes for r in self._recurrent)

    @property
    def is_linear(self) -> list[bool]:
        """Layers that have states and no attention."""
        return [isinstance(x, RecurrentLayer) and not isinstance(x, FullAttentionLayer) for x in self.layers]

    @property
    def is_dummy(self) -> list[bool]:
        """Layers that remember nothing."""
        return [isinstance(layer, NoLayer) for layer in self.layers]

    def begin(
        self,
        slots: Tensor,
        extent: int,
        level: bool = False,
        committed: Tensor | None = None,
        is_kept: bool = False,
    ) -> None:
        """Opens a window, or goes on with the open one: the next forward writes its W tokens to `slots`.

        Args:
            slots: [B, W] int64, consecutive, the first at or after the row's length.
            extent: slots that attention covers; an upper bound of all in use, known on the host (no sync here).
            level: all rows write to the last W slots of the extent, as the host knows; written as a slice.
            committed: [B] int64 how many of the tokens are committed already, where all others are padding.
            is_kept: nothing of the window will be rejected, so that states need no snapshot.
        """
        self.reserve(extent)
        opening, width = self._opening, slots.shape[1]
        if not opening.is_open:
            self._covered, self._num_loose = [0], 0
        if opening.is_open or committed is None:  # a draft's forwards behind its first hold drafted tokens only
            self._num_loose += width
        opening.slots, opening.extent, opening.level, opening.is_open = Slots(slots), extent, level, True
        opening.committed = committed
        if self._sliding:
            written = torch.cat([slots[:, 0], self._aside_lengths])
            for layer in self._sliding:
                layer.make_room(written, self._num_loose)
        if not self._recurrent:
            return
        if is_kept and len(self._covered) == 1:
            self._covered = [self._covered[0] + width]
            return
        for recurrent in self._recurrent:
            self.snapshot_bytes += recurrent.take_snapshot()
        self._covered.append(self._covered[-1] + width)

    def reserve(self, extent: int) -> None:
        """Makes room for so many slots a row, which are in use from now on."""
        if extent > self.capacity:
            self._grow(extent)
        self._opening.extent = extent

    def allocate(self, shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype) -> None:
        """Makes the attention layers' buffers before any forward: heads, width of a key and of a value of each."""
        for layer, (heads, *widths) in zip(self._attention, shapes, strict=True):
            like = [torch.empty(1, heads, 0, width, dtype=dtype, device=self.lengths.device) for width in widths]
            layer.lazy_initialization(*like)

    def _take(self, capacity: int) -> None:
        """The attention layers go on in what is lent."""
        assert self._lender is not None
        buffers = iter(self._lender(self._opening.batch_capacity, capacity))
        for layer in self._attention:
            layer.take(next(buffers), next(buffers))

    def buffers(self) -> list[Tensor]:
        """Keys and values [B, H, capacity, D] of each attention layer in turn, of the active rows."""
        key = (self.lengths.shape[0], self.capacity)
        if self._buffers is None or self._buffers[0] != key:
            every = [b for layer in self._attention for b in (layer.keys, layer.values) if b is not None]
            self._buffers = key, [b if b.shape[0] == key[0] else b[: key[0]] for b in every]
        return self._buffers[1]

    def key_slots(self, window: int) -> Tensor:
        """[B or 1, K] the slots of the keys that layers of this sliding window attend to; negative where there is none.

        To be asked between `begin` and the forward.
        """
        layer = self._ring(window)
        if layer is None:
            return torch.arange(self._opening.extent, device=self.lengths.device)[None]
        return layer.key_slots()

    def is_ring(self, window: int) -> bool:
        """Layers of this sliding window hold keys that it hides: a ring's stand in another order, or not all."""
        opening = self._opening
        layer = self._ring(window)
        if layer is None:
            return opening.extent > window
        is_start = opening.extent == opening.width  # the text's own beginning passes by an empty ring
        return opening.extent > layer.size and not (is_start and not layer.is_initialized)

    def _ring(self, window: int) -> SlidingLayer | None:
        """A layer of this sliding window; None where such layers keep everything, too."""
        return next((layer for layer in self._sliding if layer.window == window), None)

    def retained(self, num_kept: Sequence[int]) -> list[int]:
        """What `commit` of so many tokens a row adds to the rows' lengths.

        All of them where every layer is attention. A recurrent state covers whole forwards only: the rest of what is
        kept must be fed again.
        """
        if not self._recurrent:
            return list(num_kept)
        return [max(c for c in self._covered if c <= kept or c == self._covered[0]) for kept in num_kept]

    def commit(self, num_kept: Tensor, keep: Tensor | None = None) -> None:
        """Closes the window: `num_kept` [B] of its tokens become part of the row, the rest is forgotten.

        Args:
            num_kept: [B] int64, may be 0.
            keep: [B, K] int64, the kept tokens' slots behind the row's length, in order, -1 padded; in a window of one
                forward their indices in it. None means the first `num_kept` (always so for a chain): then nothing is
                copied.
        """
        if keep is not None and keep.shape[1]:
            steps = torch.arange(keep.shape[1], device=keep.device)
            destination = self.lengths[:, None] + steps
            # Beyond the kept path a slot is copied onto itself: the shape stays fixed.
            source = torch.where(keep >= 0, self.lengths[:, None] + keep, destination)
            moved = Slots(source), Slots(destination)
            for layer in self._attention:
                if layer.is_initialized:
                    layer.move(*moved)
        if len(self._covered) > 1:
            num_kept = self._restore_states(num_kept)
        self.lengths.add_(num_kept)
        self._opening.is_open = False

    def cut(self, lengths: Sequence[int]) -> None:
        """Closes the window of attention layers: each row keeps so many tokens in all, as the host knows."""
        self.lengths = torch.tensor(lengths, device=self.lengths.device)
        self._opening.is_open = False

    def abandon(self) -> None:
        """Closes the window of attention layers; nothing of it is kept."""
        self._opening.is_open = False

    def _restore_states(self, num_kept: Tensor) -> Tensor:
        """Each row's states as of the latest forward that it keeps wholly; returns the tokens [B] up to there."""
        covered = torch.tensor(self._covered, device=num_kept.device)
        chosen = (covered <= num_kept[:, None]).sum(1) - 1  # [B]
        for layer in self._recurrent:
            layer.choose(chosen)
            layer.snapshots.clear()
        return covered[chosen]

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
        self._buffers = None
        for layer in self._attention:
            if layer.is_initialized:
                layer.select_rows(rows, extent)
        for states in self._recurrent:
            states.select_states(rows)
        if self.cross.layers:
            self.cross.batch_select_indices(rows)
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
        requests = [[*self._active, *self._aside][r] for r in order]
        lengths = torch.cat([self.lengths, self._aside_lengths])[torch.tensor(order, device=self.lengths.device)]
        staying = lengths[:num_staying].clone()
        self._permute(order)  # what may run out of memory has, but for this
        self._active, self._aside = requests[:num_staying], requests[num_staying:]
        self.lengths, self._aside_lengths = staying, lengths[num_staying:]
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
            self._is_torn = True  # until all layers have the same order
            for layer in self._attention:
                if layer.is_initialized:
                    layer.permute_rows(places, rows)
            self._is_torn = False

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
        capacity = self._rounded(extent)
        self._buffers = None  # also where only some have grown
        if self._lender is not None:
            self._take(capacity)
        else:
            for layer in self._attention:
                if layer.is_initialized:
                    layer.grow(capacity)
        self._opening.capacity = capacity

    def _rounded(self, slots: int) -> int:
        if self._doubling or not (self._fine or slots > _SHORT):
            return _round_up(slots)
        # A sixteenth more at a time: what is copied on the way stays small beside what attention reads.
        granules = -(-slots // _FINE)
        rounded = _FINE * (granules + granules // 16)
        if self._most is None or rounded <= _SHORT:
            return rounded
        return max(slots, min(rounded, _GRANULE * -(-self._most // _GRANULE)))

    def _refused(self, *args: Any, **kwargs: Any) -> None:
        """Methods of a transformers Cache that know nothing of rows with lengths of their own."""
        raise TypeError(
            "a RollbackCache has select_rows() and to_dynamic_cache(); transformers' own methods to crop, reset, "
            "reorder or repeat a cache work on the latter."
        )

    crop = reset = reorder_cache = batch_repeat_interleave = batch_select_indices = _refused


def _layer(kind: LayerKind, opening: Opening) -> Any:
    if kind.num_states:
        if not kind.attention:
            return RecurrentLayer(kind.num_states)
        if kind.window is None:
            return HybridLayer(opening, kind.num_states)
        return HybridSlidingLayer(opening, kind.window, kind.num_states)
    if not kind.attention:
        return NoLayer()
    return FullAttentionLayer(opening) if kind.window is None else SlidingLayer(opening, kind.window)


def _round_up(slots: int) -> int:
    capacity = _GRANULE
    while capacity < slots:
        capacity *= 2
    return capacity
