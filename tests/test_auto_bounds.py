"""What "auto" may lose and must gain, on made-up clocks: no draft, cost or deceit makes it slow.

Costs are in plain steps, as measured for the bundled pair (docs/performance.md), or made up: verification that costs as
much as decoding (a mixture of experts, a large batch), a GPU on which it is nearly free.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from specdec.controller import MAX_DRAFT_TOKENS, AutoLength, AutoSwitch, Controller

TOKENS = 512
PROMPT = 128


@dataclass(frozen=True)
class Machine:
    """Costs in plain steps.

    Args:
        steps: of a step by its width; between and behind them in a line.
        draft: of a drafted token.
        reading: of a token that the draft reads to catch up, the prompt included.
    """

    steps: dict[int, float]
    draft: float
    reading: float = 0.0

    def step(self, width: int) -> float:
        known = sorted(self.steps)
        high = next((w for w in known[1:] if w >= width), known[-1])
        low = max(w for w in known if w < high)
        share = (width - low) / (high - low)
        return (1 - share) * self.steps[low] + share * self.steps[high]

    def fixed(self, alpha: float, k: int) -> float:
        """Speed over plain decoding with k draft tokens a round, the prompt read."""
        rounds = TOKENS / sum(alpha**i for i in range(k + 1))
        return TOKENS / (rounds * (k * self.draft + self.step(k + 1)) + (PROMPT * self.reading if k else 0))


def _in_plain_steps(milliseconds: dict[int, float], draft: float, reading: float) -> Machine:
    plain = milliseconds[1]
    return Machine({w: t / plain for w, t in milliseconds.items()}, draft / plain, reading / plain)


COMPILED = _in_plain_steps({1: 1.7, 2: 1.9, 3: 2.1, 4: 2.8, 5: 3.6, 6: 4.1, 8: 4.6, 17: 8.5}, 0.43, 0.08)
FLOAT32 = _in_plain_steps({1: 12.0, 2: 13.3, 3: 13.4, 4: 14.8, 5: 15.1, 6: 15.2, 8: 16.0, 12: 20.0}, 3.0, 0.15)
BFLOAT16 = _in_plain_steps({1: 13.8, 2: 20.9, 3: 23.1, 4: 26.8, 5: 29.1, 6: 29.6, 8: 30.8, 12: 35.0}, 3.3, 0.2)
FREE_DRAFTS = Machine(COMPILED.steps, 0.005)
EXPERTS = Machine({1: 1.0, 2: 2.0}, 0.2, 0.02)
GPU = Machine({1: 1.0, 17: 1.16}, 0.1, 0.002)
MACHINES = {
    "compiled": COMPILED,
    "float32": FLOAT32,
    "bfloat16": BFLOAT16,
    "free drafts": FREE_DRAFTS,
    "experts": EXPERTS,
    "gpu": GPU,
}


@dataclass
class Call:
    """What became of a text."""

    asked: list[int]
    speed: float  # over plain decoding
    drafted: int
    ends: list[float]  # tokens written behind each round


def decode(
    machine: Machine,
    accepts: Callable[[int, int], bool],
    tokens: int = TOKENS,
    rows: int = 1,
    noise: float = 0.05,
    seed: int = 0,
    stall: Callable[[int], float] = lambda _: 1.0,
    clock: Callable[[float], Machine] | None = None,
    controller: Controller | None = None,
) -> Call:
    """Drives the controller through a text.

    Args:
        accepts: of the place in the text and the row, whether the draft is right there.
        stall: how many times longer a round is seen to take, by its number; not counted in the speed.
        clock: the machine by the place in the text, where it changes.
        controller: an `AutoLength` if it is not another.
    """
    controller, generator = controller or AutoLength(), random.Random(seed)
    asked, written, seconds, plain, behind, drafted, ends = [], 0.0, 0.0, 0.0, float(PROMPT), 0, []
    while written < tokens:
        now = machine if clock is None else clock(written)
        k = max(0, min(controller.choose(), int(tokens - written) - 1))
        accepted = []
        for row in range(rows):
            count = 0
            while count < k and accepts(int(written) + count, row):
                count += 1
            accepted.append(count)
        slow = stall(len(asked))
        draft = (k * now.draft + behind * now.reading) * generator.uniform(1 - noise, 1 + noise) if k else 0.0
        step = now.step(k + 1) * generator.uniform(1 - noise, 1 + noise)
        controller.record([k] * rows, accepted, k + 1, draft * slow, step * slow)
        new = 1 + sum(accepted) / rows
        behind = 0.0 if k else behind + new
        written, seconds, plain = written + new, seconds + draft + step, plain + new * now.step(1)
        drafted += k
        asked.append(k)
        ends.append(written)
    return Call(asked, plain / seconds, drafted, ends)


def always(right: bool) -> Callable[[int, int], bool]:
    return lambda place, row: right


def by_chance(alpha: float, seed: int) -> Callable[[int, int], bool]:
    generator = random.Random(seed)
    return lambda place, row: generator.random() < alpha


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("name", MACHINES)
def test_an_always_wrong_draft_loses_less_than_a_twentieth(name: str, rows: int) -> None:
    """The prompt that the draft reads, its catching up and every wasted step included."""
    call = decode(MACHINES[name], always(False), rows=rows)
    assert call.speed > 0.955
    assert call.drafted < 60
    if name != "compiled":  # catching up would cost that draft more than the share that may be lost
        assert any(call.asked[200:]), "it is tried again now and then"


@pytest.mark.parametrize("name", ["compiled", "float32", "bfloat16", "free drafts", "gpu"])
def test_a_perfect_draft_comes_within_a_tenth_of_the_ideal(name: str) -> None:
    machine = MACHINES[name]
    ideal = max(machine.fixed(1.0, k) for k in range(MAX_DRAFT_TOKENS + 1))
    assert decode(machine, always(True)).speed > 0.9 * ideal


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_where_verification_costs_as_much_as_decoding_it_stops(alpha: float) -> None:
    """Each expert, or each row of a large batch, pays for its own tokens: no acceptance makes up for that."""
    speeds = []
    for seed in range(3):
        call = decode(EXPERTS, by_chance(alpha, seed), rows=4, seed=seed)
        speeds.append(call.speed)
        assert sum(k > 0 for k in call.asked) < 20
    assert min(speeds) > 0.955


@pytest.mark.parametrize("alpha", [0.5, 0.7, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("name", MACHINES)
def test_close_to_the_best_fixed_length_by_chance(name: str, alpha: float) -> None:
    machine = MACHINES[name]
    ideal = max(machine.fixed(alpha, k) for k in range(MAX_DRAFT_TOKENS + 1))
    speeds = [decode(machine, by_chance(alpha, seed), rows=2, seed=seed).speed for seed in range(4)]
    assert sum(speeds) / len(speeds) > 0.93 * ideal


@pytest.mark.parametrize("name", ["compiled", "bfloat16", "free drafts"])
def test_a_deceitful_draft_is_bounded_by_what_was_lost(name: str) -> None:
    """Right whenever it is tried, wrong as soon as it is trusted: estimates never see through it."""
    machine, last = MACHINES[name], 0
    controller = AutoLength()
    seconds = written = 0.0
    while written < 2048:
        k = controller.choose()
        accepted = 1 if k == 1 or (k and last == 0) else 0
        draft, step = k * machine.draft, machine.step(k + 1)
        controller.record([k], [accepted], k + 1, draft, step)
        last = accepted
        seconds, written = seconds + draft + step, written + 1 + accepted
    assert written / seconds > 0.96


def test_a_draft_that_turns_bad_is_dropped_at_once() -> None:
    """What a good passage has gained is not spent on a bad one."""
    call = decode(COMPILED, lambda place, row: place < 512, tokens=1024)
    late = [k for k, end in zip(call.asked, call.ends, strict=True) if end > 530]
    assert sum(late) < 50
    assert call.speed > 1.2


@pytest.mark.parametrize(
    ("name", "wrong"), [("compiled", 60), ("float32", 200), ("bfloat16", 200), ("gpu", 400), ("free drafts", 400)]
)
def test_a_draft_that_turns_good_is_found_again(name: str, wrong: int) -> None:
    """Soon, though so many tokens were all wrong: pauses are no longer than the text before them."""
    call = decode(MACHINES[name], lambda place, row: place >= wrong, tokens=2 * wrong + 200)
    late = [k for k, end in zip(call.asked, call.ends, strict=True) if end > wrong + min(wrong, 130) + 30]
    assert sum(late) / len(late) > 4


def test_probing_becomes_rare() -> None:
    """Tries of a draft that never pays come after pauses that double, so that long texts lose ever less."""
    call = decode(Machine(COMPILED.steps, COMPILED.draft), always(False), tokens=4096)
    early, late = sum(call.asked[:128]), sum(call.asked[-1024:])
    assert 4 <= late <= 16
    assert early >= 8
    assert call.speed > 0.99


def test_looking_up_in_vain_is_bounded() -> None:
    """A drafter that seldom finds anything, and takes a tenth of a plain step to find that out."""
    controller = AutoLength()
    seconds, looked = 0.0, 0
    for _ in range(TOKENS):
        k = controller.choose()
        looked += k > 0
        draft = 0.1 if k else 0.0
        controller.record([0], [0], 1, draft, 1.0)
        seconds += draft + 1.0
    assert TOKENS / seconds > 0.95
    assert 0 < looked < 256


def test_verification_that_grows_dear_is_noticed() -> None:
    """A process beside ours, a longer context: what was measured at the beginning no longer holds."""
    call = decode(GPU, by_chance(0.6, 1), tokens=1024, clock=lambda written: GPU if written < 256 else EXPERTS)
    late = [k for k, end in zip(call.asked, call.ends, strict=True) if end > 400]
    assert sum(k > 0 for k in late) < 0.1 * len(late)


def test_plain_steps_are_measured_again() -> None:
    """The first plain step took ten times as long (caches were cold): a draft that does not pay only seemed to."""
    call = decode(BFLOAT16, by_chance(0.6, 3), stall=lambda number: 10.0 if number == 0 else 1.0)
    assert sum(k > 0 for k in call.asked[100:]) < 40


def test_one_stall_is_no_verdict() -> None:
    """A round in which the machine was busy, at any time, does not end drafting."""
    ideal = max(FLOAT32.fixed(0.9, k) for k in range(MAX_DRAFT_TOKENS + 1))
    for number in range(1, 12):
        calls = [
            decode(FLOAT32, by_chance(0.9, seed), seed=seed, stall=lambda n, at=number: 20.0 if n == at else 1.0)
            for seed in range(3)
        ]
        assert sum(call.speed for call in calls) / len(calls) > 0.85 * ideal, number


@pytest.mark.parametrize("name", ["compiled", "float32", "bfloat16", "gpu"])
def test_busy_moments_do_not_hide_a_longer_draft(name: str) -> None:
    """Every seventh round looks longer than it is, now and then the first of its depth."""
    ideal = max(MACHINES[name].fixed(1.0, k) for k in range(MAX_DRAFT_TOKENS + 1))
    for seed in range(18):
        moods = random.Random(1000 + seed)
        stall = lambda _: moods.uniform(1.3, 2.2) if moods.random() < 0.15 else 1.0  # noqa: E731, B023
        assert decode(MACHINES[name], always(True), seed=seed, stall=stall).speed > 0.87 * ideal, seed


def test_what_was_dear_long_ago_is_timed_again() -> None:
    """Wide steps cost three times as much at first, often enough to be sure of."""
    dear = Machine({1: 1.0, 3: 1.03, 4: 3.0, 17: 3.5}, GPU.draft)
    call = decode(GPU, always(True), 3000, clock=lambda place: dear if place < 150 else GPU)
    assert max(call.asked[10:40]) < 8
    assert call.asked[-60:-2].count(MAX_DRAFT_TOKENS) > 50


def test_windows_that_grow_wider_than_what_is_doubted() -> None:
    """A recurrent row begins to feed tokens again: what was timed twice before is narrower than any window since."""
    controller, asked = AutoLength(), []
    controller.record([0], [0], 1, 0.0, 1.0)
    for number in range(120):
        asked.append(controller.choose())
        if asked[-1] == 0:
            controller.record([0], [0], 1, 0.0, 1.0)
        else:
            controller.record([1], [int(number % 10 < 7)], 2 if number < 2 else 6, 0.5, 1.0)
    assert asked[-20:].count(1) > 10


def test_a_batch_that_shrinks_measures_plain_steps_again() -> None:
    """Fewer rows, other costs: the next round is plain."""
    controller = AutoLength()
    for _ in range(40):
        k = controller.choose()
        controller.record([k] * 8, [k] * 8, k + 1, 0.1 * k, 1.0)
    assert controller.choose() > 4
    controller.record([8] * 7, [8] * 7, 9, 0.8, 1.0)
    assert controller.choose() == 0
    controller.record([0] * 7, [0] * 7, 1, 0.0, 1.0)
    assert controller.choose() > 4


def test_where_nothing_is_found_the_same_is_asked_for() -> None:
    """A look-up that costs nothing and finds nothing has measured no width, so that none is to be compared."""
    controller, asked = AutoLength(), []
    for _ in range(12):
        asked.append(controller.choose())
        controller.record([0], [0], 1, 0.0, 1.0)
    assert asked == [0] + [3] * 11


def wide(step: float) -> Machine:
    """Of a drafter with a depth of its own, 6: a step over all of its proposal, which costs 0.1."""
    return Machine({1: 1.0, 7: step}, 0.1 / 6)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.3])
@pytest.mark.parametrize("step", [1.5, 2.5, 4.0])
def test_a_wide_draft_that_does_not_pay_loses_less_than_a_twentieth(step: float, alpha: float) -> None:
    call = decode(wide(step), by_chance(alpha, 1), controller=AutoSwitch(6))
    assert call.speed > 0.95
    assert set(call.asked[:-6]) == {0, 6}
    assert any(call.asked[200:]), "it is tried again now and then"


@pytest.mark.parametrize(("step", "alpha"), [(1.2, 0.5), (1.5, 0.7), (2.5, 0.8)])
def test_a_wide_draft_that_pays_is_used(step: float, alpha: float) -> None:
    call = decode(wide(step), by_chance(alpha, 1), controller=AutoSwitch(6))
    assert call.speed > 0.95 * wide(step).fixed(alpha, 6)
    assert sum(k == 0 for k in call.asked[:-1]) <= 1 + len(call.asked) / 32, "the last token has no room for drafts"


def series(
    machine: Machine, alphas: list[float], make: Callable[[float], AutoLength | AutoSwitch], rows: int
) -> list[float]:
    """The speeds of texts of 64 tokens that follow each other, each with drafts of its own quality."""
    debt, speeds = 0.0, []
    for i, alpha in enumerate(alphas):
        controller = make(debt)
        speeds.append(decode(machine, by_chance(alpha, i), tokens=64, rows=rows, seed=i, controller=controller).speed)
        debt = controller.debt
    return speeds


def length(debt: float) -> AutoLength:
    return AutoLength(debt=debt)


def switch(debt: float) -> AutoSwitch:
    return AutoSwitch(6, debt)


WIDE = Machine({1: 1.0, 20: 3.0}, 0.3)  # a tree, say, whose draft has no prompt to read


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("name", ["bfloat16", "float32", "free drafts", "experts", "gpu", "wide"])
def test_many_short_texts_lose_less_than_one(name: str, rows: int) -> None:
    machine, make = (WIDE, switch) if name == "wide" else (MACHINES[name], length)
    first, *others = series(machine, [0.0] * 12, make, rows)
    apart = series(machine, [0.0] * 12, lambda _: make(0.0), rows)
    assert sum(others) / 11 > sum(apart) / 12 + (0.03 if 1 - first > 0.09 else 0.003)
    assert min(others) > 0.9


@pytest.mark.parametrize("alpha", [0.6, 0.9])
@pytest.mark.parametrize("name", [*MACHINES, "wide"])
def test_a_debt_does_not_keep_good_drafts_away(name: str, alpha: float) -> None:
    """Of texts that all gain, and of those that gain between others that do not."""
    machine, make = (WIDE, switch) if name == "wide" else (MACHINES[name], length)
    for alphas in ([alpha] * 12, [0.0, alpha] * 12):
        good = [i for i, a in enumerate(alphas) if a]
        with_debts, without = (series(machine, alphas, how, 1) for how in (make, lambda _: make(0.0)))
        speeds, before = (sum(found[i] for i in good) / len(good) for found in (with_debts, without))
        assert speeds > before - max(0.02, 0.16 * (before - 1))
