"""One sliding-window layer's memory: a ring of the window and the widest proposal, whatever the text's length.

Slot s of a row stands at place s modulo the ring's size. A window of W tokens overwrites the slots that lie a
ring's size behind it; with a ring of window + W - 1 places no token, committed or drafted, attends to those any
more, whatever will be rejected. A prompt wider than that is not written first: its attention reads the ring and the
new keys side by side, and only the prompt's end stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specdec.cache.layers import FullAttentionLayer, Opening, Slots, mark_static

SLACK = 16  # places beyond the window to begin with: chains of up to 16 draft tokens need no more


class SlidingLayer(FullAttentionLayer):
    """Keys and values of one layer, [B, H, at most `size`, D].

    Args:
        window: tokens that attention looks at, the query's own included.
    """

    is_sliding = True

    def __init__(self, opening: Opening, window: int) -> None:
        super().__init__(opening)
        self.window = window
        self.size = window + SLACK

    @property
    def places(self) -> int:
        return min(self._opening.capacity, self.size)

    @property
    def passes_by(self) -> bool:
        """The open window is wider than the ring: its keys stand beside the ring, not in it."""
        opening = self._opening
        return opening.extent > self.size and opening.width > self.size - self.window + 1

    def make_room(self, written: Tensor, num_loose: int) -> None:
        """Before a forward: a ring that no rejected token can damage.

        Args:
            written: [rows] int64, the slots of each row that have been written, in this window as well.
            num_loose: tokens a row of the open window that may be rejected, those of the next forward included.
        """
        if self._opening.extent > self.size:
            self.size = max(self.size, self.window - 1 + num_loose)
        if self.is_initialized and self.places > self._capacity():
            self._regrow(written)

    def key_slots(self) -> Tensor:
        """[B or 1, K] the slot of each key that the open window attends to; negative where there is none."""
        opening = self._opening
        slots = opening.slots.slots
        if opening.extent <= self.size:
            return torch.arange(opening.extent, device=slots.device)[None]
        if self.passes_by:
            return torch.cat([self._ring(slots[:, 0] - 1), slots], dim=1) if self.is_initialized else slots
        return self._ring(slots[:, -1])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the window's states [B, H, W, D]; returns what `key_slots` describes."""
        opening = self._opening
        if opening.extent <= self.size or not opening.is_open:
            return super().update(key_states, value_states)
        passes_by, fresh = self.passes_by, not self.is_initialized
        if fresh:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        batch_size = key_states.shape[0]
        out = []
        kept = self._kept() if passes_by else None
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            seen = states
            if kept is not None:
                if not fresh:
                    seen = torch.cat([buffer[:batch_size], states], dim=2)
                index, slots = kept
                wanted = index.to(states.device)[:, None, :, None].expand(-1, *states.shape[1:2], -1, states.shape[3])
                states = states.gather(2, wanted)
            else:
                slots = opening.slots
            flat = buffer.view(-1, buffer.shape[-1])
            flat.index_copy_(0, slots.flat(buffer), states.reshape(-1, states.shape[-1]))
            out.append(seen if kept is not None else buffer[:batch_size])
        return out[0], out[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        opening = self._opening
        if opening.extent <= self.size:
            return opening.extent, 0
        return query_length, opening.extent - query_length

    def select_rows(self, rows: Tensor, extent: int) -> None:
        super().select_rows(rows, min(extent, self._capacity()))

    def grow(self, capacity: int) -> None:
        """Nothing yet: `make_room` knows the rows' lengths."""

    def _ring(self, last: Tensor) -> Tensor:
        """[B, places] the slot at each place when the newest is last [B]; negative where there is none."""
        size = self.places
        place = torch.arange(size, device=last.device)
        return last[:, None] - (last[:, None] - place) % size

    def _kept(self) -> tuple[Tensor, Slots]:
        """What stays of a wide window: [B, T] indices of its last committed tokens, and their slots."""
        opening = self._opening
        slots, committed = opening.slots.slots, opening.committed
        assert committed is not None
        steps = torch.arange(min(opening.width, self.places), device=slots.device)
        # A row that brings fewer writes its first token again and again, where it stands already.
        index = (committed[:, None] - len(steps) + steps).clamp(min=0)
        return index, Slots(slots.gather(1, index))

    def _capacity(self) -> int:
        assert self.keys is not None
        return int(self.keys.shape[2])

    def _regrow(self, written: Tensor) -> None:
        """Moves what the ring holds of rows with so many written slots to larger buffers."""
        assert self.keys is not None
        old, batch_size = self._capacity(), len(written)
        place = torch.arange(old, device=written.device)
        last = written[:, None] - 1
        held = last - (last - place) % old  # [B, old] slots
        for name in ("keys", "values"):
            buffer: Tensor = getattr(self, name)
            new = buffer.new_zeros(buffer.shape[0], buffer.shape[1], self.places, buffer.shape[3])
            # A place that holds nothing yet (a negative slot) moves like the others, to where nothing is either.
            to = (
                (held % self.places)
                .to(buffer.device)[:, None, :, None]
                .expand(-1, buffer.shape[1], -1, buffer.shape[3])
            )
            new[:batch_size].scatter_(2, to, buffer[:batch_size])
            mark_static(new)
            setattr(self, name, new)
