"""What one forward costs by the number of tokens in it: this decides what speculation can give on a machine.

python -m bench.forward_cost [--threads 2] [--context 128] [--batch 1] [--dtypes bfloat16,float32] [--compile]

The ceiling is the speed-up over plain steps of the same loop if every drafted token were accepted, with no
cost but the forwards': (k + 1) T(1) / (k D(1) + T(k + 1)), T the target's forward and D the draft's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
import transformers

from bench.sides import pair
from bench.weights import graph_of
from specdec.target import ModelRunner
from specdec.window import Window

WIDTHS = (1, 2, 3, 4, 5, 6, 8, 12)


def forward_of(runner: ModelRunner, context: int, batch_size: int, width: int) -> Callable[[], None]:
    """A forward of `width` tokens a row behind `context` tokens; it keeps nothing, so it can be repeated."""
    cache = runner.new_cache(batch_size, context + width)
    prompt = torch.randint(10, runner.vocab_size, (batch_size, context + width))
    keep_none = torch.zeros(batch_size, dtype=torch.int64)

    def window(first: int, last: int, masked: bool) -> Window:
        positions = torch.arange(first, last).expand(batch_size, -1)
        mask = torch.arange(last) <= positions[:, :, None] if masked else None
        return Window(prompt[:, first:last], positions, positions, keep_none + last - first, mask, last, level=True)

    runner.forward(window(0, context, masked=False), cache, keep=1)
    cache.commit(keep_none + context)
    measured = window(context, context + width, masked=width > 1)

    def forward() -> None:
        runner.forward(measured, cache, keep=width)
        cache.commit(keep_none)

    return forward


def measure(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each call, all called in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 2):
        for name, call in calls.items():
            begun = perf_counter()
            call()
            if repeat >= 2:  # the first two warm up
                seconds[name].append(perf_counter() - begun)
    return {name: 1e3 * median(times) for name, times in seconds.items()}


def table(dtype: torch.dtype, context: int, batch_size: int, repeats: int, compile: bool) -> list[list[str]]:
    """Rows of milliseconds: the target's, the draft's, and the ceiling of speculation with k = width - 1."""
    target, draft, _ = pair(dtype)
    runners = {"": (ModelRunner(target), ModelRunner(draft))}
    if compile:
        runners["compiled "] = (graph_of(ModelRunner(target)), graph_of(ModelRunner(draft)))
    calls = {
        f"{how}{name} {width}": forward_of(runner, context, batch_size, width)
        for width in WIDTHS
        for how, both in runners.items()
        for name, runner in zip(("target", "draft"), both, strict=True)
    }
    ms = measure(calls, repeats)
    dtype_name = str(dtype).removeprefix("torch.")
    lines = []
    for how in runners:
        name = f"{dtype_name} {how}"
        plain, drafted = ms[f"{how}target 1"], ms[f"{how}draft 1"]
        ceilings = [w * plain / ((w - 1) * drafted + ms[f"{how}target {w}"]) for w in WIDTHS]
        lines += [
            [f"{name}target, ms", *(f"{ms[f'{how}target {w}']:.2f}" for w in WIDTHS)],
            [f"{name}draft, ms", *(f"{ms[f'{how}draft {w}']:.2f}" for w in WIDTHS)],
            [f"{name}ceiling, k = q - 1", *(f"{c:.2f}" for c in ceilings)],
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--compile", action="store_true", help="compiled forwards as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.disable_progress_bar()
    header = [f"forward of q tokens, batch {options.batch}", *(f"q={w}" for w in WIDTHS)]
    lines = [header, ["---"] * len(header)]
    with torch.no_grad():
        for name in options.dtypes.split(","):
            lines += table(getattr(torch, name), options.context, options.batch, options.repeats, options.compile)
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))


if __name__ == "__main__":
    main()
