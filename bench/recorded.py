"""Milliseconds of a step on a GPU: the model, and the compiled step as it is, recorded, and with kernels made for it.

python -m bench.recorded [--size 1B] [--dtype bfloat16] [--device cuda:0] [--slots 512,4096] [--widths 1,5]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from bench.constructed import SIZES, heavy
from bench.markdown import table
from specdec.compiled.choose import memory_shapes, seconds_of
from specdec.compiled.graph import MemoryShape
from specdec.compiled.runner import Chain
from specdec.compiled.shapes import ShapeGraphs, inductor
from specdec.loading import check_device
from specdec.probe import probe
from specdec.target import ModelRunner

_REPEATS = 30
Step = Callable[[list[Tensor]], Sequence[Tensor]]


def step_inputs(runner: ModelRunner, shapes: Sequence[MemoryShape], width: int, slots: int) -> list[Tensor]:
    """One row's window at the end of a text that fills the slots, with random keys and values."""
    chain = Chain.of(1, width, runner.device)
    starts = torch.full((1,), slots - width, device=runner.device)
    tokens = torch.full((1, width), 2, device=runner.device)
    memory = [
        torch.randn(1, heads, slots, size, dtype=runner.dtype, device=runner.device)
        for heads, *sizes in shapes
        for size in sizes
    ]
    return [tokens, chain.offsets, chain.related, starts, chain.all_valid, chain.steps, *memory]


def milliseconds(step: Step, inputs: list[Tensor]) -> float:
    """Median of many calls, each waited for; the first ones compile and record."""
    times = []
    for _ in range(_REPEATS):
        begun = perf_counter()
        step(inputs)
        torch.cuda.synchronize()
        times.append(perf_counter() - begun)
    return 1e3 * median(times[3:])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="1B")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--slots", default="512,4096")
    parser.add_argument("--widths", default="1,5")
    options = parser.parse_args()
    check_device(options.device)
    if torch.device(options.device).type != "cuda":
        parser.error("recordings are for CUDA GPUs")
    runner = ModelRunner(heavy(options.size, getattr(torch, options.dtype), device=options.device))
    probe(runner)
    shapes = memory_shapes(runner)
    plain, kernels = ShapeGraphs(runner), ShapeGraphs(runner, inductor)
    rows = []
    for slots in map(int, options.slots.split(",")):
        for width in map(int, options.widths.split(",")):
            inputs = step_inputs(runner, shapes, width, slots)
            sides: list[Step] = [lambda i: plain.step(*i[:6], i[6:]), plain, kernels]
            figures = [f"{milliseconds(side, inputs):.2f}" for side in sides]
            rows.append([str(slots), str(width), f"{1e3 * seconds_of(runner, width, _REPEATS):.2f}", *figures])
    print(torch.cuda.get_device_name(options.device), f"torch {torch.__version__}", options.size, options.dtype)
    print(
        table("slots|tokens|the model, no text before|the step, kernel by kernel|recorded|inductor's, recorded", rows)
    )


if __name__ == "__main__":
    main()
