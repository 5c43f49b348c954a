"""When to stop drafting: before a token that the draft itself is unsure of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.errors import OptionError


def check_confidence(min_confidence: float) -> float:
    """The bound, or OptionError where it is no probability below 1."""
    is_number = isinstance(min_confidence, int | float) and not isinstance(min_confidence, bool)
    if not is_number or not 0 <= min_confidence < 1:
        raise OptionError(f"min_confidence={min_confidence!r}: a probability, 0 <= min_confidence < 1; 0 is off.")
    return float(min_confidence)


class Confidence:
    """Which rows of a batch of chains go on, one token at a time.

    A row ends before the token at which the product of the draft's largest probabilities, of this token and of all
    before it, falls below the bound. A token is committed only if all before it are, and costs a draft forward
    wherever it stands: so it is the product that is compared (EAGLE-2, arXiv:2406.16858, finds it close to the chance
    of acceptance), and not each token by itself as transformers' `assistant_confidence_threshold` does.

    The largest probability is known before the token is drawn. The probability of the drawn token itself must not be
    looked at: dropping it after it came out unlikely changes the law that it is verified by.

    Args:
        min_confidence: the bound.
        limit: [B] most tokens of each row.
    """

    def __init__(self, min_confidence: float, limit: Sequence[int], device: torch.device) -> None:
        self._bound = min_confidence
        self._limit = torch.tensor(limit, device=device)
        self._product = torch.ones(len(limit), device=device)
        self._step = 0
        self._drafts = self._limit > 0

    def drafts_from(self, probs: Tensor) -> Tensor:
        """[B] bool: does the row draft its next token, from the distribution probs [B, V]?"""
        self._product = self._product * probs.amax(-1)
        # NaN, of a broken draft, goes on: the loop is to see it.
        self._drafts = self._drafts & ~(self._product < self._bound) & (self._step < self._limit)
        self._step += 1
        return self._drafts
