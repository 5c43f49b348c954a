"""Drafts that cost nothing: with them a round costs what the engine itself takes for it, by the round's width."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import torch
from torch import Tensor

from specdec.controller import MAX_DRAFT_TOKENS
from specdec.drafters import Drafter, DraftSession
from specdec.state import DecodeState
from specdec.types import Proposal

ROUNDS = 12  # that are timed in a call
MOST_NEW_TOKENS = ROUNDS + MAX_DRAFT_TOKENS + 1  # that any FreeDrafter asks for


class FreeDrafter(Drafter):
    """Proposes the same tokens in every round, at once, and notes when it is asked.

    Each row's proposal repeats the first token of its prompt, which is nearly always wrong; where it is accepted the
    round counts all the same, since rounds are what is measured. A drafter for one call at a time.

    Args:
        num_tokens: of each proposal; 0 makes plain rounds.

    Attributes:
        times: of the last call's rounds: when each began, and whether it was of full width and had all rows.
    """

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.times: list[tuple[float, bool]] = []

    @property
    def new_tokens(self) -> int:
        """To ask for: so many rounds are then of full width and seen to end, and the last have no room for drafts."""
        return ROUNDS + max(self.num_tokens, 2) + 1

    def start(self, state: DecodeState) -> FreeSession:
        self.times.clear()
        first = torch.tensor([[row[0]] for row in state.host_tokens], device=state.device)
        return FreeSession(first, self.num_tokens, self.times)

    def rounds(self) -> tuple[int, float]:
        """Rounds of full width in the last call, and their seconds: each lasts until the next one begins."""
        lasted = [
            after - begun for (begun, whole), (after, _) in zip(self.times, self.times[1:], strict=False) if whole
        ]
        return len(lasted), sum(lasted)


class FreeSession(DraftSession):
    """Args: first: [B, 1] int64, what is proposed; num_tokens: so often; times: the drafter's."""

    observes = "nothing"

    def __init__(self, first: Tensor, num_tokens: int, times: list[tuple[float, bool]]) -> None:
        self._first, self._num_tokens, self._times = first, num_tokens, times
        self._num_rows = len(first)

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        width = min(self._num_tokens, min(limit))
        is_whole = width == self._num_tokens and state.batch_size == self._num_rows
        self._times.append((perf_counter(), is_whole))
        if not width:
            return Proposal.empty(state.batch_size, state.device)
        return Proposal.chain(self._first.expand(-1, width))

    def select_rows(self, rows: Sequence[int], index: Tensor) -> None:
        self._first = self._first[index]
