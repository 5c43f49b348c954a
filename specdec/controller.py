"""How many tokens to draft: fixed, or chosen each round from measured acceptance and measured costs.

A choice made before the round's coins are drawn cannot bias the output. "auto" reads a clock, so with
sampling the same seed may give another (equally distributed) text; a fixed number repeats exactly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from specdec.costs import Costs

MAX_DRAFT_TOKENS = 16


class Controller(Protocol):
    @property
    def debt(self) -> float:
        """For the next call like this one: plain steps that drafts have lost; negative where they gained."""
        ...

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

    debt = 0.0

    def __init__(self, num_draft_tokens: int) -> None:
        self._num = num_draft_tokens

    def choose(self) -> int:
        return self._num

    def record(
        self, drafted: Sequence[int], accepted: Sequence[int], width: int, draft_seconds: float, step_seconds: float
    ) -> None:
        pass


class _Acceptance:
    """Conditional acceptance a_d of depth d, given that d - 1 was accepted: decayed counts.

    A depth leans on the one above it where little was seen; what a depth has shown fades while it is not drafted, so
    that bad luck there is not held against it for ever.
    """

    _DECAY = 0.95  # per observed round: about 20 rounds of memory
    _FADE = 0.97  # per round that did not draft so deep
    _HOPE = 2.0  # rounds of good acceptance imagined before the first: one bad round is no verdict
    _PRIOR = 0.7
    _LEAN = 2.0  # rounds that a depth borrows from the one above it

    def __init__(self) -> None:
        self._tried = [0.0] * (MAX_DRAFT_TOKENS + 1)  # by depth
        self._passed = [0.0] * (MAX_DRAFT_TOKENS + 1)
        self._tried[1], self._passed[1] = self._HOPE, self._PRIOR * self._HOPE

    def add(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """One round: depth and accepted tokens of each row."""
        tried, passed = self._tried, self._passed
        deepest, rows = max(map(min, drafted, (a + 1 for a in accepted))), len(drafted)
        for d in range(1, deepest + 1):
            if rows == 1:
                was_reached, was_passed = 1.0, float(accepted[0] >= d)
            else:
                pairs = [a for k, a in zip(drafted, accepted, strict=True) if k >= d]
                was_reached = sum(a >= d - 1 for a in pairs) / rows
                was_passed = sum(a >= d for a in pairs) / rows
            tried[d] = tried[d] * self._DECAY + was_reached
            passed[d] = passed[d] * self._DECAY + was_passed
        undrafted = max(2, max(drafted) + 1)
        tried[undrafted:] = [self._FADE * count for count in tried[undrafted:]]
        passed[undrafted:] = [self._FADE * count for count in passed[undrafted:]]

    def by_depth(self, most: int) -> list[float]:
        """a_1, a_2, ..., as far as `most`."""
        rate = self._passed[1] / self._tried[1]
        rates, lean = [rate], self._LEAN
        for tried, passed in zip(self._tried[2 : most + 1], self._passed[2 : most + 1], strict=True):
            rate = (passed + lean * rate) / (tried + lean)
            rates.append(rate)
        return rates

    def hope_again(self) -> None:
        """Before a new try: all that was seen counts for nothing, and one good round is imagined."""
        self._tried = [0.0] * (MAX_DRAFT_TOKENS + 1)
        self._passed = [0.0] * (MAX_DRAFT_TOKENS + 1)
        self._tried[1], self._passed[1] = 1.0, self._PRIOR


class _Account:
    """What drafting has cost against plain decoding so far, in plain steps; gains pay for later losses.

    Each round pays back `SHARE` of a plain step, so that over n tokens no more than LIMIT + SHARE n plain steps and one
    round are ever lost, whatever the draft and the estimates do. Calls that follow each other share the limit but for a
    tenth: it would be too much for each of many short texts.

    Args:
        debt: what an earlier call left.
    """

    SHARE = 0.025
    LIMIT = 6.0
    _SAVED = 20.0  # at most so much is set aside from good times
    _KEPT = 0.9  # of what was lost or gained, for the next call: a text of another kind has a chance

    def __init__(self, debt: float) -> None:
        self.lost = debt

    @property
    def debt(self) -> float:
        return self._KEPT * min(max(self.lost, -self.LIMIT), self.LIMIT)

    def add(self, lost: float) -> None:
        self.lost = max(self.lost + lost - self.SHARE, -self._SAVED)

    def allows(self, expected: float) -> bool:
        return self.lost + expected <= self.LIMIT


class _Measured:
    """What every choice by measurement rests on: costs, the account, and how long ago a plain step was timed."""

    def __init__(self, debt: float) -> None:
        self._costs = Costs()
        self._account = _Account(debt)
        self._since_plain = 0  # rounds

    @property
    def debt(self) -> float:
        return self._account.debt

    def _note(
        self, drafted: Sequence[int], accepted: Sequence[int], width: int, draft_seconds: float, step_seconds: float
    ) -> float:
        """Takes note of a round; returns what it lost, in plain steps."""
        tokens = 1 + sum(accepted) / len(accepted)
        lost = self._costs.add(len(drafted), max(drafted), width, tokens, draft_seconds, step_seconds)
        self._account.add(lost)
        self._since_plain = 0 if width == 1 else self._since_plain + 1
        return lost

    def _wants_plain(self, check: int) -> bool:
        """A plain step is to be timed: there is none to compare with, or the last is `check` rounds ago."""
        return self._costs.needs_plain or self._since_plain >= check


class AutoLength(_Measured):
    """Maximises expected tokens per second; stops drafting when nothing pays, and tries again now and then.

    Expected tokens of depth k: 1 + a_1 + a_1 a_2 + ..., with a_d the conditional acceptance at depth d. Cost: k drafted
    tokens, and a step over k + 1 tokens, as measured (`costs.Costs`). Up to twice the depth that was measured may be
    chosen, so that a draft that is always right soon reaches its best length.

    What bounds the loss where estimates are wrong or a draft deceives them is an account (`_Account`): every round's
    seconds against those of as many plain steps, the draft's catching up included (its first reading of the prompt is
    not: it is over before anything is known). Tries of a draft that did not pay come after pauses that double.

    Plain steps are what everything is compared to: the first round is one, and now and then another.

    Args:
        start: the first depth.
        debt: that an earlier call left.
    """

    _FIRST_PAUSE, _LONGEST_PAUSE = 8, 128  # plain rounds before the next try, doubled by each failure
    _CHECK = 16  # rounds after which a plain step is timed again, where drafting gains little
    _RARE_CHECK = 64  # and where it gains much
    _MUCH = 1.4

    def __init__(self, start: int = 3, debt: float = 0.0) -> None:
        super().__init__(debt)
        self._acceptance = _Acceptance()
        self._refed = 0.0  # decayed mean of the tokens that windows hold beside depth + 1
        self._best, self._gain = start, 1.0  # the chosen depth, and its tokens a second over plain decoding's
        self._pause = self._FIRST_PAUSE
        self._wait = 0
        # One behind a pause, and behind a call that lost; doubled by each round of which something is accepted.
        self._most = 1 if debt > 0 else MAX_DRAFT_TOKENS
        self._asked = 0

    def choose(self) -> int:
        self._asked = self._next()
        return self._asked

    def _next(self) -> int:
        is_sure = self._gain > self._MUCH and self._costs.num_plain > 1
        check = self._RARE_CHECK if is_sure else self._CHECK
        if self._wants_plain(check):
            return 0
        if self._wait > 0:
            self._wait -= 1
            if self._wait > 0 or not self._account.allows(self._costs.of_trying):
                self._wait = max(self._wait, 1)
                return 0
            self._acceptance.hope_again()
            self._most = 1
            return 1
        if self._best == 0:
            self._wait = self._pause
            self._pause = min(2 * self._pause, self._LONGEST_PAUSE)
            return 0
        if not self._account.allows(self._costs.catching_up):
            return 0
        depth = min(self._best, self._most)
        # What a step costs may rise in stairs: the one below is tried once, where only a guess speaks against it.
        width, known = depth + 1 + round(self._refed), self._costs.is_known
        if depth != self._asked or not known(width):
            return depth
        if depth > 1 and not known(width - 1):
            return depth - 1
        return min(self._doubted() or depth, self._most)

    def _doubted(self) -> int:
        """A depth that would be the best if its step cost what the others say, and was timed too seldom to tell; or 0.

        One busy moment of the machine, in the only round that had this depth, would rule it out for the whole text.
        """
        doubtful, refed = self._costs.doubtful(), round(self._refed)
        most = min(MAX_DRAFT_TOKENS, max(doubtful, default=0) - 1 - refed)
        if most < 1 or self._costs.draft is None:
            return 0
        best, gain = 0, self._gain
        for depth, found in self._gains(most, self._costs.draft, without=doubtful):
            if depth + 1 + refed in doubtful and found > gain:
                best, gain = depth, found
        return best

    def record(
        self, drafted: Sequence[int], accepted: Sequence[int], width: int, draft_seconds: float, step_seconds: float
    ) -> None:
        self._note(drafted, accepted, width, draft_seconds, step_seconds)
        depth = max(drafted)
        if depth:
            self._refed += 0.05 * (width - depth - 1 - self._refed)
            self._acceptance.add(drafted, accepted)
            self._most = min(2 * self._most, MAX_DRAFT_TOKENS) if any(accepted) else max(2, depth // 2)
        if self._wait == 0 and (depth or self._asked == 0):
            self._best, self._gain = self._found()
            if depth and self._gain > 1 and any(accepted):
                self._pause = self._FIRST_PAUSE

    def _found(self) -> tuple[int, float]:
        """The depth with the most expected tokens a second, and how many times plain decoding's that is."""
        if self._costs.draft is None:
            return self._best, self._gain
        most = min(MAX_DRAFT_TOKENS, max(1, 2 * (self._costs.widest - round(self._refed) - 1)))
        best, gain = 0, 1.0
        for depth, found in self._gains(most, self._costs.draft):
            if found > gain:
                best, gain = depth, found
        return best, gain

    def _gains(self, most: int, draft: float, without: Collection[int] = ()) -> Iterator[tuple[int, float]]:
        """Each depth up to `most`, and how many times plain decoding's tokens a second it is expected to bring.

        Args:
            draft: seconds a drafted token.
            without: widths whose measurements are left out.
        """
        refed = round(self._refed)
        steps = self._costs.steps(most + 1 + refed, without)
        plain, expected, product = steps[0], 1.0, 1.0
        for depth, rate in enumerate(self._acceptance.by_depth(most), 1):
            product *= rate
            expected += product
            yield depth, expected * plain / (depth * draft + steps[depth + refed])


class AutoSwitch(_Measured):
    """All of a depth that is the drafter's own, or nothing: for proposals most of which are not there to be accepted.

    There is nothing to choose from but whether to draft, so the account alone decides (`_Account`): drafts go on while
    what they have lost against plain steps, and would lose once more, is within its limit. A drafter that loses is
    tried again as the share that may be lost allows.

    Args:
        depth: of a proposal.
        debt: that an earlier call left.
    """

    _CHECK = 32  # rounds after which a plain step is timed again
    _NEWEST = 0.3  # weight of the last round in the mean

    def __init__(self, depth: int, debt: float = 0.0) -> None:
        super().__init__(debt)
        self._depth = depth
        self._loss = 0.0  # decayed mean of what a round with drafts lost, in plain steps

    def choose(self) -> int:
        if self._wants_plain(self._CHECK):
            return 0
        return self._depth if self._account.allows(max(0.0, self._loss)) else 0

    def record(
        self, drafted: Sequence[int], accepted: Sequence[int], width: int, draft_seconds: float, step_seconds: float
    ) -> None:
        lost = self._note(drafted, accepted, width, draft_seconds, step_seconds)
        if width > 1:
            self._loss += self._NEWEST * (lost - self._loss)
