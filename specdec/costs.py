"""What a round's parts cost, in seconds, from what was measured lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence


class _Recent:
    """The lower median of the last nine measurements (what goes wrong only makes them slower)."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=9)
        self._is_stale = False
        self.median: float | None = None  # None until something was added
        self.count = 0
        self.round = 0  # of the last one

    @property
    def is_sure(self) -> bool:
        """Measured often enough that one busy moment of the machine is not what is known."""
        return len(self._last) >= 3 and not self._is_stale

    def add(self, value: float) -> None:
        if self._is_stale:
            self._last.clear()
            self._is_stale = False
        self._last.append(value)
        self.count += 1
        self.median = sorted(self._last)[(len(self._last) - 1) // 2]

    def age(self) -> None:
        """What is known is a guess now, until the next measurement."""
        self._is_stale = True


class Costs:
    """Seconds of a step by its width, and of drafting.

    A step costs no more than a measured wider one (one slow measurement is no property of a width), what lies between
    two widths is interpolated, and what lies behind the last goes on as between the last two,
    or between the first and the last where that is less. The draft's first round,
    in which it reads the prompt, is not counted; a round that follows rounds without drafts is, in which it reads what
    was committed meanwhile, but not as the price of a drafted token.

    Attributes:
        draft: seconds a drafted token; None while unknown.
        widest: widest window measured.
        needs_plain: a step without drafts has to be measured before anything can be compared.
    """

    _OLD = 96  # rounds after which a measurement is the machine's past
    _SPIKE = 3.0  # times what is known is what a round is charged at most: another process is not the draft's fault

    def __init__(self) -> None:
        self._step: dict[int, _Recent] = {}  # by width
        self._doubted: set[int] = set()  # widths whose first measurement was too slow to be believed at once
        self._draft = _Recent()
        self._catch_up = _Recent()  # seconds a committed token that the draft lacks
        self._has_drafted = False
        self._is_draft_doubted = False  # its first measurement was: a plain step a token
        self._lag = 0.0  # tokens a row committed since the draft last ran
        self._rows = self._round = 0
        self.widest = 0
        self.needs_plain = True

    @property
    def draft(self) -> float | None:
        return self._draft.median

    @property
    def catching_up(self) -> float:
        """Plain steps that the draft needs to read what was committed without it."""
        return self._lag * (self._catch_up.median or 0.0) / self._plain_seconds()

    @property
    def of_trying(self) -> float:
        """Plain steps that a round of one drafted token loses if it is rejected."""
        plain, wider = self.steps(2)
        return self.catching_up + ((self._draft.median or 0.0) + wider) / plain - 1

    def add(self, rows: int, depth: int, width: int, tokens: float, draft_seconds: float, step_seconds: float) -> float:
        """A round; returns what it lost against as many plain steps, in plain steps; negative if it gained.

        Args:
            rows: of the batch.
            depth: of the drafts, 0 if there were none.
            width: tokens a row of the target's window.
            tokens: committed, a row.
        """
        if rows != self._rows:
            self._rows = rows
            self._draft.age()
            for recent in self._step.values():
                recent.age()
            self.needs_plain = True
        self._round += 1
        for recent in self._step.values():
            if self._round - recent.round > self._OLD:
                recent.age()
        drafting = self._drafted(depth, draft_seconds)
        step = self._stepped(width, step_seconds)
        self._lag = 0.0 if depth else self._lag + tokens
        plain = self._plain_seconds()
        return drafting / plain if width == 1 else (drafting + step) / plain - tokens

    def is_known(self, width: int) -> bool:
        """A step of this width was measured."""
        return width in self._step

    def doubtful(self) -> list[int]:
        """Widths measured less than three times, or long ago; the plain step's aside."""
        return [width for width, recent in self._step.items() if width > 1 and not recent.is_sure]

    @property
    def num_plain(self) -> int:
        """Plain steps measured."""
        return self._step[1].count if 1 in self._step else 0

    def _stepped(self, width: int, seconds: float) -> float:
        """Takes note of what a step cost; returns the seconds that count."""
        recent = self._step.get(width)
        if recent is None:
            most = self._believable(width)
            if seconds > most and width not in self._doubted:
                self._doubted.add(width)
                return most
            recent = self._step[width] = _Recent()
            self.widest = max(self.widest, width)
        recent.add(seconds)
        recent.round = self._round
        if width == 1:
            self.needs_plain = False
        return min(seconds, self._SPIKE * (recent.median or 0.0))

    def _believable(self, width: int) -> float:
        """Seconds that a step of a new width may take: as many single steps, or a few times what its neighbours say."""
        if not self._step:
            return float("inf")
        steps = self.steps(width)
        return 1.2 * width * steps[0] if len(self._step) == 1 else self._SPIKE * steps[-1]

    def _drafted(self, depth: int, seconds: float) -> float:
        """Takes note of what drafting cost; returns the seconds that count."""
        if depth == 0:
            return seconds  # a look-up that found nothing
        if not self._has_drafted:
            self._has_drafted = True
            return 0.0
        known = self._draft.median
        if self._lag and known is not None:
            behind = max(0.0, seconds - depth * known)
            self._catch_up.add(behind / self._lag)
            expected = self._lag * (self._catch_up.median or 0.0)
            return min(seconds, self._SPIKE * (depth * known + expected))
        if known is None and not self._is_draft_doubted and seconds > depth * self._plain_seconds():
            self._is_draft_doubted = True
            return depth * self._plain_seconds()
        self._draft.add(seconds / depth)
        return min(seconds, self._SPIKE * depth * (self._draft.median or 0.0))

    def _plain_seconds(self) -> float:
        return min(recent.median or 0.0 for recent in self._step.values())

    def steps(self, most: int, without: Collection[int] = ()) -> list[float]:
        """Seconds of steps over 1, 2, ..., most tokens; without: widths whose measurements are left out."""
        known: list[tuple[int, float]] = []
        least = float("inf")
        widths = sorted(self._step.keys() - without)
        for width in reversed(widths):
            least = min(least, self._step[width].median or 0.0)
            known.append((width, least))
        dearest = known[0][1]
        width, seconds = known.pop()
        found = [seconds] * min(width, most)
        while known and len(found) < most:
            following, more = known.pop()
            rise = (more - seconds) / (following - width)
            found += [seconds + rise * i for i in range(1, min(following, most) - width + 1)]
            width, seconds = following, more
        return found if len(found) == most else found + self._beyond(widths, dearest, most)

    def _beyond(self, widths: Sequence[int], dearest: float, most: int) -> list[float]:
        """Seconds of steps wider than the last one of `widths`."""
        slope, last = 0.0, widths[-1]
        if len(widths) > 1:
            # A step up a stair is not the stair's slope: what is too hopeful is soon measured.
            near, far = (
                (dearest - min(dearest, self._step[w].median or 0.0)) / (last - w) for w in (widths[-2], widths[0])
            )
            slope = min(near, far)
        return [dearest + slope * i for i in range(1, most - last + 1)]
