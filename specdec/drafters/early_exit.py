"""Drafting with the target's own first layers: no second model, no second cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.drafters.layers import choices_along, decoder_layers, with_layers
from specdec.drafters.own_layers import OwnLayersDrafter
from specdec.errors import OptionError
from specdec.state import DecodeState

_MEASURED = 64  # last tokens of the longest prompt that "auto" looks at
_LEAST = 4  # with fewer there is nothing to choose by
_SHARES = (8, 4, 3, 2)  # candidates are a so-manieth of the layers
_DEPTH = 8  # most draft tokens a round that the expected speed-up is taken over


class EarlyExitDrafter(OwnLayersDrafter):
    """Drafts chains with the target's first layers, its final norm and its head (self-speculation, arXiv:2404.16710).

    It costs no memory: the drafts are written to the target's own cache, behind its tokens, and the prompt is read
    once, by the target. Pays where the model was trained for early exits (LayerSkip checkpoints); on others the first
    layers agree little with the last, and num_draft_tokens="auto" soon drafts less or nothing.

    Recurrent and hybrid targets hold states that cannot be written without being committed: there the first layers
    have a cache of their own, and read the prompt for themselves. What a prompt brings beside its tokens (images,
    positions of its own) is not shown to the drafts, which are guessed worse then.

    Args:
        exit_layer: how many layers draft, from 1 to one less than the target has. "auto" chooses in each call, from the
            last 64 tokens of the longest prompt: an eighth, a quarter, a third or half of the layers, by the speed-up
            to be expected (arXiv:2211.17192, Theorem 3.8) from how often each one's argmax is the target's and from its
            share of the weights. That takes a little over two forwards of 64 tokens; a quarter is taken unseen where
            there are fewer than 4 tokens or they are not all (embeddings).
        min_confidence: see `ModelDrafter`.

    Raises:
        OptionError: exit_layer is no positive integer or "auto"; at the call, it is not below the target's layers.
        UnsupportedModelError: at the call: the target's layers are not one list of modules.

    Example:
        >>> specdec.generate(target, **inputs, drafter=EarlyExitDrafter(exit_layer=4))  # doctest: +SKIP
    """

    def __init__(self, exit_layer: int | Literal["auto"] = "auto", *, min_confidence: float = 0.0) -> None:
        super().__init__(min_confidence)
        if exit_layer != "auto" and (type(exit_layer) is not int or exit_layer < 1):
            raise OptionError(f"exit_layer must be a positive integer or 'auto', got {exit_layer!r}.")
        self.exit_layer = exit_layer

    def check(self, target: PreTrainedModel) -> None:
        depth = len(decoder_layers(target))
        least = 2 if self.exit_layer == "auto" else int(self.exit_layer) + 1
        if depth < least:
            raise OptionError(
                f"exit_layer={self.exit_layer!r} leaves nothing out: {type(target).__name__} has {depth} layers, of "
                f"which at most {depth - 1} can draft. Give a number from 1 to {depth - 1}, a quarter to start with."
            )

    def layers(self, state: DecodeState) -> Sequence[int]:
        if self.exit_layer != "auto":
            return range(self.exit_layer)
        assert state.target is not None
        return range(chosen_exit(state.target.model, _measured_tokens(state)))


def _measured_tokens(state: DecodeState) -> Tensor | None:
    """[1, T] the end of the longest prompt; None if it does not show what the model sees."""
    longest = max(state.host_tokens, key=len)
    assert state.target is not None
    if state.target.attends_to_encoder or len(longest) < _LEAST:
        return None
    return torch.tensor([longest[-_MEASURED:]], device=state.device)


@torch.inference_mode()
def chosen_exit(model: PreTrainedModel, tokens: Tensor | None) -> int:
    """The number of first layers with the largest expected speed-up over these tokens [1, T]; a quarter if None."""
    layers = decoder_layers(model)
    depth = len(layers)
    if tokens is None:
        return max(1, depth // 4)
    candidates = sorted({max(1, depth // share) for share in _SHARES} - {depth})
    wanted = choices_along(model, tokens)
    best, most = candidates[0], 0.0
    for candidate in candidates:
        agrees = float((choices_along(with_layers(model, range(candidate)), tokens) == wanted).double().mean())
        speedup = expected_speedup(agrees, cost_share(model, layers, range(candidate)))
        if speedup > most:
            best, most = candidate, speedup
    return best


def cost_share(model: PreTrainedModel, layers: nn.ModuleList, kept: Sequence[int]) -> float:
    """The weights that a forward through the kept layers and the head reads, as a part of all such weights.

    Example:
        Of 12 layers, with a head of the size of two layers, 4 layers cost (4 + 2) / (12 + 2) of a forward.
    """
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    outputs = model.get_output_embeddings()
    head = 0 if outputs is None else sum(p.numel() for p in outputs.parameters())
    return (sum(sizes[k] for k in kept) + head) / (sum(sizes) + head)


def expected_speedup(acceptance: float, cost: float, most: int = _DEPTH) -> float:
    """The best factor that drafting chains of up to `most` tokens gains, by Theorem 3.8 of arXiv:2211.17192.

    Args:
        acceptance: probability that a drafted token is accepted.
        cost: a draft forward's time as a part of a target forward's.

    Example:
        >>> round(expected_speedup(0.8, 0.1), 2)
        2.38
    """
    best = 1.0
    for drafted in range(1, most + 1):
        expected = sum(acceptance**i for i in range(drafted + 1))
        best = max(best, expected / (drafted * cost + 1))
    return best
