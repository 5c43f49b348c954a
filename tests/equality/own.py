"""Processors, constraints and stopping criteria of a user's own, as programs that call generate() write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models import VOCAB_SIZE
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

Allowed = Callable[[int, Tensor], list[int]]


class ForbidTheTokenBeforeLast(LogitsProcessor):
    """A function of the prefix."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.scatter(1, input_ids[:, -2:-1], float("-inf"))


class Grammar(LogitsProcessor):
    """A parser that moves on one token at a time: it knows a text only if it was asked about the text before it.

    Token t may be followed by tokens u with u % 7 >= t % 5. A text that this forbids has no state: KeyError.

    Args:
        prompt_length: the first text that it is asked about.
    """

    def __init__(self, prompt_length: int) -> None:
        self._prompt_length = prompt_length
        self._states: dict[tuple[int, ...], int] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = torch.arange(scores.shape[1])
        allowed = torch.stack([tokens % 7 >= self._state(tuple(row.tolist())) for row in input_ids])
        return scores.masked_fill(~allowed, float("-inf"))

    def _state(self, text: tuple[int, ...]) -> int:
        if text not in self._states:
            if len(text) > self._prompt_length:
                before = self._states[text[:-1]]
                if text[-1] % 7 < before:
                    raise KeyError(text)
            self._states[text] = text[-1] % 5
        return self._states[text]


def sets_per_row(row: int, ids: Tensor) -> list[int]:
    """Five tokens that depend on the row and on its last token."""
    return [(int(ids[-1]) * 7 + row * 13 + i * 5) % (VOCAB_SIZE - 2) + 2 for i in range(5)]


def five_letters(_: int, ids: Tensor) -> list[int]:
    """So few tokens that a text repeats itself."""
    return [7, 8, 9, 10, 11]


def trie(prompt_length: int) -> Allowed:
    """A trie below each row's prompt, as constrained generation from a catalogue has it; outside it, KeyError."""

    def branches(text: list[int]) -> list[int]:
        return [(sum(text) * (3 + i) + 11 * i) % (VOCAB_SIZE - 2) + 2 for i in range(4)]

    def allowed(_: int, ids: Tensor) -> list[int]:
        text = ids.tolist()
        for end in range(prompt_length, len(text)):
            if text[end] not in branches(text[:end]):
                raise KeyError(text)
        return branches(text)

    return allowed


class EndsWith(StoppingCriteria):
    """Ends each row for itself, at one of the given tokens."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.isin(input_ids[:, -1], self._tokens)


class AnyEndsWith(EndsWith):
    """Answers with one bool: ends the whole batch once any row's last token is one of the given."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> bool:
        return bool(super().__call__(input_ids, scores).any())


class LooksAtAll(StoppingCriteria):
    """Ends a row by what the others say, also those that are over and run on; none before 20 columns."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        total = input_ids[:, -1].sum() if input_ids.shape[1] > 20 else torch.tensor(1)
        return total % 7 == 2 * torch.arange(len(input_ids))


class Unsure(StoppingCriteria):
    """Looks at the scores, as transformers' ConfidenceCriteria does: ends rows whose best token is below a share."""

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return scores[-1].softmax(-1).amax(-1) < self._share


class MultiTokenEos(StoppingCriteria):
    """As in lm-evaluation-harness: keeps which rows are done, decodes the end of every row, answers for all at once."""

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerBase, prompt_length: int, batch_size: int) -> None:
        self._text = text
        self._tokenizer = tokenizer
        self._prompt_length = prompt_length
        self._lookback = len(text) + 2
        self._done = [False] * batch_size

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> bool:
        ends = self._tokenizer.batch_decode(input_ids[:, self._prompt_length :][:, -self._lookback :])
        for row, done in enumerate(self._done):
            if not done:
                self._done[row] = self._text in ends[row]
        return False not in self._done
