"""When a row ends: transformers' stopping criteria, asked about every committed token as `generate()` asks them.

Criteria that look at a row by itself (EOS, length, stop strings) are asked row by row, as soon as a block of tokens is
accepted. Others are asked column by column, with the whole batch as transformers would show it: one that
indexes rows, counts its calls or answers for all rows at once works unchanged at any batch size. A row that
is ahead of the others then waits, unpublished, for the slowest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StopStringCriteria,
)

from specdec.errors import OptionError


@dataclass(slots=True)
class Limits:
    """When rows are done, and what they are padded with then.

    Args:
        max_new_tokens: at most this many new tokens a row.
        eos_token_ids: end a row.
        pad_token_id: what stands behind a row's end.
        strings: stop strings.
        timers: end the whole batch once their time is up.
        columns: criteria that specdec knows nothing about.
        runs_on: rows that are done go on until all are, as in transformers where no EOS id is set.
    """

    max_new_tokens: int
    eos_token_ids: Collection[int] = frozenset()
    pad_token_id: int = 0
    strings: Sequence[StopStringCriteria] = ()
    timers: Sequence[MaxTimeCriteria] = ()
    columns: Sequence[StoppingCriteria] = ()
    runs_on: bool = False

    @classmethod
    def read(cls, criteria: Sequence[StoppingCriteria], prompt_length: int, pad_token_id: int | None) -> Limits:
        """Sorts transformers' criteria.

        Raises:
            OptionError: no criterion limits the length.
        """
        lengths = [int(c.max_length) for c in criteria if type(c) is MaxLengthCriteria]
        if not lengths:
            raise OptionError("nothing limits the output's length: give max_new_tokens= or max_length=.")
        eos = [torch.as_tensor(c.eos_token_id).flatten().tolist() for c in criteria if type(c) is EosTokenCriteria]
        ids = [int(i) for one in eos for i in one]
        known = (MaxLengthCriteria, EosTokenCriteria, StopStringCriteria, MaxTimeCriteria)
        return cls(
            min(lengths) - prompt_length,
            frozenset(ids),
            pad_token_id if pad_token_id is not None else next(iter(ids), 0),  # as transformers pads
            [c for c in criteria if type(c) is StopStringCriteria],
            [c for c in criteria if type(c) is MaxTimeCriteria],
            [c for c in criteria if type(c) not in known],
            runs_on=not any(hasattr(c, "eos_token_id") for c in criteria),
        )


@dataclass(slots=True)
class Stopping:
    """Decides, token by token, where each row of a call ends.

    Args:
        limits: the criteria.
        prompt: [B, P] int64, as transformers would show it.
        scores: gives the scores of the first n new tokens, n tensors [B, V], for rows of the given lengths, or None
            where they are not kept.
        settle: makes several processes' answers of timers and unknown criteria one.

    Attributes:
        outputs: the new tokens of each row, cut where the row ends.
        settled: how many tokens of every row are final and may be published.
    """

    limits: Limits
    prompt: Tensor
    scores: Callable[[int, Sequence[int]], tuple[Tensor, ...] | None] = lambda _, __: None
    settle: Callable[[list[bool]], list[bool]] = list
    outputs: list[list[int]] = field(init=False)
    _ends: list[int | None] = field(init=False)
    _tails: list[list[int]] = field(init=False)  # of the prompts, as far as a stop string can reach back
    _column: int = field(default=0, init=False)
    _runs_on: bool = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = [[] for _ in range(len(self.prompt))]
        self._ends = [None] * len(self.prompt)
        most = max((int(c.maximum_token_len) for c in self.limits.strings), default=0)
        self._tails = self.prompt[:, max(0, self.prompt.shape[1] - most) :].tolist()
        early = self.limits.strings or self.limits.columns or self.limits.timers
        self._runs_on = self.limits.runs_on and len(self.prompt) > 1 and bool(early)  # else all rows end together

    @property
    def max_new_tokens(self) -> int:
        """What a row may still become; shrinks once it is known where the last row ends."""
        ends = [e for e in self._ends if e is not None]
        return max(ends) if len(ends) == len(self._ends) else self.limits.max_new_tokens

    def settled(self, row: int) -> int:
        """How many tokens of the row are final."""
        length = len(self.outputs[row])
        return min(length, self._column) if self._by_column else length

    def is_done(self, row: int) -> bool:
        """May the row leave the loop?"""
        if self._runs_on:
            return len(self.outputs[row]) >= self.max_new_tokens
        return self._ends[row] is not None

    def is_finished(self, row: int) -> bool:
        """Has every token that the row will have been settled?"""
        return self.is_done(row) and self.settled(row) == len(self.outputs[row])

    def add(self, row: int, tokens: list[int]) -> int:
        """Appends a round's tokens to a row, up to where it ends by itself; returns how many were taken."""
        output = self.outputs[row]
        tokens = tokens[: self.max_new_tokens - len(output)]
        if self._ends[row] is not None:  # it runs on
            output.extend(tokens)
            return len(tokens)
        stop = next((i for i, t in enumerate(tokens) if t in self.limits.eos_token_ids), None)
        if stop is not None:
            tokens = tokens[: stop + 1]
        before = len(output)
        output.extend(tokens)
        stringed = self._first_stop_string(row, before)
        ended = stop is not None or len(output) >= self.limits.max_new_tokens
        if stringed is not None:
            self._end(row, stringed)
        elif ended:
            self._end(row, len(output))
        return len(output) - before

    def close_round(self) -> None:
        """Asks what is asked about the whole batch; call it when every row of a round has been added."""
        if self.limits.timers:
            nothing = torch.empty(1, 0, dtype=torch.int64)
            if self.settle([any(bool(timer(nothing, None)) for timer in self.limits.timers)])[0]:
                # Rows that may not be padded stop together, at the slowest one's length; no more is published yet.
                together = min(map(len, self.outputs)) if self._runs_on else None
                for row, end in enumerate(self._ends):
                    length = len(self.outputs[row]) if together is None else together
                    if end is None or end > length:
                        self._end(row, length)
        if self._by_column:
            self._advance()
        if self._runs_on and None not in self._ends:
            for output in self.outputs:
                del output[self.max_new_tokens :]

    @property
    def _by_column(self) -> bool:
        return bool(self.limits.columns) or self._runs_on

    def _end(self, row: int, length: int) -> None:
        self._ends[row] = length
        if not self._runs_on:
            del self.outputs[row][length:]

    def _first_stop_string(self, row: int, before: int) -> int | None:
        """The output's length at the first token from `before` on that completes a stop string."""
        if not self.limits.strings:
            return None
        lengths = range(before + 1, len(self.outputs[row]) + 1)
        text, start = self._tails[row] + self.outputs[row], len(self._tails[row])
        found = []
        for criterion in self.limits.strings:
            most = int(criterion.maximum_token_len)  # the criterion looks no further back
            windows = [text[max(0, start + length - most) : start + length] for length in lengths]
            if len({len(w) for w in windows}) == 1:
                flags = criterion(torch.tensor(windows), None).tolist()
            else:
                flags = [bool(criterion(torch.tensor([w]), None)) for w in windows]
            found += [length for length, flag in zip(lengths, flags, strict=True) if flag]
        return min(found, default=None)

    def _advance(self) -> None:
        """Asks the criteria about every column that is complete."""
        while True:
            column = self._column
            running = [r for r, end in enumerate(self._ends) if end is None or end > column]
            needed = range(len(self._ends)) if self._runs_on else running
            if not running or any(len(self.outputs[r]) <= column for r in needed):
                break
            ends = self._ask(column + 1)
            for row in running:
                if ends[row]:
                    self._end(row, column + 1)
            self._column += 1

    def _ask(self, length: int) -> list[bool]:
        """Which rows any of the criteria ends at `length` new tokens."""
        batch_size, pad = len(self.outputs), self.limits.pad_token_id
        ended = [False] * batch_size
        if not self.limits.columns:
            return ended
        rows = [output[:length] + [pad] * (length - len(output)) for output in self.outputs]
        new = torch.tensor(rows, dtype=self.prompt.dtype, device=self.prompt.device)
        input_ids, scores = torch.cat([self.prompt, new], dim=1), self.scores(length, list(map(len, self.outputs)))
        for criterion in self.limits.columns:
            answer: Any = criterion(input_ids, scores)
            flags = torch.as_tensor(answer).bool().flatten().tolist()
            if len(flags) not in (1, batch_size):
                raise OptionError(
                    f"the stopping criterion {type(criterion).__name__} answered with {len(flags)} values for a batch "
                    f"of {batch_size}: return one per row, or one for all."
                )
            ended = [e or f for e, f in zip(ended, flags * (batch_size // len(flags)), strict=True)]
        return self.settle(ended)
