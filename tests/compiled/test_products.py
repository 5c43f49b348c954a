"""Our products of few rows, in packages that a compiler has really built, against sums in float64."""

from __future__ import annotations

import contextlib
import pathlib
import zipfile

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config

import specdec.compiled.build as building
from specdec.compiled import Store
from specdec.compiled.options import OPTIONS

needs_avx2 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="written for processors with AVX2"
)
WIDTHS = [*range(1, 21), 64, 101]  # every split into blocks, and many of them
# Inputs: more than a cache takes at once; more than are converted at once, and no multiple of a vector.
SHAPES = {torch.float32: (1100, 72), torch.bfloat16: (1703, 72), torch.float16: (530, 32)}
OURS = "_rows<6, accum>"


class Products(nn.Module):
    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.each = nn.ModuleList([nn.Linear(*SHAPES[dtype], bias=False, dtype=dtype) for dtype in dtypes])

    def forward(self, *rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(product(x) for product, x in zip(self.each, rows, strict=True))


def traced(module: Products) -> torch.export.ExportedProgram:
    size = torch.export.Dim("rows", min=1, max=4096)
    inputs = tuple(torch.randn(3, p.in_features).to(p.weight.dtype) for p in module.each)
    return torch.export.export(module, inputs, dynamic_shapes={"rows": tuple({0: size} for _ in inputs)})


def source(package: pathlib.Path) -> str:
    with zipfile.ZipFile(package) as parts:
        return "".join(parts.read(name).decode() for name in parts.namelist() if name.endswith("kernel.cpp"))


@needs_avx2
@torch.no_grad()
def test_products(tmp_path: pathlib.Path) -> None:
    """Right to rounding for any number of rows, and a row's sums are the same bits whatever rows are beside it."""
    torch.manual_seed(0)
    module, file = Products(*SHAPES), tmp_path / "products.pt2"
    with building.undisturbed(), config.patch({"cpp.simdlen": 256}):  # AVX2 where there is more as well
        building._compile(traced(module), file, OPTIONS, True)
    assert source(file).count(OURS) == len(SHAPES), "it was taken for each product"
    run = building.load(file)
    rows = [torch.randn(max(WIDTHS), shape[0]).to(dtype) for dtype, shape in SHAPES.items()]
    alone = [[run([x[row : row + 1] for x in rows])[product] for row in range(max(WIDTHS))] for product in range(3)]
    for width in WIDTHS:
        found = run([x[:width].contiguous() for x in rows])
        for product, (linear, x, y) in enumerate(zip(module.each, rows, found, strict=True)):
            exact = x[:width].double() @ linear.weight.double().T
            most = 2 * torch.finfo(y.dtype).eps * exact.abs() + 1e-5  # of float32 sums, rounded to the dtype
            assert ((y.double() - exact).abs() <= most).all(), (width, y.dtype)
            assert torch.equal(y, torch.cat(alone[product][:width])), (width, y.dtype)


@needs_avx2
def test_inductor_s_own_where_ours_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not torch's slower ones, which trials would leave."""
    from specdec.compiled import products

    monkeypatch.setattr(products, "_KERNEL", "{{declare_kernel}} { this is no C++; }")
    module = Products(torch.float32)
    with config.patch({"cpp.simdlen": 256}):
        file, _ = building._built("products", 1.0, lambda: traced(module), building.ATTEMPTS, Store(), "0")
    assert OURS not in source(file)
    assert "_micro_gemm" in source(file)


def test_inductor_is_left_as_it_was() -> None:
    """Also by a build that fails."""
    from specdec.compiled.products import FewRows, few_rows, inductor

    before = inductor.micro_gemm_configs
    content = {kind: list(configs) for kind, configs in before.items()}
    with contextlib.suppress(KeyError), few_rows():
        assert FewRows in inductor.micro_gemm_configs
        raise KeyError
    assert inductor.micro_gemm_configs is before
    assert before == content
