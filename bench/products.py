"""Products of few rows: inductor's kernels and ours, by the number of rows; docs/performance/compiled.md.

python -m bench.products [--threads 2] [--dtypes float32,bfloat16] [--rounds 21]

Sixteen weights of 1024 x 2816, more than fits a cache, as in a decoding step; both sides alternate.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch._inductor.cpu_vec_isa import VecAVX2, pick_vec_isa

import specdec.compiled.build as building
from bench.forward_cost import measure
from specdec.compiled.options import OPTIONS

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 40, 128, 512)
INPUTS, OUTPUTS, WEIGHTS = 1024, 2816, 16


class Products(nn.Module):
    """Of the same rows with each weight, summed up."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=dtype) for _ in range(WEIGHTS))

    def forward(self, rows: Tensor) -> Tensor:
        return torch.stack([product(rows).sum(-1) for product in self.each]).sum(0)


def built(module: Products, dtype: torch.dtype, own_products: bool) -> building.Run:
    with tempfile.TemporaryDirectory() as folder, building.undisturbed():
        size = torch.export.Dim("rows", min=1, max=4096)
        example = (torch.randn(3, INPUTS, dtype=dtype),)
        program = torch.export.export(module, example, dynamic_shapes=({0: size},))
        file = pathlib.Path(folder) / "products.pt2"
        building._compile(program, file, OPTIONS, own_products)
        return building.load(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    if not isinstance(pick_vec_isa(), VecAVX2):
        parser.error("inductor takes other kernels than those for AVX2 on this processor, and ours are for AVX2.")
    torch.set_num_threads(options.threads)
    print("| rows | " + " | ".join(map(str, ROWS)) + " |")
    print("| --- |" + " --- |" * len(ROWS))
    for name in options.dtypes.split(","):
        dtype = getattr(torch, name)
        module = Products(dtype).eval()
        sides = {"inductor's": built(module, dtype, False), "ours": built(module, dtype, True)}
        found: dict[str, list[float]] = {side: [] for side in sides}
        for rows in ROWS:
            x = torch.randn(rows, INPUTS).to(dtype)
            first, second = (run([x])[0] for run in sides.values())
            assert torch.equal(first, second), f"{name}, {rows} rows: other sums than inductor's"
            calls: dict[str, Callable[[], object]] = {side: partial(run, [x]) for side, run in sides.items()}
            for side, milliseconds in measure(calls, options.rounds).items():
                found[side].append(milliseconds)
        for side, each in found.items():
            print(f"| {name}, {side}, ms | " + " | ".join(f"{ms:.1f}" for ms in each) + " |", flush=True)


if __name__ == "__main__":
    main()
