"""What a prompt brings to the forward besides token ids: embeddings, positions of its own, images, token types.

transformers hands such inputs through `prepare_inputs_for_generation`. Here they are laid out as the loop's
windows are (a row's first token first, padding dropped) and continued as transformers continues them: a new
token's position is the one before plus one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from specdec.window import Window


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an encoder made of its input, and what it was made of."""

    hidden: Tensor  # [B, S, H] the encoder's output
    mask: Tensor | None = None  # [B, S], 0 on padding
    inputs: Tensor | None = None  # token ids or features, for a draft's own encoder

    def select_rows(self, index: Tensor) -> Encoded:
        """The given rows."""
        return Encoded(*(None if t is None else t[index] for t in (self.hidden, self.mask, self.inputs)))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class PromptInputs:
    """Inputs that stand beside the token ids; rows aligned at the left, T the longest row.

    Args:
        lengths: [B] int64, tokens of each row's prompt.
        embeds: [B, T, H] embeddings that the prompt's forward takes in place of token ids.
        positions: [B, T] or [R, B, T] (multi-axis rotary embeddings) position ids.
        per_token: inputs with a value per token, by name, [B, T + 1]: behind a row's prompt stands what every new
            token takes.
        once: inputs of the prompt's forward only (pixel values), by name, as they are.
        always: inputs of every forward that are no tensors (switches), likewise.
        encoded: what the decoder of an encoder-decoder looks at.
    """

    lengths: Tensor
    embeds: Tensor | None = None
    positions: Tensor | None = None
    per_token: dict[str, Tensor] = field(default_factory=dict)
    once: dict[str, Any] = field(default_factory=dict)
    always: dict[str, Any] = field(default_factory=dict)
    encoded: Encoded | None = None

    @property
    def is_empty(self) -> bool:
        """Nothing but token ids at positions 0, 1, 2, ..."""
        others = (self.embeds, self.positions, self.encoded)
        return all(o is None for o in others) and not (self.per_token or self.once or self.always)

    def select_rows(self, index: Tensor) -> PromptInputs:
        """The given rows; the prompt's own forward is over by then."""
        positions = None if self.positions is None else self.positions[..., index, :]
        per_token = {name: values[index] for name, values in self.per_token.items()}
        encoded = None if self.encoded is None else self.encoded.select_rows(index)
        return PromptInputs(self.lengths[index], None, positions, per_token, {}, self.always, encoded)

    def inputs(self, window: Window, is_prompt: bool) -> dict[str, Any]:
        """The forward's arguments for a window; is_prompt: nothing has been fed before."""
        last = self.lengths[:, None] - 1
        known = torch.minimum(window.positions, last)  # a new token continues the prompt's last
        place = torch.minimum(window.positions, self.lengths[:, None])
        out: dict[str, Any] = {name: values.gather(1, place) for name, values in self.per_token.items()}
        out.update(self.always)
        if self.encoded is not None:
            out["encoder_outputs"] = BaseModelOutput(last_hidden_state=self.encoded.hidden)
            if self.encoded.mask is not None:
                out["attention_mask"] = self.encoded.mask
        if self.positions is not None:
            index = known.expand(*self.positions.shape[:-1], -1)
            out["position_ids"] = self.positions.gather(-1, index) + (window.positions - known)
        if is_prompt:
            out.update(self.once)
            if self.embeds is not None:
                out["input_ids"] = None
                out["inputs_embeds"] = self.embeds.gather(1, known[:, :, None].expand(-1, -1, self.embeds.shape[2]))
        return out


def left_aligned(values: Tensor, mask: Tensor, dim: int = 1) -> Tensor:
    """Moves each row's unmasked entries to the front, in order.

    Args:
        values: [..., B, T, ...] with T at `dim` and B before it.
        mask: [B, T] bool.

    Returns:
        The same shape, cut to the longest row; what stands behind a row's end repeats some of its entries.
    """
    order = torch.argsort(~mask, dim=1, stable=True)[:, : int(mask.sum(1).max())]  # [B, longest]
    shape = [1] * values.dim()
    shape[dim - 1], shape[dim] = order.shape
    index = order.view(shape).expand(*values.shape[:dim], order.shape[1], *values.shape[dim + 1 :])
    return values.gather(dim, index)
