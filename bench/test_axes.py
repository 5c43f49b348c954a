"""Speed-up along each axis: strategy, number of draft tokens, batch, context, sampling; one varied at a time.

Fails for a speed-up that cannot be and for other work than it says (bench/guard.py, bench/record.py), never for being
slow. The graphs must be built before anything is timed: where there are none, the first run takes some minutes more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

import specdec
from bench.axes import COUNTS, Point
from bench.guard import free_sides
from bench.harness import Comparison
from bench.prompts import Batch, Tokens, kinds_of, of_length, read
from bench.record import check, describe, ratio
from bench.report_axes import STATIC
from bench.settings import Settings
from bench.sides import Engine, Side, Sides
from bench.strategies import drafters_of

ENGINES: tuple[Engine, ...] = ("eager", "compiled")
MAIN = "compiled model auto"
# Strategies that need no graphs beside the target's and the draft's.
COMPILED = ("chain", "tree dynamic", "n-gram", "suffix")


@dataclass(frozen=True, slots=True)
class Ours:
    """One of our sides: strategy is "model" for the draft model's chain; draft_tokens None means "auto"."""

    engine: Engine
    strategy: str
    draft_tokens: int | None

    @property
    def name(self) -> str:
        count = "auto" if self.draft_tokens is None else f"k={self.draft_tokens}"
        return f"{self.engine} {self.strategy} {count}"


@dataclass(slots=True)
class Cast:
    """The sides of a point.

    Attributes:
        peers: transformers' own.
        ours: with drafts; those without are the engines' plain decoding.
        missing: peers that cannot run here, and why.
    """

    peers: dict[str, Side]
    ours: dict[Ours, Side]
    missing: dict[str, str] = field(default_factory=dict)


def test_axis(benchmark: Any, settings: Settings, dtype: torch.dtype, point: Point) -> None:
    prompts = read(settings, at_least=point.batch)
    with Sides(dtype, point.temperature, settings.new_tokens, settings.draft_tokens, settings.models) as sides:
        tokens = _tokens(sides, prompts, point)
        batches = sides.batches(tokens, point.batch)
        cast = _cast(sides, point, batches)
        counts = COUNTS if point.axis == "k" else (1, 2, settings.draft_tokens)
        plain = {engine: f"{engine} plain" for engine in ENGINES}
        costs = {name: sides.own_plain(engine) for engine, name in plain.items()}
        for engine in ENGINES:
            costs |= free_sides(sides, engine, counts)
        ours = {own.name: side for own, side in cast.ours.items()}
        comparison = Comparison(cast.peers | costs | ours, batches)
        main = MAIN if MAIN in ours else next(reversed(ours))
        benchmark.group = f"axes, {point.name}: seconds a batch of {main!r}"
        comparison.measure(benchmark, main, settings.rounds)
    describe(
        benchmark, comparison, settings, sides.target, point.temperature, point.batch, kinds_of(tokens, point.batch)
    )
    benchmark.extra_info |= {
        "kind": "axis",
        "axis": point.axis,
        "ours": {own.name: asdict(own) for own in cast.ours},
        "missing": cast.missing,
    }
    for side in [*cast.peers, *plain.values(), *ours]:
        if side != "plain":
            ratio(benchmark, comparison, side, "plain")
    for own in cast.ours:
        ratio(benchmark, comparison, own.name, plain[own.engine])
    if STATIC in cast.peers:
        for side in [*plain.values(), *ours]:
            ratio(benchmark, comparison, side, STATIC)
    check(benchmark, comparison, plain, {own.name: own.engine for own in cast.ours})


def _tokens(sides: Sides, prompts: Any, point: Point) -> list[Tokens]:
    tokens = sides.tokens(prompts)
    return tokens if point.context is None else of_length(tokens, min(point.context, sides.longest_prompt))


def _cast(sides: Sides, point: Point, batches: list[Batch]) -> Cast:
    k = f"k={sides.draft_tokens}"
    cast = Cast({"plain": sides.plain()}, {})
    if point.axis != "k":
        longest = max(batch["input_ids"].shape[1] for batch in batches)
        static = sides.static(longest, batches[:1])
        if isinstance(static, str):
            cast.missing[STATIC] = static
        else:
            cast.peers[STATIC] = static
        if point.batch == 1:
            cast.peers |= {f"assisted {k}": sides.assisted(), f"prompt lookup {k}": sides.prompt_lookup()}
        else:
            cast.missing |= dict.fromkeys(
                (f"assisted {k}", f"prompt lookup {k}"), "transformers: one prompt at a time only"
            )
    if point.axis == "strategy":
        half = sides.target.config.get_text_config().num_hidden_layers // 2
        cast.peers[f"early exit {k}"] = sides.early_exit(half)
    cast.ours = _ours(sides, point)
    return cast


def _ours(sides: Sides, point: Point) -> dict[Ours, Side]:
    base: dict[str, specdec.Drafter] = {"model": sides.drafter, "n-gram": specdec.NgramDrafter()}
    if point.axis == "k":
        chosen = [(e, s, d, k) for e in ENGINES for s, d in base.items() for k in (*COUNTS, None)]
    elif point.axis == "strategy":
        named = drafters_of(sides).items()
        every = [(e, s, d, k) for e in ENGINES for s, d in named for k in (sides.draft_tokens, None)]
        chosen = [
            (e, "model" if s == "chain" else s, d, k)
            for e, s, d, k in every
            if (e == "eager" or s in COMPILED) and (k is None or s in ("chain", "n-gram", "tree dynamic"))
        ]
    else:
        fixed = [(e, "model", sides.drafter, sides.draft_tokens) for e in ENGINES]
        chosen = [*fixed, *((e, s, d, None) for e in ENGINES for s, d in base.items())]
    return {Ours(e, s, k): _side(sides, e, d, k) for e, s, d, k in chosen}


def _side(sides: Sides, engine: Engine, drafter: specdec.Drafter, draft_tokens: int | None) -> Side:
    if engine == "compiled":
        return sides.graphs(drafter, draft_tokens)
    return sides.decoder(specdec.SpeculativeDecoder(drafter, "auto" if draft_tokens is None else draft_tokens))
