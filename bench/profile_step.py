"""Where the time of a round goes: forwards, cache, acceptance rule, processors, the loop's own Python.

python -m bench.profile_step [--threads 2] [--prompts 4] [--draft-tokens 4] [--temperature 0.8] ...

Stopwatches are wrapped around the functions named in PARTS while the script runs; a part's time excludes
that of the parts called inside it. A stopwatch costs about a microsecond a call.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pkgutil import resolve_name
from time import perf_counter
from typing import Any
from unittest import mock

import torch
import transformers

import specdec
from bench.sides import Side, Sides

# part -> "owner:attribute" of the functions that make it up; outer parts first.
PARTS: dict[str, tuple[str, ...]] = {
    "transformers prepares the call": ("specdec.generate:SpeculativeDecoder.generate",),
    "loop": ("specdec.loop:Decoding.run",),
    "drafter": (
        "specdec.drafters.model:ModelSession.propose",
        "specdec.drafters.model:ModelSession.observe",
        "specdec.drafters.ngram:NgramSession.propose",
    ),
    "controller": (
        "specdec.controller:AutoLength.choose",
        "specdec.controller:AutoLength.record",
    ),
    "window and mask": (
        "specdec.loop:plan",
        "specdec.loop:build_window",
        "specdec.drafters.model:plan",
        "specdec.drafters.model:build_window",
        "specdec.target:to_additive",
    ),
    "forward": ("specdec.target:ModelRunner.forward",),  # split by model below
    "cache writes": (
        "specdec.cache.attention:RollbackCache.begin",
        "specdec.cache.attention:FullAttentionLayer.update",
        "specdec.cache.attention:RollbackCache.commit",
    ),
    "processors": (
        "specdec.state:DecodeState.prefixes",
        "specdec.sampling:Sampler.scores",
        "specdec.sampling:Sampler.probs",
    ),
    "acceptance rule": ("specdec.loop:greedy", "specdec.loop:rejection", "specdec.loop:block"),
    "draft's coins": ("specdec.verify.coins:KeyedCoins.draft",),
    "tokens appended": ("specdec.state:DecodeState.extend",),
}


class Stopwatch:
    """Seconds and calls by part, each part without the parts inside it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._inner = [0.0]  # seconds spent in parts inside the current one, by nesting

    def wrap(self, function: Callable[..., Any], part: Callable[..., str]) -> Callable[..., Any]:
        """`function`, timed; `part` names it, given its arguments."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            name = part(*args)
            self._inner.append(0.0)
            begun = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = perf_counter() - begun
                self.seconds[name] += elapsed - self._inner.pop()
                self.calls[name] += 1
                self._inner[-1] += elapsed

        return timed


@contextmanager
def watched(target: transformers.PreTrainedModel) -> Iterator[Stopwatch]:
    """Wraps every function of PARTS while the block runs."""
    watch = Stopwatch()
    with ExitStack() as patches:
        for part, names in PARTS.items():
            for name in names:
                owner, _, attribute = name.replace(":", ".").rpartition(".")
                place = resolve_name(owner)
                function = getattr(place, attribute)
                patches.enter_context(mock.patch.object(place, attribute, watch.wrap(function, _namer(part, target))))
        yield watch


def _namer(part: str, target: transformers.PreTrainedModel) -> Callable[..., str]:
    if part != "forward":
        return lambda *args: part
    return lambda runner, *args: "target forward" if runner.model is target else "draft forward"


def profile(name: str, sides: Sides, side: Side, prompts: list[str]) -> str:
    """A table of where the side's time goes over the prompts."""
    batches = sides.batches(prompts, 1)
    side(batches[0])  # warm
    with watched(sides.target) as watch:
        stats: list[specdec.SpeculationStats] = [side(batch).detail.stats for batch in batches]
    rounds = sum(s.rounds for s in stats)
    tokens = sum(s.new_tokens for s in stats)
    total = sum(watch.seconds.values())
    lines = [
        f"{name}: {tokens} tokens, {rounds} rounds and {len(stats)} prefills, {1e3 * total / tokens:.2f} ms a token",
        f"  {'part':<32}{'us/round':>10}{'share':>8}{'calls/round':>13}",
    ]
    lines += [
        f"  {part:<32}{1e6 * seconds / rounds:>10.0f}{seconds / total:>8.1%}{watch.calls[part] / rounds:>13.1f}"
        for part, seconds in sorted(watch.seconds.items(), key=lambda item: -item[1])
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--draft-tokens", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.disable_progress_bar()
    prompts = [p["prompt"] for p in specdec.bundled_prompts()][: options.prompts]
    for dtype in options.dtypes.split(","):
        k = options.draft_tokens
        with Sides(getattr(torch, dtype), options.temperature, options.new_tokens, k) as sides:
            print(profile(f"{dtype}, model k={k}", sides, sides.model(auto=False), prompts), end="\n\n")
            print(profile(f"{dtype}, model auto", sides, sides.model(auto=True), prompts), end="\n\n")
            print(profile(f"{dtype}, n-gram k={k}", sides, sides.ngram(auto=False), prompts), end="\n\n")


if __name__ == "__main__":
    main()
