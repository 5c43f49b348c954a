"""How many tokens to draft: fixed, or chosen each round from measured acceptance and measured costs.

A choice made before the round's coins are drawn cannot bias the output. "auto" reads a clock, so with
sampling the same seed may give another (equally distributed) text; a fixed number repeats exactly.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from statistics import median
from typing import Protocol

MAX_DRAFT_TOKENS = 16


class Controller(Protocol):
    def choose(self) -> int:
        """Draft tokens to ask for this round, >= 0."""
        ...

    def record(
        self, drafted: Sequence[int], accepted: Sequence[int], width: int, draft_seconds: float, step_seconds: float
    ) -> None:
        """What came of it.

        Args:
            drafted, accepted: depth and accepted tokens of each row.
            width: tokens a row of the target's window: depth + 1, and what a recurrent row had to feed again.
            draft_seconds, step_seconds: drafting, and the rest of the step.
        """
        ...


class FixedLength:
    """Always the same number."""

    def __init__(self, num_draft_tokens: int) -> None:
        self._num = num_draft_tokens

    def choose(self) -> int:
        return self._num

    def record(
        self, drafted: Sequence[int], accepted: Sequence[int], width: int, draft_seconds: float, step_seconds: float
    ) -> None:
        pass


class _Recent:
    """The median of the last nine measurements; looked at far more often than added to."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=9)
        self.median: float | None = None

    def add(self, value: float) -> None:
        self._last.append(value)
        self.median = median(self._last)


class AutoLength:
    """Maximises expected tokens per second; stops drafting when nothing pays, and tries again now and then.

    Expected tokens of depth k: 1 + a_1 + a_1 a_2 + ..., with a_d the decayed conditional acceptance at
    depth d, which leans on that of depth d - 1 where little was seen. Cost: k drafted tokens, and a step
    over k + 1 tokens; each the median of recent measurements, interpolated between the widths that were
    seen.

    The first round drafts nothing, so that the plain step that everything is compared to is measured.
    """

    _DECAY = 0.95  # per observed round: about 20 rounds of memory
    _RETRY_ROUNDS = 3
    _HOPE = 3.0  # rounds of good acceptance imagined before the first: one bad round is no verdict
    _LEAN = 2.0  # rounds that a depth borrows from the one above it

    def __init__(self, start: int = 3) -> None:
        self._tried: list[float] = [0.0] * (MAX_DRAFT_TOKENS + 1)  # decayed counts by depth
        self._accepted: list[float] = [0.0] * (MAX_DRAFT_TOKENS + 1)
        self._tried[1], self._accepted[1] = self._HOPE, 0.7 * self._HOPE
        self._draft = _Recent()  # seconds a drafted token
        self._step: dict[int, _Recent] = defaultdict(_Recent)  # seconds of a step, by verified width
        self._refed = 0.0  # decayed mean of the tokens that windows hold beside depth + 1
        self._next = self._best_now = start
        self._pause = 8  # plain rounds before the next try, doubled by each failure
        self._wait = 0
        self._retrying = 0

    def choose(self) -> int:
        if not self._step:  # the first round
            return 0
        if self._wait > 0:
            self._wait -= 1
            if self._wait == 0:
                self._retrying = self._RETRY_ROUNDS
                self._forget()
            return 0
        if self._retrying > 0:
            self._retrying -= 1
            return min(2, max(1, self._next))
        best = self._best_now
        if best == 0:
            self._wait = self._pause
            self._pause = min(2 * self._pause, 256)
        else:
            self._next = best
        return best

    def record(
        self, drafted: Sequence[int], accepted: Sequence[int], width: int, draft_seconds: float, step_seconds: float
    ) -> None:
        depth = max(drafted)
        self._step[width].add(step_seconds)
        if depth == 0:
            if self._wait == 0:  # else the next choices are made
                self._best_now = self._best()
            return
        self._refed += (1 - self._DECAY) * (width - depth - 1 - self._refed)
        self._draft.add(draft_seconds / depth)
        for d in range(1, depth + 1):
            reached = sum(1 for k, a in zip(drafted, accepted, strict=True) if k >= d and a >= d - 1)
            passed = sum(1 for k, a in zip(drafted, accepted, strict=True) if k >= d and a >= d)
            if reached:
                weight = self._DECAY
                self._tried[d] = self._tried[d] * weight + reached / len(drafted)
                self._accepted[d] = self._accepted[d] * weight + passed / len(drafted)
        self._best_now = self._best()
        if self._best_now > 0 and any(accepted):
            self._pause = 8

    def _best(self) -> int:
        """The depth with the most expected tokens per second, at most one beyond what was measured."""
        if self._draft.median is None:
            return self._next
        refed = round(self._refed)
        measured = max(self._step) - refed  # widths; width w is depth w - 1
        expected, product, conditional = 1.0, 1.0, 0.0
        best, best_rate = 0, 1.0 / self._step_cost(1)
        for depth in range(1, min(measured, MAX_DRAFT_TOKENS) + 1):
            lean = 0.0 if depth == 1 else self._LEAN
            conditional = (self._accepted[depth] + lean * conditional) / (self._tried[depth] + lean)
            product *= conditional
            expected += product
            rate = expected / (depth * self._draft.median + self._step_cost(depth + 1 + refed))
            if rate > best_rate:
                best, best_rate = depth, rate
        return best

    def _seconds(self, width: int) -> float:
        """Of a step over a width that was measured."""
        seconds = self._step[width].median
        assert seconds is not None
        return seconds

    def _step_cost(self, width: int) -> float:
        """Seconds of a step over `width` tokens: measured, or from the nearest widths that were."""
        if width in self._step:
            return self._seconds(width)
        low = max((w for w in self._step if w < width), default=None)
        high = min((w for w in self._step if w > width), default=None)
        if low is None or high is None:
            nearest = high if low is None else low
            assert nearest is not None
            return self._seconds(nearest)
        share = (width - low) / (high - low)
        return (1 - share) * self._seconds(low) + share * self._seconds(high)

    def _forget(self) -> None:
        """Lets a retry change the verdict: earlier acceptance counts for one observation only."""
        for d, tried in enumerate(self._tried):
            if tried > 1:
                self._accepted[d] /= tried
                self._tried[d] = 1.0
