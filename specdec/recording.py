"""What `return_dict_in_generate` asks for beside the tokens: scores, logits and hidden states of returned tokens.

A round's forward computes them for every draft position; kept are those of the tokens that were committed: the
path from the root down, the recovered or bonus token's position included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(slots=True)
class Recorder:
    """Collects per request, in order; cut to the returned tokens when read.

    Args:
        batch_size: requests.
        pad_token_id: behind a row's end the padding is certain: its score is 0 and all others -inf, so that
            a sum of transition scores needs no mask.
    """

    batch_size: int
    pad_token_id: int
    keeps_scores: bool = False
    keeps_logits: bool = False
    keeps_hidden: bool = False
    whole_hidden: bool = False  # every step shows all that came before, as transformers does without a cache
    _scores: list[list[Tensor]] = field(init=False)  # per request, [V] a token
    _logits: list[list[Tensor]] = field(init=False)
    _columns: list[Tensor] = field(default_factory=list, init=False)  # scores [B, V] that have been asked for
    _hidden: list[list[list[Tensor]]] = field(init=False)  # per layer and request, pieces [n, H]

    def __post_init__(self) -> None:
        self._scores = [[] for _ in range(self.batch_size)]
        self._logits = [[] for _ in range(self.batch_size)]
        self._hidden = []

    @property
    def wanted(self) -> bool:
        return self.keeps_scores or self.keeps_logits or self.keeps_hidden

    def add(self, requests: Sequence[int], path: Tensor, counts: Sequence[int], scores: Tensor, logits: Tensor) -> None:
        """Keeps the scores and logits [B, N + 1, V] of each row's committed tokens.

        Args:
            requests: B, each row's index in the user's batch.
            path: [B, D + 1] int64, the node index of every committed token (0 = root).
            counts: B, how many of them are committed.
        """
        for row, (request, count) in enumerate(zip(requests, counts, strict=True)):
            nodes = path[row, :count]
            if self.keeps_scores:
                self._scores[request].extend(scores[row, nodes])
            if self.keeps_logits:
                self._logits[request].extend(logits[row, nodes].float())

    def add_hidden(self, requests: Sequence[int], layers: Sequence[Tensor], slots: Sequence[Tensor]) -> None:
        """Keeps hidden states [B, W, H] of each layer at each row's window indices `slots`."""
        if not self._hidden:
            self._hidden = [[[] for _ in range(self.batch_size)] for _ in layers]
        for kept, states in zip(self._hidden, layers, strict=True):
            for row, request in enumerate(requests):
                kept[request].append(states[row, slots[row].to(states.device)])

    def scores(self, length: int, lengths: Sequence[int]) -> tuple[Tensor, ...] | None:
        """The scores of the first `length` new tokens, [B, V] each; rows end after lengths[b].

        Columns are made once: stopping criteria ask for one more each time, when it is final for every row.
        """
        if not self.keeps_scores:
            return None
        self._columns += self._by_step(self._scores, range(len(self._columns), length), lengths)
        return tuple(self._columns[:length])

    def logits(self, length: int, lengths: Sequence[int]) -> tuple[Tensor, ...] | None:
        """The unprocessed logits, likewise."""
        return tuple(self._by_step(self._logits, range(length), lengths)) if self.keeps_logits else None

    def hidden_states(self, mask: Tensor, length: int, lengths: Sequence[int]) -> tuple[tuple[Tensor, ...], ...] | None:
        """As transformers returns them: per step a tuple over layers; [B, T, H] for the prompt, then [B, 1, H].

        Args:
            mask: [B, T] bool, where the prompt's fed tokens stand in the user's layout. What stands elsewhere,
                and behind a row's end, is zero.
        """
        if not self.keeps_hidden:
            return None
        steps: list[list[Tensor]] = [[] for _ in range(length)]
        for kept in self._hidden:
            rows = [torch.cat(pieces) for pieces in kept]
            prompt = rows[0].new_zeros(*mask.shape, rows[0].shape[1])
            for row, (states, place) in enumerate(zip(rows, mask.to(prompt.device), strict=True)):
                prompt[row, place] = states[: int(place.sum())]
            steps[0].append(prompt)
            for step in range(1, length):
                at = [int(m.sum()) + step - 1 for m in mask]
                row_states = [
                    states[i] if step < n else torch.zeros_like(states[0])
                    for states, i, n in zip(rows, at, lengths, strict=True)
                ]
                steps[step].append(torch.stack(row_states)[:, None])
        if self.whole_hidden:
            for before, step_layers in pairwise(steps):
                step_layers[:] = [torch.cat(pair, dim=1) for pair in zip(before, step_layers, strict=True)]
        return tuple(tuple(layers) for layers in steps)

    def _by_step(self, rows: list[list[Tensor]], steps: range, lengths: Sequence[int]) -> list[Tensor]:
        """[B, V] for each step."""
        certain = torch.full_like(rows[0][0], float("-inf"))
        if 0 <= self.pad_token_id < len(certain):  # some pad with an id that no tokenizer has
            certain[self.pad_token_id] = 0
        return [torch.stack([r[i] if i < n else certain for r, n in zip(rows, lengths, strict=True)]) for i in steps]
