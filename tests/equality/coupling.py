"""Sampling that two programs do alike: randomness that is a function of the text so far, and of nothing else.

Greedy decoding under scores + Gumbel noise is sampling (the Gumbel-max trick). With noise that depends on a row's own
tokens alone, transformers' `generate(do_sample=False)` and specdec must then sample the same text.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

_WIDTH = 4  # the tokens that the noise depends on, with the length


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise keyed by seed, length and the last tokens: row by row, whatever else is in the batch.

    Args:
        scale: the temperature that the text is sampled at; tiny random models have wide logits.
    """

    def __init__(self, seed: int = 0, scale: float = 2.0) -> None:
        self._seed = seed
        self._scale = scale

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = [self._noise(row.tolist(), scores.shape[1]) for row in input_ids]
        return scores + self._scale * torch.stack(noise).to(scores)

    def _noise(self, tokens: list[int], size: int) -> Tensor:
        key = self._seed
        for number in [len(tokens), *tokens[-_WIDTH:]]:
            key = (key * 1_000_003 + number + 1) % (2**61 - 1)
        uniform = torch.rand(size, generator=torch.Generator().manual_seed(key), dtype=torch.float64)
        return -torch.log(-torch.log(uniform))


class GumbelChoice(GumbelNoise):
    """Leaves only the noisy scores' best token possible, so that `do_sample=True` has one text to sample."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = super().__call__(input_ids, scores).argmax(1, keepdim=True)
        return torch.full_like(scores, float("-inf")).scatter(1, best, scores.gather(1, best).clamp(min=-1e30))
