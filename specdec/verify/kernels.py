"""The rejection rule of a chain over a large vocabulary as Triton kernels: logits are read once, in their own dtype.

Three passes where `rules.rejection` on a softmax makes a dozen, and no distribution of size [B, N + 1, V] is made:

1. maxima and sums of exponentials of every row of logits, online (arXiv:1805.02867);
2. sums and signs of q, which tell whether it is a distribution;
3. what the next token is drawn from, at the one place where each row stopped: [B, V].

Between them stand operations on [B, N]; nothing waits for the host. Imported on CUDA devices where triton is, see
`choice.of`; `rules.rejection` is what it is tested against (tests/verify/test_kernels.py).
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from specdec.types import Acceptance, Proposal, q_tolerance
from specdec.verify.coins import Coins
from specdec.verify.tree import accepted_prefix

_BLOCK = 4096  # numbers of a program's step
_SPLIT = 8  # steps of a program: a row of 128k is four programs, so that few rows fill the device as well
_KEEP, _WHOLE, _RESIDUAL, _GIVEN = 0, 1, 2, 3  # what `_weights` writes


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _online(table, maxima, sums, size, columns, row_stride, column_stride, divisor, ACC: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr):  # type: ignore[no-untyped-def] # fmt: skip # noqa: E501
    """Maximum m and sum of exp(x - m) of a part of a row of table / divisor."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = table + row // columns * row_stride + row % columns * column_stride
    top = tl.full((), -float("inf"), ACC)
    total = tl.full((), 0.0, ACC)
    for step in range(STEPS):
        index = (part * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(at + index, mask=index < size, other=-float("inf")).to(ACC) / divisor
        higher = tl.maximum(top, tl.max(x, 0))
        shift = tl.where(higher == -float("inf"), 0.0, higher)  # nothing yet: exp(-inf - 0) is 0
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(x - shift), 0)  # NaN comes in by the sum
        top = higher
    place = row * tl.num_programs(1) + part
    tl.store(maxima + place, top)
    tl.store(sums + place, total)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _adding(table, lows, sums, size, columns, row_stride, column_stride, ACC: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr):  # type: ignore[no-untyped-def] # fmt: skip # noqa: E501
    """Sum of a part of a row of the table, and the sum of what is negative in it."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = table + row // columns * row_stride + row % columns * column_stride
    low = tl.full((), 0.0, ACC)
    total = tl.full((), 0.0, ACC)
    for step in range(STEPS):
        index = (part * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(at + index, mask=index < size, other=0.0).to(ACC)
        total += tl.sum(x, 0)
        low += tl.sum(tl.where(x < 0, x, 0.0), 0)
    place = row * tl.num_programs(1) + part
    tl.store(lows + place, low)
    tl.store(sums + place, total)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _weights(logits, q, weights, ends, drawn_from, modes, tokens, maxima, sums, size, q_size, width, row_stride, column_stride, q_row_stride, q_column_stride, divisor, ACC: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # fmt: skip # noqa: E501
    """A block of what the next token is drawn from: p, max(p - q, 0), or p without a token."""
    row = tl.program_id(0).to(tl.int64)
    mode = tl.load(modes + row)
    if mode != 0:
        index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        at = logits + row * row_stride + tl.load(ends + row) * column_stride
        x = tl.load(at + index, mask=index < size, other=-float("inf")).to(ACC) / divisor
        p = tl.exp(x - tl.load(maxima + row)) / tl.load(sums + row)
        q_end = tl.where(mode == 2, q_size, 0)  # else q has no say
        at = q + row * q_row_stride + tl.load(drawn_from + row) * q_column_stride
        left = p - tl.load(at + index, mask=index < q_end, other=0.0).to(ACC)
        left = tl.where(left < 0, 0.0, left)  # NaN stays NaN
        left = tl.where((mode == 3) & (index == tl.load(tokens + row)), p * 0, left)
        left = tl.where((index >= size) & (mode != 2), 0.0, left)
        tl.store(weights + row * width + index, left, mask=index < width)


def rejection(logits: Tensor, proposal: Proposal, coins: Coins, temperature: float = 1.0) -> tuple[Acceptance, Tensor]:
    """`rules.rejection` of a chain (Alg. 1 of arXiv:2211.17192) at a temperature, from logits.

    Args:
        logits: [B, N + 1, V] in the dtype that the model gave.
        proposal: a chain, sampled (q [B, M, Vq]) or given. Its q need not have been checked.
        coins: where every random choice comes from.
        temperature: what logits are divided by.

    Returns:
        What is accepted; and [B] bool, rows whose q is no distribution.
    """
    tokens, q, q_index = proposal.tokens, proposal.q, proposal.q_index
    batch_size, num_nodes = tokens.shape
    maxima, sums = _row_sums(logits, temperature)
    unfair = torch.zeros(batch_size, dtype=torch.bool, device=logits.device)
    ended = torch.ones_like(unfair)
    path, num_accepted = tokens, tokens.new_zeros(batch_size)
    token = drawn_from = num_accepted
    if num_nodes:
        valid = proposal.valid.cumprod(1).bool()
        ratio = _probability(logits, tokens, maxima, sums, temperature)
        if q is not None:
            assert q_index is not None
            unfair = (~_is_fair(q).gather(1, q_index) & valid).any(1)
            q_x = q[torch.arange(batch_size, device=q.device)[:, None], q_index, tokens.clamp(max=q.shape[2] - 1)]
            q_x = torch.where(tokens < q.shape[2], q_x, 0).to(ratio.dtype)
            ratio, valid = ratio / q_x, (valid & (q_x > 0)).cumprod(1).bool()
        path, num_accepted = accepted_prefix(coins.bernoulli(torch.where(valid, ratio.clamp(max=1.0), 0.0)))
        ended = num_accepted == valid.sum(1)  # nothing failed: the bonus token comes from p
        failed = num_accepted.clamp(max=num_nodes - 1)[:, None]
        token = tokens.gather(1, failed)[:, 0]
        drawn_from = token if q_index is None else q_index.gather(1, failed)[:, 0]
    weights = _next_weights(logits, q, num_accepted, ended, drawn_from, token, maxima, sums, temperature)
    return Acceptance(path, num_accepted, coins.categorical(weights)), unfair


def _row_sums(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """[B, K] maxima of logits / temperature, and sums of exponentials below them."""
    logits = _adjacent(logits)
    batch_size, columns, size = logits.shape
    maxima, sums = _partial(logits)
    _online[(batch_size * columns, maxima.shape[2])](
        logits, maxima, sums, size, columns, *logits.stride()[:2], temperature, _acc(logits), _BLOCK, _SPLIT
    )
    top = maxima.amax(2)
    shift = torch.where(top == -torch.inf, 0, top)
    return top, (sums * (maxima - shift[:, :, None]).exp()).sum(2)


def _is_fair(q: Tensor) -> Tensor:
    """[B, M] is q [B, M, V] a distribution? NaN is not."""
    q = _adjacent(q)
    lows, sums = _partial(q)
    grid = (q.shape[0] * q.shape[1], sums.shape[2])
    _adding[grid](q, lows, sums, q.shape[2], q.shape[1], *q.stride()[:2], _acc(q), _BLOCK, _SPLIT)
    return (lows.sum(2) >= 0) & ((sums.sum(2) - 1).abs() < q_tolerance(q))


def _next_weights(
    logits: Tensor,
    q: Tensor | None,
    ends: Tensor,
    ended: Tensor,
    drawn_from: Tensor,
    token: Tensor,
    maxima: Tensor,
    sums: Tensor,
    temperature: float,
) -> Tensor:
    """[B, V] what each row's next token is drawn from, not normalised."""
    logits = _adjacent(logits)
    drafts = logits if q is None else _adjacent(q)  # a pointer is needed, and not followed
    width = max(logits.shape[2], drafts.shape[2])
    weights = torch.empty(len(ends), width, dtype=_dtype(logits), device=logits.device)
    here = ends[:, None]
    top, total = maxima.gather(1, here)[:, 0], sums.gather(1, here)[:, 0]
    grid = (len(ends), triton.cdiv(width, _BLOCK))
    sizes = (logits.shape[2], drafts.shape[2], width, *logits.stride()[:2], *drafts.stride()[:2])

    def write(modes: Tensor) -> None:
        rows = (ends, drawn_from, modes, token, top, total)
        _weights[grid](logits, drafts, weights, *rows, *sizes, temperature, _acc(logits), _BLOCK)

    write(torch.where(ended, _WHOLE, _GIVEN if q is None else _RESIDUAL))
    # Nothing is left where r = q, which is accepted for sure but for rounding: p is then the answer.
    write(torch.where(ended | (weights.sum(1) > 0), _KEEP, _WHOLE))
    return weights


def _probability(logits: Tensor, tokens: Tensor, maxima: Tensor, sums: Tensor, temperature: float) -> Tensor:
    """p(x) [B, N] of tokens [B, N]; one that only a wider draft has is never said."""
    known = tokens.clamp(max=logits.shape[2] - 1)
    x = logits[:, :-1].gather(2, known[:, :, None]).squeeze(2).to(sums.dtype) / temperature
    return torch.where(tokens == known, (x - maxima[:, :-1]).exp() / sums[:, :-1], 0)


def _partial(table: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers for each part of each row [B, K, parts]."""
    parts = triton.cdiv(table.shape[2], _BLOCK * _SPLIT)
    empty = torch.empty(*table.shape[:2], parts, dtype=_dtype(table), device=table.device)
    return empty, torch.empty_like(empty)


def _adjacent(table: Tensor) -> Tensor:
    """Rows may lie anywhere, the numbers of a row side by side."""
    return table if table.stride(2) == 1 else table.contiguous()


def _dtype(table: Tensor) -> torch.dtype:
    return torch.float64 if table.dtype == torch.float64 else torch.float32


def _acc(table: Tensor) -> tl.constexpr:
    return tl.float64 if table.dtype == torch.float64 else tl.float32
