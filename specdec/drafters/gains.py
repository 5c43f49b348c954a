"""What a mix of drafters learns within a call: accepted tokens to expect of each, and what a proposal costs."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from statistics import median

_SIZES = (2, 4, 8)


class Repeats:
    """How long a suffix of a growing text has occurred in it before. O(1) per appended token."""

    def __init__(self) -> None:
        self._seen: set[int] = set()  # hashes of n-grams: a collision costs a wrong guess, not a wrong token
        self._read = 0  # n-grams that end before this token are in

    def bucket(self, tokens: Sequence[int]) -> int:
        """0 where not even the last two tokens stood together before; 1, 2, 3 for suffixes of 2, 4, 8 tokens.

        Example:
            >>> Repeats().bucket([7, 8, 9, 5, 7, 8, 9, 5])
            2
        """
        length = len(tokens)
        for end in range(self._read + 1, length):  # the suffix itself must not be found
            self._seen.update(hash(tuple(tokens[end - size : end])) for size in _SIZES if size <= end)
        self._read = max(self._read, length - 1)
        found = 0
        for bucket, size in enumerate(_SIZES, start=1):
            if size > length or hash(tuple(tokens[length - size :])) not in self._seen:
                break
            found = bucket
        return found


class Mean:
    """A decayed mean that leans on another one where little was seen."""

    __slots__ = ("_total", "_weight")

    def __init__(self) -> None:
        self._total = self._weight = 0.0

    def add(self, value: float, decay: float) -> None:
        self._total, self._weight = self._total * decay + value, self._weight * decay + 1.0

    def towards(self, prior: float, lean: float) -> float:
        return (self._total + lean * prior) / (self._weight + lean)


class Gains:
    """Expected accepted tokens of each drafter's proposal.

    Three means, each of which leans on the next: of the row, of all rows whose text repeats itself as far (`Repeats`),
    of the drafter; and before anything was seen, half of what was asked for.
    """

    _DECAY = 0.95  # a round: about 20 of memory
    _ROW_DECAY = 0.8  # about 5
    _LEAN = 1.0

    def __init__(self, num_drafters: int, batch_size: int) -> None:
        self._drafters = [Mean() for _ in range(num_drafters)]
        self._buckets = [defaultdict[int, Mean](Mean) for _ in range(num_drafters)]
        self._rows = [[Mean() for _ in range(num_drafters)] for _ in range(batch_size)]
        self._extras = [[Mean() for _ in range(num_drafters)] for _ in range(batch_size)]

    def expected(self, drafter: int, row: int, bucket: int, limit: int) -> float:
        """Tokens that the row would accept of a proposal of at most `limit` levels."""
        mean = self._drafters[drafter].towards(0.5 * limit, self._LEAN)
        mean = self._buckets[drafter][bucket].towards(mean, self._LEAN)
        return min(self._rows[row][drafter].towards(mean, self._LEAN), limit)

    def extra(self, drafter: int, row: int) -> float:
        """Tokens that it would accept beyond what the best of the other proposals gives."""
        return self._extras[row][drafter].towards(1.0, self._LEAN)

    def record(self, row: int, bucket: int, accepted: Mapping[int, float]) -> None:
        """A round in which these drafters proposed something to the row, of which so many tokens were right."""
        for drafter, value in accepted.items():
            self._drafters[drafter].add(value, self._DECAY)
            self._buckets[drafter][bucket].add(value, self._DECAY)
            self._rows[row][drafter].add(value, self._ROW_DECAY)
            others = [v for d, v in accepted.items() if d != drafter]
            if others:
                self._extras[row][drafter].add(max(0.0, value - max(others)), self._ROW_DECAY)

    def select_rows(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[r] for r in rows]
        self._extras = [self._extras[r] for r in rows]


class Costs:
    """What proposals cost, in target steps: a proposal of each drafter, and a node in the target's window.

    Args:
        given: of each drafter; None to find out.
        reads_clock: measure; else a draft model's forward is taken to cost `_FORWARD`.
    """

    _FORWARD = 0.15
    _NODE = 0.02
    _MOST_NODE = 0.2
    _DECAY = 0.97

    def __init__(self, num_drafters: int, given: Sequence[float] | None, reads_clock: bool) -> None:
        self._given = given
        self._reads_clock = reads_clock and given is None
        self._seconds = [deque[float](maxlen=9) for _ in range(num_drafters)]
        self._forwards: list[int | None] = [None] * num_drafters
        self._is_first = [True] * num_drafters
        self._sums = [0.0] * 5  # of 1, x, y, xx, xy over steps of x nodes that took y seconds

    def of(self, drafter: int, limit: int) -> float:
        """Of a proposal of at most `limit` levels."""
        if self._given is not None:
            return self._given[drafter]
        forwards = self._forwards[drafter]
        step = self._step()[0]
        if self._reads_clock and self._seconds[drafter] and step > 0:
            return median(self._seconds[drafter]) / step
        return self._FORWARD * (limit if forwards is None else forwards)

    @property
    def node(self) -> float:
        """Of a node more in the target's window."""
        step, slope = self._step()
        return min(max(slope / step, 0.0), self._MOST_NODE) if step > 0 else self._NODE

    def drafted(self, drafter: int, forwards: int, seconds: float) -> None:
        """A proposal took so long. The first one, which reads the prompt, is no measure of others."""
        if not self._is_first[drafter]:
            self._forwards[drafter] = forwards
            self._seconds[drafter].append(seconds)
        self._is_first[drafter] = False

    def stepped(self, num_nodes: int, seconds: float) -> None:
        """A target step over so many nodes took so long."""
        seen = (1.0, num_nodes, seconds, num_nodes * num_nodes, num_nodes * seconds)
        self._sums = [s * self._DECAY + x for s, x in zip(self._sums, seen, strict=True)]

    def _step(self) -> tuple[float, float]:
        """Seconds of a step without nodes and of each node more (least squares); 0 where not measured."""
        n, x, y, xx, xy = self._sums
        if not self._reads_clock or n < 3:
            return 0.0, 0.0
        spread = n * xx - x * x
        slope = (n * xy - x * y) / spread if spread > 0.5 * n * n else self._NODE * y / n
        base = (y - slope * x) / n
        return (base, slope) if base > 0.2 * y / n else (y / n, 0.0)
