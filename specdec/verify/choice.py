"""Which form of the rejection rule a round gets. All have one law, and use their coins alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from specdec.types import Acceptance, Proposal
from specdec.verify.coins import KeyedCoins
from specdec.verify.parts import rejection_in_parts

Form = Literal["parts", "kernels"]
# Numbers of a round's logits, and of one row, from which each form pays (docs/performance.md, "Acceptance").
_LEAST_NUMBERS, _LEAST_VOCAB = 1 << 19, 1 << 16
_MANY_NUMBERS, _SMALL_VOCAB = 1 << 21, 1 << 15
# On a GPU launches are what a round costs, and the kernels need more of them; from here on it is memory.
_LEAST_ON_GPU = 1 << 27


def form_of(device: torch.device, shape: tuple[int, int, int], temperature: float | None) -> Form | None:
    """The form for chains whose logits have this shape [B, N + 1, V]; None means `rules.rejection`.

    Args:
        temperature: what scores are divided by; None if more is done to them.
    """
    rows, columns, vocab_size = shape
    numbers = rows * columns * vocab_size
    if device.type == "cuda":
        return "kernels" if numbers >= _LEAST_ON_GPU and temperature is not None and _has_triton() else None
    is_large = numbers >= _LEAST_NUMBERS and vocab_size >= _LEAST_VOCAB
    is_large = is_large or (numbers >= _MANY_NUMBERS and vocab_size >= _SMALL_VOCAB)
    # Nothing is left out of a single position.
    return "parts" if device.type == "cpu" and is_large and columns > 1 else None


def judged(
    form: Form,
    logits: Tensor,
    proposal: Proposal,
    coins: KeyedCoins,
    probs: Callable[[Tensor], Tensor],
    temperature: float | None,
) -> tuple[Acceptance, Tensor]:
    """The rejection rule in that form; see `parts.rejection_in_parts` and `kernels.rejection`."""
    if form == "parts":
        return rejection_in_parts(logits, proposal, coins, probs)
    from specdec.verify import kernels  # triton comes with CUDA builds of torch only

    assert temperature is not None
    return kernels.rejection(logits, proposal, coins, temperature)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
