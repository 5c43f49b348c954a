"""A drafter whose proposals are timed one by one: the first one of a call reads the prompt, and is no round's cost."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, cast

from transformers import PreTrainedModel

from specdec.drafters import Drafter, DraftSession
from specdec.state import DecodeState
from specdec.types import Proposal


class TimedDrafter(Drafter):
    """Drafts as another drafter does.

    Attributes:
        seconds: of each proposal since `clear`, host time.
    """

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self.depth = drafter.depth
        self.seconds: list[float] = []

    def check(self, target: PreTrainedModel) -> None:
        self.drafter.check(target)

    def start(self, state: DecodeState) -> DraftSession:
        self.seconds.clear()
        return cast(DraftSession, _TimedSession(self.drafter.start(state), self.seconds))


class _TimedSession:
    """Everything but `propose` is the other session's own, so that the loop treats it alike."""

    def __init__(self, session: DraftSession, seconds: list[float]) -> None:
        self._session, self._seconds = session, seconds

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        begun = perf_counter()
        proposal = self._session.propose(state, limit)
        self._seconds.append(perf_counter() - begun)
        return proposal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)
