"""The loop itself, on a sample of prompts and settings, next to plain decoding of the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specdec.errors import SpecdecError
from specdec.profile.agreement import to_lists
from specdec.profile.contenders import Contender
from specdec.profile.costing import first_line
from specdec.profile.engine import Call, Engine
from specdec.profile.measures import measure
from specdec.profile.options import Options
from specdec.profile.sample import Item, batches_of
from specdec.profile.schema import PLAIN
from specdec.profile.scoring import logits_along
from specdec.profile.texts import Tick
from specdec.profile.workspace import Workspace

_MOST_SCORES = 64


@dataclass(frozen=True, slots=True)
class Run:
    """A setting to run; without a contender it is plain decoding."""

    contender: Contender | None
    num_draft_tokens: int
    turn: int = 0  # plain decoding has several: everything is divided by it

    @property
    def draft(self) -> str:
        return PLAIN if self.contender is None else self.contender.info.name


class Scores:
    """Per-token measures of the texts that the loop wrote: most are equal, so each is scored once.

    Holds so many that settings which follow each other find theirs, and no more.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[Any, dict[str, list[Any]]] = {}

    def of(self, contender: Contender | None, item: Item, text: Sequence[int], temperature: float) -> dict[str, Any]:
        """Entropy and p of each token, and alpha and q where the draft has a distribution."""
        scorer = None if contender is None else contender.scorer
        key = (item.index, tuple(text), temperature, None if scorer is None else id(scorer))
        if key not in self._known:
            if len(self._known) >= _MOST_SCORES:
                self._known.clear()
            target = logits_along(self._engine.target, item.tokens, text)
            draft = target if scorer is None else logits_along(scorer, item.tokens, text)
            found = to_lists(measure(target, draft, torch.tensor(text, device=target.device), temperature))
            names = ("target_entropy", "p") if scorer is None else ("target_entropy", "p", "alpha", "q")
            self._known[key] = {name: found[name] for name in names}
        return self._known[key]


def run_loop(
    items: Sequence[Item],
    runs: Callable[[int, float], Sequence[Run]],
    engine: Engine,
    options: Options,
    space: Workspace,
    note: Callable[[str], None],
    tick: Tick,
    between: Callable[[float], None] = lambda _: None,
) -> None:
    """Adds one record a setting, batch of prompts and repeat to the loop's file.

    Within a batch of prompts all settings run in turn, plain decoding among them, beginning with another one each time.

    Args:
        runs: the settings at a batch size and temperature.
        between: called before each call and after the last one, with the share of calls that are done.
    """
    total = num_runs(items, runs, options)
    done = {(r["draft"], r["num_draft_tokens"], r["temperature"], r["batch"], r["number"], r["repeat"])
            for r in space.own("loop")}  # fmt: skip
    scores, failed = Scores(engine), set[tuple[Any, ...]]()
    with space.open("loop") as records:
        for count, job in enumerate(_schedule(items, runs, options), start=1):
            between((count - 1) / total)
            if (*job.setting, job.number, job.repeat) not in done and job.setting not in failed:
                try:
                    records.add(_record(job, engine, options, scores))
                except (SpecdecError, torch.OutOfMemoryError) as error:
                    failed.add(job.setting)
                    note(f"{job.run.draft}, k={job.run.num_draft_tokens}, batch {len(job.part)}: {first_line(error)}")
            tick(count)
        between(1.0)


@dataclass(frozen=True, slots=True)
class _Job:
    """One call: a setting on a batch of prompts, for the repeat-th time."""

    run: Run
    part: Sequence[Item]
    number: int  # of the batch
    temperature: float
    repeat: int

    @property
    def setting(self) -> tuple[str, int, float, int]:
        return self.run.draft, self.run.num_draft_tokens, self.temperature, len(self.part)


def _schedule(items: Sequence[Item], runs: Callable[[int, float], Sequence[Run]], options: Options) -> Iterator[_Job]:
    for temperature in options.temperatures:
        for batch in options.batches:
            settings = list(runs(batch, temperature))
            turns = 1 + max(run.turn for run in settings)
            for number, part in enumerate(batches_of(items, batch)):
                for repeat in range(options.repeats):
                    begin = (number + repeat) * 3 % len(settings)
                    for run in [*settings[begin:], *settings[:begin]]:
                        yield _Job(run, part, number, temperature, repeat * turns + run.turn)


def num_runs(items: Sequence[Item], runs: Callable[[int, float], Sequence[Run]], options: Options) -> int:
    """How many calls `run_loop` makes."""
    return options.repeats * sum(
        len(runs(b, t)) * len(batches_of(items, b)) for t in options.temperatures for b in options.batches
    )


def _record(job: _Job, engine: Engine, options: Options, scores: Scores) -> dict[str, Any]:
    run, part, temperature = job.run, job.part, job.temperature
    prompts = [item.tokens for item in part]
    call = engine.run(
        prompts, run.contender, run.num_draft_tokens, temperature, options.new_tokens, part[0].index, is_metered=True
    )
    stats = call.stats
    record: dict[str, Any] = {
        "draft": run.draft,
        "num_draft_tokens": run.num_draft_tokens,
        "temperature": temperature,
        "batch": len(part),
        "seconds": call.seconds,
        "parts": call.timings(),
        "rounds": stats.rounds,
        "row_rounds": stats.row_rounds,
        "drafted": stats.drafted,
        "accepted": stats.accepted,
        "drafted_per_depth": stats.drafted_per_depth,
        "accepted_per_depth": stats.accepted_per_depth,
        "tokens": sum(map(len, call.tokens)),
        "longest": max(map(len, call.tokens)),
        "prompt_tokens": stats.prompt_tokens,
        "peak": call.peak_bytes,
        "joules": call.joules,
    }
    record |= {"number": job.number, "repeat": job.repeat}
    if job.repeat == 0:
        record["rows"] = [_row(run, item, row, call, temperature, scores) for row, item in enumerate(part)]
    return record


def _row(run: Run, item: Item, row: int, call: Call, temperature: float, scores: Scores) -> dict[str, Any]:
    text = call.tokens[row]
    found = scores.of(run.contender, item, text, temperature)
    return {
        "index": item.index,
        "key": item.key,
        "domain": item.domain,
        "context": len(item.tokens),
        "tokens": text,
        "sources": call.sources[row],
    } | found
