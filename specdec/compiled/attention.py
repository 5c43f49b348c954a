"""The attention of a compiled graph: two products and a float32 softmax, which a compiler turns into plain loops.

torch's fused kernels are black boxes to it, and on a CPU slower for few queries (docs/performance.md). A copy of the
model takes this one by name; the user's model and its config are never touched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "specdec_graph"
# What models hand to an attention function that says nothing a mask with positions does not say.
_WITHOUT_EFFECT = frozenset(
    "sliding_window position_ids is_causal use_cache cache_position output_attentions output_hidden_states return_dict "
    "layer_idx attention_mask past_key_values position_embeddings".split()
)


class NotCapturable(Exception):
    """The model cannot be made a graph; says why."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' interface of an attention function.

    Args:
        query: [B, H, W, D].
        key, value: [B, G, n, D], G a divisor of H.
        attention_mask: [B, 1, W, n], added to the scores.
        softcap: of the scores, by tanh (Gemma 2).
        s_aux: [H] a sink's score for each head, which takes weight and gives nothing (GPT-OSS).

    Raises:
        NotCapturable: an argument that it does not know.
    """
    unknown = sorted(n for n, v in kwargs.items() if v is not None and v is not False and n not in _WITHOUT_EFFECT)
    if unknown or attention_mask is None:
        raise NotCapturable(f"its attention takes {', '.join(unknown) or 'no mask'}, which a graph does not know")
    batch_size, heads, width, dim = query.shape
    groups, num_slots, value_dim = *key.shape[1:3], value.shape[3]  # sizes named, so that none is inferred by division
    each = heads // groups
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    scale = dim**-0.5 if scaling is None else scaling
    # The queries that share a key's head stand side by side: no copy of keys and values for each.
    grouped = query.contiguous().view(batch_size, groups, each * width, dim)
    scores = _products(grouped, key.transpose(2, 3), wide) * scale
    scores = scores.view(batch_size, groups, each, width, num_slots)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + attention_mask[:, :, None].to(wide)
    if s_aux is None:
        weights = scores.softmax(-1)
    else:
        sink = s_aux.to(wide).view(1, groups, each, 1, 1).expand(batch_size, -1, -1, width, -1)
        weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
    weights = weights.view(batch_size, groups, each * width, num_slots)
    if _adds_wide(query):
        weights = weights.to(value.dtype)  # as fused kernels do
    out = _products(weights, value, wide)
    out = out.view(batch_size, groups, each, width, value_dim).permute(0, 3, 1, 2, 4)
    return out.to(query.dtype).reshape(batch_size, width, heads, value_dim), None


def _adds_wide(tensor: Tensor) -> bool:
    """A GPU multiplies half precision as it is, and adds in float32: a copy in float32 would be twice the reading."""
    return tensor.is_cuda and tensor.element_size() == 2


def _products(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """[B, G, M, K] times [B, G, K, N], in `wide`."""
    if not _adds_wide(a):
        return torch.matmul(a.to(wide), b.to(wide))
    batch_size, groups = a.shape[:2]
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=wide).unflatten(0, (batch_size, groups))


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
