"""Recurrent states behind the rollback interface: a state that has been updated cannot be cut, only put back.

Each forward that may be rejected is preceded by a snapshot. `commit` chooses, row by row, the latest of them that
covers no more tokens than the row keeps; the row's length stays there, and the next window feeds the kept tokens
behind it again. transformers' own code reads and writes the states, through its own layer classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from specdec.cache.layers import FullAttentionLayer, Opening
from specdec.cache.sliding import SlidingLayer

_STATES = ("conv_states", "recurrent_states")
Snapshot = dict[tuple[str, int], Tensor]


class RecurrentLayer(LinearAttentionLayer):
    """States of one layer, [B, ...] each, and the snapshots of the open window."""

    def __init__(self, num_states: int = 1) -> None:
        super().__init__(number_of_states=num_states)
        self.snapshots: list[Snapshot] = []

    def state_tensors(self) -> Iterator[tuple[tuple[str, int], Tensor]]:
        """The states that exist so far, under their names."""
        for name in _STATES:
            for index, state in getattr(self, name).items():
                if state is not None:
                    yield (name, index), state

    def take_snapshot(self) -> int:
        """Copies the states; returns the bytes copied."""
        self.snapshots.append({key: state.clone() for key, state in self.state_tensors()})
        return sum(s.numel() * s.element_size() for s in self.snapshots[-1].values())

    def choose(self, chosen: Tensor) -> None:
        """Row b goes back to snapshot chosen[b] ([B] int64), or keeps its state where chosen is their number."""
        for key, state in self.state_tensors():
            place = chosen.to(state.device)
            # A state that did not exist yet was zero.
            olds = [s.get(key) for s in self.snapshots]
            for index, old in enumerate(olds):
                goes_back = (place == index).view(-1, *[1] * (state.dim() - 1))
                state.copy_(torch.where(goes_back, torch.zeros_like(state) if old is None else old, state))

    def select_states(self, rows: Tensor) -> None:
        """Row i becomes old row rows[i]."""
        for (name, index), state in list(self.state_tensors()):
            getattr(self, name)[index] = state[rows.to(state.device)]

    @property
    def state_bytes(self) -> int:
        """Bytes of the states and of all snapshots."""
        tensors = [*dict(self.state_tensors()).values(), *(t for s in self.snapshots for t in s.values())]
        return sum(t.numel() * t.element_size() for t in tensors)


class HybridLayer(RecurrentLayer, FullAttentionLayer):  # type: ignore[override]
    """A layer with recurrent states and full attention."""

    def __init__(self, opening: Opening, num_states: int = 1) -> None:
        FullAttentionLayer.__init__(self, opening)
        RecurrentLayer.__init__(self, num_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        _initialize(self, FullAttentionLayer, args, kwargs)


class HybridSlidingLayer(RecurrentLayer, SlidingLayer):  # type: ignore[override]
    """A layer with recurrent states and a sliding window."""

    def __init__(self, opening: Opening, window: int, num_states: int = 1) -> None:
        SlidingLayer.__init__(self, opening, window)
        RecurrentLayer.__init__(self, num_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        _initialize(self, SlidingLayer, args, kwargs)


def _initialize(layer: Any, attention: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """transformers gives attention's states by position, recurrent ones by name."""
    (LinearAttentionLayer if kwargs else attention).lazy_initialization(layer, *args, **kwargs)  # type: ignore[attr-defined]
