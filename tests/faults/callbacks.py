"""Callbacks of a user's own that count their calls and fail at one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import specdec


class Trap:
    """Counts calls; does something at one of them.

    Args:
        at: the call, None for none.
        action: gets what the callback would return, and returns something else, or raises.
    """

    def __init__(self, at: int | None = None, action: Callable[..., Any] = lambda value, *_: value) -> None:
        self.at, self.action = at, action
        self.count = 0
        self.fired = False

    def __call__(self, value: Any, *context: Any) -> Any:
        here, self.count = self.count, self.count + 1
        if here != self.at:
            return value
        self.fired = True
        return self.action(value, *context)


class Witness(Trap):
    """Changes nothing; has fired once it has seen what the fault makes.

    Args:
        is_fault: of the value, is this it?
    """

    def __init__(self, is_fault: Callable[[Any], bool] = lambda _: True) -> None:
        super().__init__()
        self._is_fault = is_fault

    def __call__(self, value: Any, *context: Any) -> Any:
        self.fired = self.fired or self._is_fault(value)
        return super().__call__(value, *context)


class Trapped(specdec.Drafter):
    """Another drafter, with a trap in one callback.

    Attributes:
        opened, closed: sessions; all that were opened must be closed once.
    """

    def __init__(self, inner: specdec.Drafter, callback: str, trap: Trap) -> None:
        self.inner, self.callback, self.trap = inner, callback, trap
        self.opened = self.closed = 0

    def caught(self, callback: str, value: Any, *context: Any) -> Any:
        return self.trap(value, *context) if callback == self.callback else value

    def check(self, target: Any) -> None:
        self.inner.check(target)
        self.caught("check", None)

    def start(self, state: specdec.DecodeState) -> specdec.DraftSession:
        session = self.inner.start(state)
        self.caught("start", None)
        self.opened += 1
        return _Session(self, session)


class _Session(specdec.DraftSession):
    def __init__(self, drafter: Trapped, inner: specdec.DraftSession) -> None:
        self._drafter, self._inner = drafter, inner

    @property
    def observes(self) -> Any:  # type: ignore[override]
        return self._inner.observes

    @property
    def levels(self) -> bool:
        return self._inner.levels

    @property
    def forwards(self) -> int:
        return self._inner.forwards

    def propose(self, state: specdec.DecodeState, limit: Any) -> Any:
        made = self._inner.propose(state, limit)
        return self._drafter.caught("propose", made, max(limit)) if made.num_nodes else made

    def observe(self, *given: Any) -> None:
        self._inner.observe(*given)
        self._drafter.caught("observe", None)

    def select_rows(self, *given: Any) -> None:
        self._inner.select_rows(*given)
        self._drafter.caught("select_rows", None)

    def close(self) -> None:
        self._drafter.closed += 1
        self._inner.close()
        self._drafter.caught("close", None)


class Processor(LogitsProcessor):
    """Changes nothing, but for what its trap does; a call about the prompt's own length is not counted."""

    def __init__(self, trap: Trap, prompt_length: int) -> None:
        self._trap, self._prompt_length = trap, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._trap(scores) if input_ids.shape[1] > self._prompt_length else scores


class AtLength(LogitsProcessor):
    """Puts a value on all scores, or on one token's, of texts of one length: a pure function of the text.

    Args:
        witness: sees the scores that were changed.
    """

    def __init__(self, length: int, value: float, token: int | None, witness: Trap | None = None) -> None:
        self._length, self._value, self._token = length, value, token
        self._witness = witness or Trap()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] != self._length:
            return scores
        scores = scores.clone()
        scores[:, slice(None) if self._token is None else self._token] = self._value
        return self._witness(scores)


class Criterion(StoppingCriteria):
    """Ends nothing."""

    def __init__(self, trap: Trap) -> None:
        self._trap = trap

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        return self._trap(torch.zeros(len(input_ids), dtype=torch.bool))


class Streamer(BaseStreamer):
    """Keeps what it gets."""

    def __init__(self, put: Trap | None = None, end: Trap | None = None) -> None:
        self._put, self._end = put or Trap(), end or Trap()
        self.steps: list[list[int]] = []
        self.ends = 0

    def put(self, value: Tensor) -> None:
        self._put(None)
        if self._put.count > 1:  # the prompt comes first
            self.steps.append(value.tolist())

    def end(self) -> None:
        self.ends += 1
        self._end(None)
