"""The two doors of randomness, and the coins behind them.

Verification draws through `bernoulli` and `categorical` only, so that an oracle can take their place
and enumerate every outcome (tests/lossless/oracle.py). `KeyedCoins` derives each coin from its name
(seed, request, committed length at the start of the round, purpose, node) by a counter-based hash:
no generator state, no key drawn twice, the same result whatever else is in the batch.

Absolute position alone would be too short a name: the coins of a rejected tail would be drawn again
in the next round, and with block verification that biases the output.
"""

from __future__ import annotations

import enum
from typing import Protocol

import torch
from torch import Tensor

from specdec.verify.blocks import LEAST_VOCAB, drawn


class Purpose(enum.IntEnum):
    """What a coin decides. Part of its key."""

    ACCEPT = 1
    NEXT_TOKEN = 2
    DRAFT = 3


class Coins(Protocol):
    def bernoulli(self, prob: Tensor) -> Tensor:
        """prob [B, N] in [0, 1] -> bool [B, N], one coin per node; prob 0 is never True."""
        ...

    def categorical(self, weights: Tensor) -> Tensor:
        """weights [B, V] >= 0, not normalised -> int64 [B]; -1 where they sum to 0, inf or NaN."""
        ...


class PartCoins(Protocol):
    """The same doors, opened part by part: a coin is the same whenever, and beside whatever others, it is asked for."""

    def bernoulli(self, prob: Tensor, rows: Tensor | None = None, first: int = 0) -> Tensor:
        """prob [R, n] of the given rows' nodes first..first+n-1 -> bool [R, n]; all rows if none are given."""
        ...

    def categorical(self, weights: Tensor, rows: Tensor | None = None) -> Tensor:
        """weights [R, V] of the given rows -> int64 [R]."""
        ...


# splitmix64's constants as signed 64-bit integers; torch's int64 products wrap as they need to.
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_STREAM = 1 << 32  # draft nodes between the names of one drafter's coins and the next one's


def _logical_shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser: a bijection of int64 in which every input bit moves every output bit."""
    x = (x ^ _logical_shift_right(x, 30)) * _MIX_1
    x = (x ^ _logical_shift_right(x, 27)) * _MIX_2
    return x ^ _logical_shift_right(x, 31)


def uniform(seed: int | Tensor, *key: Tensor | int) -> Tensor:
    """Uniform float64 in [0, 1) for each (broadcast) key.

    Args:
        seed: a signed 64-bit integer, or an int64 tensor.
        key: int64 tensors (at least one) and integers, broadcast against each other.

    Example:
        >>> bool(uniform(0, torch.tensor([1, 2])).unique().numel() == 2)
        True
    """
    tensors = [k for k in key if isinstance(k, Tensor)]
    # The seed is mixed by itself: seed + request alone would make seed 1's request 0 out of seed 0's request 1.
    if not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=tensors[0].device)
    state = _mix(seed * _GOLDEN + _GOLDEN)
    for part in key:
        state = _mix((state + part) * _GOLDEN + _GOLDEN)
    return _logical_shift_right(state, 11).to(torch.float64) * 2.0**-53


def inverse_cdf(weights: Tensor, coin: Tensor) -> Tensor:
    """Index drawn from weights [B, V] by coin [B] in [0, 1): int64 [B]; -1 where weights are no distribution.

    A token of weight zero is never drawn, also where a parallel cumulative sum is not flat over zeros.
    """
    cdf = weights.to(torch.float64).cumsum(-1)
    total = cdf[:, -1:]
    threshold = torch.minimum(coin[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    beyond = (cdf > threshold) & (weights > 0)
    first = beyond.to(torch.int8).argmax(-1)  # the first of equal maxima
    index = torch.where(beyond.any(-1), first, weights.argmax(-1))  # none: rounding at the very end
    usable = (total > 0) & torch.isfinite(total)
    return torch.where(usable.squeeze(1), index, -1)


class KeyedCoins:
    """The coins of one round.

    Args:
        seed: 64-bit seed of the call.
        requests: [B] int64, identity of each row, constant while rows join and leave.
        lengths: [B] int64, committed tokens at the start of the round.
        device: where coins are wanted, if requests and lengths are elsewhere: a hash is a hundred operations on a few
            numbers, which a GPU spends two milliseconds on, and a CPU a tenth of one.

    Attributes:
        stream: which of several independent drafters draws now.
    """

    def __init__(self, seed: int, requests: Tensor, lengths: Tensor, device: torch.device | None = None) -> None:
        self.seed = seed
        self._device = requests.device if device is None else device
        self.requests = requests
        self.lengths = lengths
        self.stream = 0
        self._round: dict[tuple[Purpose, int], Tensor] = {}  # by purpose and stream

    def _coins(self, purpose: Purpose, num_nodes: int, first: int = 0) -> Tensor:
        """The coins of num_nodes nodes from `first` on: float64 [B, num_nodes]."""
        nodes = torch.arange(first, first + num_nodes, device=self.requests.device)
        coins = uniform(self.seed, self.requests[:, None], self.lengths[:, None], int(purpose), nodes)
        return coins.to(self._device, non_blocking=True)

    def _kept(self, purpose: Purpose, num_nodes: int, rows: Tensor | None = None, stream: int = 0) -> Tensor:
        """The same of some rows and of a stream; a hash costs the same for one coin as for a round's worth."""
        kept = self._round.get((purpose, stream))
        if kept is None or kept.shape[1] < num_nodes:
            kept = self._round[purpose, stream] = self._coins(purpose, max(16, 2 * num_nodes), stream * _STREAM)
        kept = kept[:, :num_nodes]
        return kept if rows is None else kept[rows]

    def bernoulli(self, prob: Tensor, rows: Tensor | None = None, first: int = 0) -> Tensor:
        # Strict: a coin of 0 must reject probability 0.
        return self._kept(Purpose.ACCEPT, first + prob.shape[1], rows)[:, first:] < prob

    def categorical(self, weights: Tensor, rows: Tensor | None = None) -> Tensor:
        return _inverted(weights, self._kept(Purpose.NEXT_TOKEN, 1, rows)[:, 0])

    def draft(self, weights: Tensor, node: int) -> Tensor:
        """Samples draft node `node` from weights [B, V]: independent of every verification coin."""
        return _inverted(weights, self._kept(Purpose.DRAFT, node + 1, stream=self.stream)[:, node])


def _inverted(weights: Tensor, coin: Tensor) -> Tensor:
    return (drawn if weights.shape[1] >= LEAST_VOCAB else inverse_cdf)(weights, coin)
