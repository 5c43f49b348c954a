"""What a round costs by its size: short calls of the real loop, warm, all settings in turn, several times over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specdec.errors import SpecdecError
from specdec.profile.contenders import Contender
from specdec.profile.engine import Call, Engine
from specdec.profile.options import Options
from specdec.profile.sample import Item, sampled_counts
from specdec.profile.schema import PLAIN
from specdec.profile.texts import Tick
from specdec.profile.workspace import Workspace

REPEATS = 4
NEW_TOKENS = 16
_LONGER = 4  # times the usual context, for the cost of a longer one


@dataclass(frozen=True, slots=True)
class Point:
    """One place of the grid."""

    contender: Contender | None
    num_draft_tokens: int
    batch: int
    context: int
    temperature: float
    turn: int = 0  # plain decoding has one for each contender: everything is divided by it

    @property
    def key(self) -> tuple[str, int, int, int, bool]:
        name = PLAIN if self.contender is None else self.contender.info.name
        return name, self.num_draft_tokens, self.batch, self.context, self.temperature > 0


def cost_grid(contenders: Sequence[Contender], options: Options, contexts: Sequence[int]) -> list[Point]:
    """Every draft and batch size by a sample of the draft tokens; longer contexts for one batch and most tokens only.

    Greedy and sampled calls cost different things; temperatures above 0 cost the same.
    """
    temperatures = {t > 0: t for t in sorted(options.temperatures, reverse=True)}
    counts = sampled_counts(options.num_draft_tokens)
    places = [(b, contexts[0], counts) for b in options.batches]
    places += [(min(options.batches), c, counts[-1:]) for c in contexts[1:]]
    found = []
    for temperature in temperatures.values():
        for batch, context, ks in places:
            for turn, contender in enumerate(contenders):
                found.append(Point(None, 0, batch, context, temperature, turn))
                found += [Point(contender, k, batch, context, temperature) for k in ks]
    return found


def contexts_of(items: Sequence[Item], options: Options, longest: int | None) -> list[int]:
    """The usual length of a prompt, and a longer one where the target has room for it."""
    lengths = sorted(len(i.tokens) for i in items)
    usual = lengths[len(lengths) // 2]
    room = usual * _LONGER if longest is None else longest - _new_tokens(max(options.num_draft_tokens)) - 1
    usual = max(1, min(usual, room))
    return sorted({usual, max(usual, min(usual * _LONGER, room))})


class Costing:
    """Runs the grid several times over, and adds one record a point and sweep to the costs' file.

    A sweep runs all points in turn, beginning with another one each time. Sweeps are spread over the time that the loop
    is measured in: a machine that slows down for a minute then slows both. What fails once is named, and left out from
    then on.

    Args:
        points: of the grid.
        items: whose prompts are used.
        note: told what failed.
        tick: told the number of points that were run.
    """

    def __init__(
        self,
        points: Sequence[Point],
        items: Sequence[Item],
        engine: Engine,
        space: Workspace,
        note: Callable[[str], None],
        tick: Tick,
    ) -> None:
        self._points, self._items, self._engine, self._space = points, items, engine, space
        self._note, self._tick = note, tick
        self._done = {(*r["point"], r["repeat"]) for r in space.own("costs")}
        self._failed: set[tuple[Any, ...]] = set()
        self._turns = 1 + max((p.turn for p in points), default=0)
        self._sweeps = 0

    def catch_up(self, share: float) -> None:
        """Runs the sweeps that are due when this share of the loop is done: the first before it, the last behind it."""
        while self._sweeps < 1 + int(share * (REPEATS - 1)):
            self._sweep(self._sweeps)
            self._sweeps += 1

    def _sweep(self, number: int) -> None:
        begin = number * 5 % max(len(self._points), 1)
        with self._space.open("costs") as records:
            for count, point in enumerate([*self._points[begin:], *self._points[:begin]], start=1):
                name = number * self._turns + point.turn
                if (*point.key, name) not in self._done and point.key not in self._failed:
                    try:
                        record = _run(point, self._items, self._engine)
                    except (SpecdecError, torch.OutOfMemoryError) as error:
                        self._failed.add(point.key)
                        self._note(f"no costs of {point.key}: {first_line(error)}")
                    else:
                        records.add(record | {"point": list(point.key), "repeat": name})
                self._tick(number * len(self._points) + count)


def cost_record(call: Call, batch: int, context: float) -> dict[str, Any]:
    """What the cost model is fitted to, from one call."""
    stats = call.stats
    return call.timings() | {
        "rounds": stats.rounds,
        "depth": stats.drafted / max(stats.row_rounds, 1),
        "share": sum(stats.drafted_per_depth[:1]) / max(stats.row_rounds, 1),
        "batch": batch,
        "context": context,
        "prompt_tokens": stats.prompt_tokens,
    }


def _run(point: Point, items: Sequence[Item], engine: Engine) -> dict[str, Any]:
    prompts = [_of_length(items[row % len(items)].tokens, point.context) for row in range(point.batch)]
    k = point.num_draft_tokens
    new_tokens = _new_tokens(k)
    call = engine.run(prompts, point.contender, k, point.temperature, new_tokens, 0)
    return cost_record(call, point.batch, point.context + new_tokens / 2)


def _new_tokens(num_draft_tokens: int) -> int:
    """Enough for two whole rounds: in the first one a draft reads the prompt."""
    return max(NEW_TOKENS, 2 * (num_draft_tokens + 1) + 1)


def _of_length(tokens: Sequence[int], length: int) -> list[int]:
    """The prompt's end, or the prompt over and over: costs depend on the number of tokens, not on which."""
    repeated = list(tokens) * (-(-length // len(tokens)))
    return repeated[-length:]


def first_line(error: BaseException) -> str:
    """What an exception says, for a note."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
