"""Intervals by a Poisson bootstrap over prompts, in memory that does not grow with them.

Each prompt has, in each replicate, a weight drawn from Poisson(1), which stands for how often resampling with
replacement would have drawn it. Weights follow from the seed and the prompt's number alone. So sums are kept, never
prompts; what several processes summed adds up to what one would have; and two quantities of the same prompts (two
drafts, speculative and plain decoding) move together from replicate to replicate, which pairs them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specdec.errors import InputError
from specdec.profile.schema import Interval

REPLICATES = 400
Floats = NDArray[np.float64]
_TAIL = 0.025
_Z = NormalDist().inv_cdf(1 - _TAIL)


class Bootstrap:
    """The replicates' weights.

    Args:
        seed: the profile's.
        replicates: R.

    Example:
        >>> weights = Bootstrap(seed=0).weights(prompt_index=7)
        >>> weights.shape, float(weights[0])
        ((401,), 1.0)
    """

    def __init__(self, seed: int = 0, replicates: int = REPLICATES) -> None:
        self.seed = seed
        self.replicates = replicates

    def weights(self, prompt_index: int) -> Floats:
        """[R + 1] the prompt's weights, read-only; row 0 is the sample itself, where every weight is 1."""
        return _weights(self.seed, self.replicates, prompt_index)


@lru_cache(maxsize=64)  # a prompt's many sums are added one after the other
def _weights(seed: int, replicates: int, prompt_index: int) -> Floats:
    drawn = np.random.default_rng([seed, prompt_index]).poisson(1.0, replicates)
    out = np.concatenate([[1.0], drawn])
    out.setflags(write=False)
    return out


class Sums:
    """Weighted sums over prompts of some quantities, in the sample and in each replicate.

    Sums of integers are exact in any order and however they are split and merged (up to 2 ** 53); those of other
    numbers are up to rounding. All parts of a prompt must be added under its one number.

    Args:
        seed: that of every other sum that this one is merged or paired with.
        table: [R + 1, M] of an earlier `table`, to go on from.

    Example:
        >>> sums = Sums(seed=0)
        >>> for prompt, (accepted, drafted) in enumerate([(3, 4), (1, 4), (4, 4)]):
        ...     sums.add(prompt, [accepted, drafted])
        >>> sums.ratio(0, 1)
        Interval(value=0.6666666666666666, low=0.25, high=1.0)
    """

    def __init__(self, seed: int = 0, table: Floats | None = None) -> None:
        self._bootstrap = Bootstrap(seed, REPLICATES if table is None else len(table) - 1)
        self.table = None if table is None else np.array(table, dtype=np.float64)

    def add(self, prompt_index: int, values: ArrayLike) -> None:
        """Takes in a prompt's (or a part of a prompt's) quantities [M].

        Raises:
            InputError: a negative number, other than M quantities, or one that is not finite.
        """
        if prompt_index < 0:
            raise InputError(f"prompts are numbered from 0, got {prompt_index}.")
        row = np.asarray(values, dtype=np.float64)
        if row.ndim != 1 or (self.table is not None and row.shape[0] != self.table.shape[1]):
            have = "M" if self.table is None else self.table.shape[1]
            raise InputError(f"expected {have} quantities of prompt {prompt_index}, got an array of {row.shape}.")
        if not np.isfinite(row).all():
            raise InputError(f"the quantities of prompt {prompt_index} are not finite: {row.tolist()}.")
        weights = self._bootstrap.weights(prompt_index)
        if self.table is None:
            self.table = np.zeros((len(weights), row.shape[0]))
        self.table += np.outer(weights, row)

    def merge(self, other: Sums) -> None:
        """Adds what another process, or another part of the prompts, has summed.

        Raises:
            InputError: other seeds or replicates (their weights differ), or other quantities.
        """
        own, theirs = self._bootstrap, other._bootstrap
        if (own.seed, own.replicates) != (theirs.seed, theirs.replicates):
            raise InputError(
                "sums of different seeds or replicates weigh the same prompt differently: they do not add."
            )
        if other.table is None:
            return
        if self.table is None:
            self.table = np.zeros_like(other.table)
        if self.table.shape != other.table.shape:
            raise InputError(f"sums of {self.table.shape[1]} and of {other.table.shape[1]} quantities do not add.")
        self.table += other.table

    @property
    def totals(self) -> Floats:
        """[M] the plain sums."""
        return np.zeros(0) if self.table is None else self.table[0]

    @overload
    def ratio(self, numerator: int, denominator: int) -> Interval: ...

    @overload
    def ratio(self, numerator: slice, denominator: int | slice) -> list[Interval]: ...

    def ratio(self, numerator: int | slice, denominator: int | slice) -> Interval | list[Interval]:
        """The interval of one sum over another, of each of several over one, or of several over as many.

        The value is the sample's. Replicates without anything in the denominator are left out. Where nothing varies,
        and of a single prompt, which says nothing of spread, all three figures are equal. Nothing over nothing is 0.
        """
        if isinstance(numerator, int):
            assert isinstance(denominator, int)
            return self.statistic(lambda t: _divide(t[:, numerator], t[:, denominator]), denominator)
        columns = range(0 if self.table is None else self.table.shape[1])
        above = columns[numerator]
        below = [denominator] * len(above) if isinstance(denominator, int) else columns[denominator]
        return [self.ratio(n, d) for n, d in zip(above, below, strict=True)]

    def statistic(self, of: Callable[[Floats], Floats], size: int) -> Interval:
        """The interval of a function of the sums.

        Args:
            of: [R + 1, M] sums -> [R + 1] values; NaN in a replicate leaves it out.
            size: the column that says how much each prompt contributes, for `clusters`.

        Example:
            Of a difference of two ratios of the same prompts, which is paired:

            >>> sums = Sums()
            >>> for prompt in range(9):
            ...     sums.add(prompt, [prompt, prompt + 4, 8])
            >>> sums.statistic(lambda t: (t[:, 1] - t[:, 0]) / t[:, 2], size=2)
            Interval(value=0.5, low=0.5, high=0.5)
        """
        if self.table is None:
            return Interval(0.0, 0.0, 0.0)
        with np.errstate(all="ignore"):
            values = of(self.table)
        return interval(values, self.clusters(size))

    def clusters(self, size: int) -> float:
        """How many prompts of equal size would say as much: (sum of sizes) ** 2 / sum of squares (Kish).

        Read off the replicates, whose variance of the sum is the sum of squares: no prompt is counted or kept.
        """
        if self.table is None or self.table[0, size] == 0:
            return 0.0
        column = self.table[:, size]
        spread = float(np.mean((column[1:] - column[0]) ** 2))
        return float(column[0] ** 2 / spread) if spread > 0 else 1.0


def interval(values: Floats, clusters: float) -> Interval:
    """Where 95 % of the replicates lie, a little wider where there are few prompts.

    With n prompts plain percentiles miss a factor sqrt(n / (n - 1)) and treat Student's t as normal: with 8 prompts
    they cover 0.89 where 0.95 is meant. They are taken that much further out (expanded percentiles, Hesterberg,
    arXiv:1411.5279); from some dozens of prompts on they are 2.5 and 97.5. Below 5 prompts no percentile is far enough
    out: measured on made data, 4 prompts cover 0.87.

    Args:
        values: [R + 1] the sample's value, then the replicates'; NaN leaves a replicate out.
        clusters: n.
    """
    value = float(values[0])
    if not np.isfinite(value):
        return Interval(0.0, 0.0, 0.0)
    drawn = values[1:][np.isfinite(values[1:])]
    if not len(drawn):
        return Interval(value, value, value)
    tail = _tail(clusters)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value))


def _tail(clusters: float) -> float:
    """What is cut off at either end: Phi(-sqrt(n / (n - 1)) t), t the 0.975 quantile of Student's t of n - 1."""
    freedom = clusters - 1
    if freedom < 1:
        return 0.0
    z = _Z  # the quantile by its expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(-t * float(np.sqrt(clusters / freedom)))


def _divide(above: Floats, below: Floats) -> Floats:
    out: Floats = np.where(below > 0, above, np.nan) / np.where(below > 0, below, 1.0)
    return out
