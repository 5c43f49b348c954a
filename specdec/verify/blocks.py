"""Searches over large vocabularies in two levels: first for the block of tokens, then inside it.

torch's argmax over a long row of bfloat16 compares one score at a time, and its cumulative sum in float64 writes four
times what it reads. Maxima and sums of blocks run at memory speed, and leave a search over a few hundred numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_VOCAB = 1 << 13  # from here on two levels pay (docs/performance.md)
_BLOCK = 512
_PART = 1 << 19  # numbers in float64 at a time, so that they stay in a processor's cache


def largest(scores: Tensor) -> Tensor:
    """[...] int64 argmax of [..., V], in the dtype that the scores have; the first of equal ones, NaN above all.

    Example:
        >>> largest(torch.tensor([[1.0, 3.0, 3.0]])).tolist()
        [1]
    """
    if scores.shape[-1] < LEAST_VOCAB:
        # Exact, and float32 is searched several times as fast as half precision.
        return (scores.float() if scores.element_size() < 4 else scores).argmax(-1)
    whole, tail = _split(scores)
    tops = whole.amax(-1)
    if tail.shape[-1]:
        tops = torch.cat([tops, tail.amax(-1, keepdim=True)], dim=-1)
    start = (tops.float() if tops.element_size() < 4 else tops).argmax(-1, keepdim=True) * _BLOCK
    index = _inside(start, scores.shape[-1])
    inside = scores.gather(-1, index)  # the last block is filled up with its last score: the first of equal ones counts
    first = (inside.float() if inside.element_size() < 4 else inside).argmax(-1, keepdim=True)
    return index.gather(-1, first).squeeze(-1)


def drawn(weights: Tensor, coin: Tensor) -> Tensor:
    """Index drawn from weights [B, V] by coin [B] in [0, 1): int64 [B]; -1 where weights are no distribution.

    Inverts the same cumulative sum in the same order as `coins.inverse_cdf`, in float64, but for the last bits of
    sums that are put together in another order. A token of weight zero is never drawn.
    """
    sums = _block_sums(weights)
    cdf = sums.cumsum(-1)
    total = cdf[:, -1:]
    threshold = torch.minimum(coin[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    block = _first(cdf > threshold, sums)[:, None]
    before = F.pad(cdf, (1, 0)).gather(1, block)
    index = _inside(block * _BLOCK, weights.shape[1])
    # The last block is filled up with the last token: the first place that is beyond counts, and it is the same token.
    inside = weights.gather(1, index).to(torch.float64)
    place = _first(before + inside.cumsum(1) > threshold, inside)[:, None]
    usable = (total > 0) & torch.isfinite(total)
    return torch.where(usable, index.gather(1, place), -1).squeeze(1)


def _first(beyond: Tensor, weights: Tensor) -> Tensor:
    """[B] the first index of [B, M] that is beyond and has weight; by rounding there may be none, then the last."""
    has_weight = weights > 0
    beyond = beyond & has_weight
    last = weights.shape[1] - 1 - has_weight.flip(1).to(torch.int8).argmax(1)
    return torch.where(beyond.any(1), beyond.to(torch.int8).argmax(1), last)


def _inside(start: Tensor, vocab_size: int) -> Tensor:
    """[..., block] int64 indices of the blocks that begin at start [..., 1], none beyond the vocabulary."""
    return (start + torch.arange(_BLOCK, device=start.device)).clamp(max=vocab_size - 1)


def _split(table: Tensor) -> tuple[Tensor, Tensor]:
    """[..., V] as whole blocks [..., V // block, block] and what is left [..., V % block]; views."""
    end = table.shape[-1] // _BLOCK * _BLOCK
    return table[..., :end].unflatten(-1, (-1, _BLOCK)), table[..., end:]


def _block_sums(weights: Tensor) -> Tensor:
    """[B, blocks] float64."""
    on_cpu = weights.device.type == "cpu"  # where a sum in another dtype converts everything first
    size = max(1, _PART // weights.shape[1]) if on_cpu else weights.shape[0]
    parts = []
    for part in weights.split(size):
        whole, tail = _split(part.to(torch.float64) if on_cpu else part)
        sums = whole.sum(-1, dtype=torch.float64)
        if tail.shape[1]:
            sums = torch.cat([sums, tail.sum(-1, keepdim=True, dtype=torch.float64)], dim=1)
        parts.append(sums)
    return torch.cat(parts)
