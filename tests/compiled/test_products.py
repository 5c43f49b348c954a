"""Our products of few rows, in a package that a compiler has really built, against sums in float64."""

from __future__ import annotations

import contextlib
import io
import pathlib
import zipfile

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import cpu_vec_isa

import specdec.compiled.build as building
from specdec.compiled.options import OPTIONS

pytestmark = pytest.mark.skipif(
    not isinstance(cpu_vec_isa.pick_vec_isa(), cpu_vec_isa.VecAVX2), reason="written for processors with AVX2"
)
WIDTHS = [*range(1, 21), 64, 101]  # every split into blocks, and many of them
# Inputs: more than a cache takes at once; more than are converted at once, and no multiple of a vector.
SHAPES = {torch.float32: (1100, 72), torch.bfloat16: (1703, 72), torch.float16: (530, 32)}


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList([nn.Linear(*shape, bias=False, dtype=dtype) for dtype, shape in SHAPES.items()])

    def forward(self, *rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(product(x) for product, x in zip(self.each, rows, strict=True))


def built(module: Products, file: pathlib.Path, own_products: bool) -> building.Run:
    size = torch.export.Dim("rows", min=1, max=4096)
    inputs = tuple(torch.randn(3, shape[0]).to(dtype) for dtype, shape in SHAPES.items())
    with building.undisturbed(), contextlib.redirect_stderr(io.StringIO()):
        program = torch.export.export(module, inputs, dynamic_shapes={"rows": tuple({0: size} for _ in inputs)})
        building._compile(program, file, OPTIONS, own_products)
    return building.load(file)


@torch.no_grad()
def test_products(tmp_path: pathlib.Path) -> None:
    """Right to rounding for any number of rows, and a row's sums are the same bits whatever rows are beside it."""
    torch.manual_seed(0)
    module = Products()
    run = built(module, tmp_path / "own.pt2", own_products=True)
    with zipfile.ZipFile(tmp_path / "own.pt2") as package:
        source = "".join(package.read(name).decode() for name in package.namelist() if name.endswith("kernel.cpp"))
    assert source.count("_rows<6, accum>") == len(SHAPES), "it was taken for each product"
    rows = [torch.randn(max(WIDTHS), shape[0]).to(dtype) for dtype, shape in SHAPES.items()]
    alone = [[run([x[row : row + 1] for x in rows])[product] for row in range(max(WIDTHS))] for product in range(3)]
    for width in WIDTHS:
        found = run([x[:width].contiguous() for x in rows])
        for product, (linear, x, y) in enumerate(zip(module.each, rows, found, strict=True)):
            exact = x[:width].double() @ linear.weight.double().T
            most = 2 * torch.finfo(y.dtype).eps * exact.abs() + 1e-5  # of float32 sums, rounded to the dtype
            assert ((y.double() - exact).abs() <= most).all(), (width, y.dtype)
            assert torch.equal(y, torch.cat(alone[product][:width])), (width, y.dtype)


@torch.no_grad()
def test_inductor_is_left_as_it_was() -> None:
    """Also by a build that fails."""
    from specdec.compiled.products import FewRows, few_rows, inductor

    before = {kind: list(configs) for kind, configs in inductor.micro_gemm_configs.items()}
    with contextlib.suppress(KeyError), few_rows():
        assert FewRows in inductor.micro_gemm_configs
        raise KeyError
    assert inductor.micro_gemm_configs == before
