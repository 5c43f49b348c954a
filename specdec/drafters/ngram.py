"""Drafting without a model: what followed the last time the text looked like this."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.drafters.base import Drafter, DraftSession
from specdec.errors import OptionError
from specdec.state import DecodeState
from specdec.types import Proposal, int_tensor


class NgramIndex:
    """Where each n-gram of a growing text last ended. O(max_ngram) per appended token."""

    def __init__(self, min_ngram: int, max_ngram: int) -> None:
        self.sizes = range(max_ngram, min_ngram - 1, -1)
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0  # n-grams ending before this position are in

    def propose(self, tokens: Sequence[int], limit: int) -> list[int]:
        """The continuation of the longest suffix of `tokens` that occurred before, most recent first.

        A continuation that runs into the end of the text goes on with itself, so a loop of any period
        yields `limit` tokens.
        """
        length = len(tokens)
        while self._indexed < length - 1:  # the suffix itself must not be found
            end = self._indexed + 1
            for size in self.sizes:
                if size <= end:
                    self._ends[tuple(tokens[end - size : end])] = end
            self._indexed = end
        for size in self.sizes:
            start = self._ends.get(tuple(tokens[length - size :])) if size <= length else None
            if start is not None:
                period = length - start
                return [tokens[start + i % period] for i in range(limit)]
        return []


class NgramSession(DraftSession):
    observes = "nothing"

    def __init__(self, batch_size: int, min_ngram: int, max_ngram: int) -> None:
        self._indexes = [NgramIndex(min_ngram, max_ngram) for _ in range(batch_size)]

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        found = [
            index.propose(tokens, most)
            for index, tokens, most in zip(self._indexes, state.host_tokens, limit, strict=True)
        ]
        width = max(map(len, found))
        if width == 0:
            return Proposal.empty(state.batch_size, state.device)
        tokens = int_tensor([f + [0] * (width - len(f)) for f in found], state.device)
        if min(map(len, found)) == width:
            return Proposal.chain(tokens)
        lengths = int_tensor([len(f) for f in found], state.device)
        return Proposal.chain(tokens, torch.arange(width, device=state.device) < lengths[:, None])

    def select_rows(self, rows: Sequence[int], index: Tensor) -> None:
        self._indexes = [self._indexes[r] for r in rows]


class NgramDrafter(Drafter):
    """Copies what followed the longest suffix match in prompt and output (prompt lookup decoding).

    Costs nothing on the device; pays where the output repeats the prompt or itself: code, summaries,
    extraction, rewriting.

    Args:
        max_ngram: longest suffix looked for.
        min_ngram: shortest suffix trusted; 1 proposes more often and is wrong more often.

    Raises:
        OptionError: unless these are integers and 1 <= min_ngram <= max_ngram.

    Example:
        >>> NgramIndex(1, 3).propose([7, 8, 9, 7, 8], limit=4)
        [9, 7, 8, 9]
    """

    def __init__(self, max_ngram: int = 6, min_ngram: int = 2) -> None:
        if not (type(min_ngram) is type(max_ngram) is int and 1 <= min_ngram <= max_ngram):
            raise OptionError(
                f"NgramDrafter needs integers 1 <= min_ngram <= max_ngram, got {min_ngram=!r}, {max_ngram=!r}."
            )
        self.max_ngram = max_ngram
        self.min_ngram = min_ngram

    def start(self, state: DecodeState) -> NgramSession:
        return NgramSession(state.batch_size, self.min_ngram, self.max_ngram)
