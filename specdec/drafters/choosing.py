"""Which of several drafters a row and round gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specdec.drafters.gains import Costs, Gains, Repeats

_FIRST_PAUSE, _LONGEST_PAUSE = 8, 256  # rounds until a drafter that did not pay is tried again


class Choosing:
    """The state of the choice in one call; looks at texts and earlier rounds only.

    Args:
        is_free: of each drafter, whether it runs no model.
        batch_size: rows.
        costs: of the drafters.
        joins: whether several drafters' proposals can be verified for one row.
    """

    def __init__(self, is_free: Sequence[bool], batch_size: int, costs: Costs, joins: bool) -> None:
        self._is_free = list(is_free)
        self._costs = costs
        self._joins = joins
        self._gains = Gains(len(is_free), batch_size)
        self._repeats = [Repeats() for _ in range(batch_size)]
        self._idle = [0] * len(is_free)  # rounds since a drafter that costs something was asked
        self._pauses = [_FIRST_PAUSE] * len(is_free)
        self._buckets: list[int] = []
        self._limit: list[int] = []

    def begin(self, texts: Sequence[Sequence[int]], limit: Sequence[int]) -> None:
        """A round over these rows, each with at most limit[b] levels."""
        self._buckets = [repeats.bucket(text) for repeats, text in zip(self._repeats, texts, strict=True)]
        self._limit = list(limit)

    def expected(self, drafter: int, row: int) -> float:
        """Tokens that the row would accept of the drafter's proposal."""
        return self._gains.expected(drafter, row, self._buckets[row], self._limit[row])

    def pick(self, row: int, sizes: Mapping[int, int]) -> tuple[list[int], float]:
        """The drafters whose proposals the row gets, the best first, and the tokens to expect of them together.

        Args:
            sizes: nodes of the row's proposal by drafter.
        """
        found = {drafter: self.expected(drafter, row) for drafter, size in sizes.items() if size}
        if not found or self._limit[row] == 0:
            return [], 0.0
        best, *others = sorted(found, key=lambda drafter: -found[drafter])
        chosen, gain = [best], found[best]
        for drafter in others if self._joins else []:
            extra = min(self._gains.extra(drafter, row), self._limit[row] - gain)
            if extra > self._costs.node * sizes[drafter] * (1 + gain):
                chosen.append(drafter)
                gain += extra
        return chosen, gain

    def costly(self, free: Sequence[float]) -> int | None:
        """The drafter whose forwards pay in this round, if any.

        Args:
            free: tokens to expect of each row without it.
        """
        costly = [drafter for drafter, is_free in enumerate(self._is_free) if not is_free]
        best, best_rate = None, sum(1 + gain for gain in free)
        for drafter in costly:
            tokens = sum(1 + max(gain, self.expected(drafter, row)) for row, gain in enumerate(free))
            rate = tokens / (1 + self._costs.of(drafter, max(self._limit)))
            if rate > best_rate:
                best, best_rate = drafter, rate
        for drafter in costly:
            self._idle[drafter] += 1
        if best is not None:
            self._pauses[best] = _FIRST_PAUSE
        else:
            best = next((drafter for drafter in costly if self._idle[drafter] > self._pauses[drafter]), None)
            if best is None:
                return None
            self._pauses[best] = min(2 * self._pauses[best], _LONGEST_PAUSE)
        self._idle[best] = 0
        return best

    def learn(self, row: int, right: Mapping[int, float]) -> None:
        """So many tokens of these drafters' proposals to the row were right."""
        if self._limit[row]:
            self._gains.record(row, self._buckets[row], right)

    def select_rows(self, rows: Sequence[int]) -> None:
        self._gains.select_rows(rows)
        self._repeats = [self._repeats[r] for r in rows]
