"""The sides of the comparison: ours, transformers' and the peers', all doing one prompt and answering a `Text`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from time import perf_counter, sleep
from types import TracebackType
from typing import Self

import specdec
from bench.harness import Outcome
from bench.peers.catalogue import MODES, PEERS
from bench.peers.client import PeerError, worker_of
from bench.peers.workers.wire import Ask, Load, Loaded, Text
from bench.sides import Batch, Sides
from specdec.bundled import bundled_dir

Side = Callable[[Batch], Outcome]
# Threads of the side before may spin this long for more work: nobody is timed meanwhile.
PAUSE_SECONDS = 0.3
OURS, EAGER, TRANSFORMERS = "specdec compiled", "specdec eager", "transformers"
STATIC = "transformers, static cache and torch.compile"
MAIN = f"{OURS} draft auto"


@dataclass(frozen=True, slots=True)
class Named:
    """A side, with the engine whose plain decoding it is compared with."""

    engine: str
    mode: str  # "plain", "draft", "ngram", "draft auto", ...
    run: Side

    @property
    def name(self) -> str:
        return f"{self.engine} {self.mode}"


def own(sides: Sides) -> list[Named]:
    """Ours and transformers', in this process."""
    k = sides.draft_tokens
    table: dict[str, dict[str, Side]] = {
        OURS: {
            "plain": sides.compiled(None),
            "draft": sides.compiled("model", k),
            "ngram": sides.compiled("ngram", k),
            "draft auto": sides.compiled("model"),
            "ngram auto": sides.compiled("ngram"),
        },
        EAGER: {
            "plain": sides.own_plain("eager"),
            "draft": sides.model(auto=False),
            "ngram": sides.ngram(auto=False),
            "draft auto": sides.model(auto=True),
        },
        TRANSFORMERS: {"plain": sides.plain(), "draft": sides.assisted(), "ngram": sides.prompt_lookup()},
    }
    return [Named(engine, mode, _own(side)) for engine, modes in table.items() for mode, side in modes.items()]


def static(sides: Sides, items: Sequence[Batch], skipped: dict[str, str]) -> list[Named]:
    """transformers with a static cache and torch.compile, an engine of its own; the reason goes to `skipped`."""
    side = sides.static(max(item["input_ids"].shape[1] for item in items), items[:1])
    if isinstance(side, str):
        skipped[STATIC] = side
        return []
    return [Named(STATIC, "plain", _own(side))]


def _own(side: Side) -> Side:
    def run(batch: Batch) -> Outcome:
        sleep(PAUSE_SECONDS)
        begun = perf_counter()
        outcome = side(batch)
        seconds = perf_counter() - begun
        made, stats = outcome.detail, outcome.detail.stats
        drafted, accepted = (None, None) if stats is None else (stats.drafted, stats.accepted)
        return Outcome(outcome.work, Text(made.rows[0], seconds, made.target_forwards, drafted, accepted), seconds)

    return run


class Peers:
    """Runs the peers' workers, one a mode, and says which could not be had.

    Args:
        pythons: interpreters by peer.
        skipped: reasons, by peer, for the others; what fails to load is added.
        asked: what every worker loads, but for the mode.
        temperature, new_tokens: of every text.
        end: the token that ends a text.
        logs: folder for the workers' logs.

    Attributes:
        loaded: what each side's engine said, by side.
        skipped: reasons by peer, or by peer and mode.
    """

    def __init__(
        self,
        pythons: Mapping[str, str],
        skipped: Mapping[str, str],
        asked: Load,
        temperature: float,
        new_tokens: int,
        end: int,
        logs: Path,
    ) -> None:
        self._pythons, self._asked, self._logs = pythons, asked, logs
        self._temperature, self._new_tokens, self._end = temperature, new_tokens, end
        self.skipped = {PEERS[name].title: why for name, why in skipped.items()}
        self.loaded: dict[str, Loaded] = {}
        self._stack = ExitStack()
        self._seed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def start(self, first: Batch) -> list[Named]:
        """Loads every peer in every mode, and has each do `first` once."""
        sides = []
        for name, python in self._pythons.items():
            for mode in MODES:
                title = PEERS[name].title
                try:
                    side = self._side(name, python, mode)
                    side(first)
                except PeerError as error:
                    self.loaded.pop(f"{title} {mode}", None)
                    self.skipped[f"{title} {mode}"] = str(error)
                else:
                    sides.append(Named(title, mode, side))
        return sides

    def _side(self, name: str, python: str, mode: str) -> Side:
        peer, log = PEERS[name], self._logs / f"{name}-{mode}.log"
        worker = self._stack.enter_context(worker_of(peer, python, self._asked.threads, log))
        load = Load(**vars(self._asked) | {"mode": mode})
        loaded = worker.load(load)
        if peer.preload:  # it may be slow without, which the table must say
            names = sorted({Path(library).name for library in peer.preloaded(python)})
            loaded = replace(loaded, dtype=f"{loaded.dtype}; preloads {', '.join(names) or 'nothing'}")
        self.loaded[f"{peer.title} {mode}"] = loaded

        def run(batch: Batch) -> Outcome:
            ids = batch["input_ids"][0].tolist()
            self._seed += 1
            sleep(PAUSE_SECONDS)
            text = worker.generate(Ask(ids, self._new_tokens, self._temperature, self._seed))
            tokens = with_end(text.tokens, self._end, self._new_tokens)
            return Outcome(len(tokens), replace(text, tokens=tokens), text.seconds)

        return run


def with_end(tokens: list[int], end: int, most: int) -> list[int]:
    """Some engines leave out the token that ended a text: one that is short of its budget has ended with it."""
    return tokens if len(tokens) == most or tokens[-1:] == [end] else [*tokens, end]


def load_of_pair(sides: Sides, dtype: str, threads: int, scratch: Path) -> Load:
    """The bundled pair, with our drafters' own sizes of n-grams; converted weights go below `scratch`."""
    pair, ngram = bundled_dir() / "pair", specdec.NgramDrafter()
    # Kept ones must be this very pair's.
    digest = sha256(b"".join((pair / name / "model.safetensors").read_bytes() for name in ("target", "draft")))
    scratch = scratch / digest.hexdigest()[:16]
    scratch.mkdir(parents=True, exist_ok=True)
    return Load(
        mode="plain",
        target=os.fspath(pair / "target"),
        draft=os.fspath(pair / "draft"),
        dtype=dtype,
        threads=threads,
        draft_tokens=sides.draft_tokens,
        min_ngram=ngram.min_ngram,
        max_ngram=ngram.max_ngram,
        context=sides.target.config.max_position_embeddings,
        scratch=os.fspath(scratch),
    )
