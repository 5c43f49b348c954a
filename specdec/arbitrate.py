"""Is a difference between two greedy outputs a bug, or a tie that rounding decides?

A forward over five tokens and five forwards over one sum in different orders. In bfloat16 that moves
logits by a percent, and where two tokens are closer than that either may come out first, in any
implementation. The arbiter recomputes the first difference in a wider dtype and compares the gap between
the two tokens there with the narrow dtype's own error at that position.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from specdec.target import input_device

_WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first difference between two continuations of one prompt."""

    position: int  # index of the first differing new token
    token: int  # of the first continuation
    other: int  # of the second
    gap: float  # between their logits, in the wider dtype
    noise: float  # largest error of the narrow dtype's logits at this position

    @property
    def is_near_tie(self) -> bool:
        """Each of the two logits may be off by `noise`, so a gap within twice that decides nothing."""
        return self.gap <= 2 * self.noise


@torch.no_grad()
def first_divergence(
    model: PreTrainedModel, prompt: Sequence[int], new: Sequence[int], other: Sequence[int]
) -> Divergence | None:
    """Compares two greedy continuations; None if they are equal.

    Args:
        model: the target, in the dtype that it decoded in; not changed.
        prompt: token ids without padding.
        new, other: the continuations. One that ends early counts as equal up to its end.
    """
    differing = (i for i, (a, b) in enumerate(zip(new, other, strict=False)) if a != b)
    position = next(differing, None)
    if position is None:
        return None
    a, b = new[position], other[position]
    ids = torch.tensor([[*prompt, *new[:position]]], device=input_device(model))
    narrow = model(ids).logits[0, -1]
    wide_dtype = _WIDER.get(model.dtype, torch.float64)
    wider: torch.nn.Module = copy.deepcopy(model)
    for module in wider.modules():  # of the copy: torch's grouped products of experts know no float64
        if getattr(getattr(module, "config", None), "_experts_implementation", None) is not None:
            module.config._experts_implementation = "eager"  # type: ignore[union-attr]
    wide = wider.to(wide_dtype)(ids).logits[0, -1]
    return Divergence(
        position, a, b, gap=float((wide[a] - wide[b]).abs()), noise=float((narrow.to(wide_dtype) - wide).abs().max())
    )
