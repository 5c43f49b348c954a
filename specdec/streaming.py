"""Tokens to a transformers streamer, as `generate()` would hand them over: the prompt, then one vector a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from specdec.errors import OptionError


class Stream:
    """Feeds one streamer from committed tokens.

    A streamer takes the tokens of all rows step by step, so with several rows a step is handed on once the slowest row
    has it; padding stands for rows that are done.

    Args:
        streamer: of transformers, or anything with its `put` and `end`.
        batch_size: rows.
        pad_token_id: for rows that are done.
    """

    def __init__(self, streamer: BaseStreamer, batch_size: int, pad_token_id: int) -> None:
        self._streamer = streamer
        self._rows: list[list[int]] = [[] for _ in range(batch_size)]
        self._done = [False] * batch_size
        self._pad = pad_token_id
        self._step = 0

    def prompt(self, input_ids: Tensor) -> None:
        """Hands over the prompt [B, P]."""
        self._streamer.put(input_ids.cpu())

    def add(self, row: int, tokens: list[int], finished: bool) -> None:
        """Hands over every step that these tokens complete."""
        self._rows[row] += tokens
        self._done[row] |= finished
        last = max(map(len, self._rows))
        while self._step < last and all(
            done or len(r) > self._step for r, done in zip(self._rows, self._done, strict=True)
        ):
            step = [r[self._step] if len(r) > self._step else self._pad for r in self._rows]
            self._streamer.put(torch.tensor(step))
            self._step += 1


class AggregatedStreamer(BaseStreamer):
    """Passes tokens on `num_tokens` at a time, however many a round accepted.

    Speculation makes tokens come in bursts, and the bursts' lengths tell an observer of the stream which text was
    easy to guess (arXiv:2411.01076, arXiv:2410.17175). Here every burst but the last has the same length; how long
    one took still tells how many rounds it needed, so take `num_tokens` well above the acceptance length.

    Args:
        streamer: receives the tokens.
        num_tokens: steps a burst, at least 1.

    Raises:
        OptionError: num_tokens is not a positive integer.

    Example:
        >>> streamer = AggregatedStreamer(TextStreamer(tokenizer), num_tokens=32)  # doctest: +SKIP
        >>> specdec.generate(target, **inputs, drafter=draft, streamer=streamer)  # doctest: +SKIP
    """

    def __init__(self, streamer: BaseStreamer, num_tokens: int) -> None:
        if type(num_tokens) is not int or num_tokens < 1:
            raise OptionError(f"num_tokens must be a positive integer, got {num_tokens!r}.")
        self._streamer = streamer
        self._num_tokens = num_tokens
        self._held: list[Any] = []
        self._is_prompt = True

    def put(self, value: Any) -> None:
        """Holds one step's tokens back until a burst is full; the prompt passes at once."""
        if self._is_prompt:
            self._is_prompt = False
            self._streamer.put(value)
            return
        self._held.append(value)
        if len(self._held) == self._num_tokens:
            self._flush()

    def end(self) -> None:
        """Passes on what is held, and the end. The next call starts anew."""
        self._is_prompt = True
        try:
            self._flush()
        finally:
            self._streamer.end()

    def _flush(self) -> None:
        held, self._held = self._held, []
        for value in held:
            self._streamer.put(value)


@contextmanager
def ended(streamer: Any, unless: Callable[[BaseException], bool] = lambda _: False) -> Iterator[None]:
    """Ends the streamer with the block, also after an exception: an iterator that waits on it must not hang.

    Args:
        streamer: None, or what has an `end`.
        unless: says after which exceptions somebody else goes on with the streamer.
    """
    try:
        yield
    except BaseException as error:
        if hasattr(streamer, "end") and not unless(error):
            streamer.end()
        raise
    if streamer is not None:
        streamer.end()
