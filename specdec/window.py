"""What one forward sees: tokens, positions, slots and the attention mask. Pure functions of tensors.

The window of a row is its committed tokens that the cache does not cover yet ("pending"), then its
proposal. Prefill (everything pending), plain decoding (one pending token), a draft's catch-up and tree
verification are all this one case. Rows are aligned at the left and padded at the right; padding writes
to free slots that later windows overwrite, and no valid token ever attends to it.

Models that know one position for the whole batch, or take no mask per row, need rows that are level: their
slots are offset by what a shorter prompt lacks, as transformers' left padding does (`offsets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.types import Proposal


@dataclass(frozen=True, slots=True)
class Window:
    """Inputs of one forward over W tokens a row."""

    tokens: Tensor  # [B, W] int64
    positions: Tensor  # [B, W] int64
    slots: Tensor  # [B, W] int64, where the cache puts each token
    num_pending: Tensor  # [B] int64, the proposal starts after these
    mask: Tensor | None  # [B, W, extent] bool, True = may attend; None = causal, nothing hidden
    extent: int  # slots that attention covers
    level: bool  # all rows' slots are the last W of the extent
    ancestors: Tensor | None = None  # [B, N, N] bool of a tree
    num_nodes: int = 0
    is_kept: bool = False  # all of it will be committed, as the host knows
    columns: Tensor | None = None  # [B, extent] bool, False on an offset's slots; None where there is no offset


@dataclass(frozen=True, slots=True)
class Plan:
    """The tightest shape of a window, from lengths known on the host."""

    width: int
    extent: int
    masked: bool  # False where plain causal attention is right
    level: bool  # all rows have seen the same number of tokens
    is_kept: bool = False  # all of it will be committed


def plan(
    seen: Sequence[int],
    lengths: Sequence[int],
    proposal: Proposal,
    causal_at_end: bool = False,
    most: Sequence[int] | None = None,
) -> Plan:
    """Plans the window of rows of which the cache has seen `seen` of `lengths` tokens.

    Args:
        causal_at_end: attention without a mask lets the last query see every key, so that a chain behind a cache needs
            none where all rows are level.
        most: nodes that each row uses at most; all of them if omitted.
    """
    nodes = proposal.num_nodes
    pending = [n - s for n, s in zip(lengths, seen, strict=True)]
    width = max(p + min(nodes, m) for p, m in zip(pending, most or [nodes] * len(pending), strict=True))
    is_kept = nodes == 0 and min(pending) == max(pending)
    level = min(seen) == max(seen)
    masked = not (level and (width == 1 or (proposal.is_chain and (seen[0] == 0 or causal_at_end))))
    return Plan(width, max(seen) + width, masked, level, is_kept)


def build_window(
    committed: Tensor,
    lengths: Tensor,
    seen: Tensor,
    proposal: Proposal,
    plan: Plan,
    offsets: Tensor | None = None,
) -> Window:
    """Lays out the window of every row.

    Args:
        committed: [B, C] int64, tokens, right-padded; row b is valid up to lengths[b].
        lengths: [B] int64, committed tokens.
        seen: [B] int64, how many of them the cache covers.
        proposal: what to verify behind the pending tokens.
        plan: the window's shape. A wider one than `plan()` makes is padding; a fixed one compiles once.
        offsets: [B] int64, the slot of each row's first token where rows must be level; `lengths` and `seen` count
            from slot 0 then.
    """
    index = torch.arange(plan.width, device=committed.device)
    num_pending = lengths - seen  # [B]
    slots = seen[:, None] + index  # [B, W]
    places = slots if offsets is None else (slots - offsets[:, None]).clamp(min=0)
    tokens = committed.gather(1, places.clamp(max=committed.shape[1] - 1))
    is_pending = index < num_pending[:, None]
    last = lengths[:, None] - 1
    if proposal.num_nodes == 0:
        tokens, positions = torch.where(is_pending, tokens, 0), torch.minimum(slots, last).clamp(min=0)
        ancestors = None
    else:
        node = index - num_pending[:, None]  # [B, W], < 0 where pending
        node_index = node.clamp(0, proposal.num_nodes - 1)
        is_node = (node >= 0) & (node < proposal.num_nodes) & proposal.valid.gather(1, node_index)
        drafted = proposal.tokens.gather(1, node_index)
        tokens = torch.where(is_pending, tokens, torch.where(is_node, drafted, 0))
        ancestors = None if proposal.is_chain else ancestor_matrix(proposal)
        node_depth = node_index + 1 if ancestors is None else ancestors.sum(-1).gather(1, node_index)
        # Padding takes the position of the last committed token: always within the model's range.
        positions = torch.where(is_node, last + node_depth, torch.minimum(slots, last))
    mask = columns = None
    if offsets is not None:
        positions = places
        columns = torch.arange(plan.extent, device=slots.device) >= offsets[:, None]
    if plan.masked:
        keys = torch.arange(plan.extent, device=slots.device)[None]
        mask = _mask(slots, lengths, ancestors, keys)
    return Window(
        tokens,
        positions,
        slots,
        num_pending,
        mask,
        plan.extent,
        plan.level,
        ancestors,
        proposal.num_nodes,
        plan.is_kept,
        columns,
    )


def ancestor_matrix(proposal: Proposal) -> Tensor:
    """[B, N, N] bool: does node i descend from node j, or is it j."""
    batch_size, num_nodes = proposal.tokens.shape
    eye = torch.eye(num_nodes, dtype=torch.bool, device=proposal.tokens.device)
    nodes = torch.arange(num_nodes, device=proposal.tokens.device)
    reach = eye | (proposal.parents[:, :, None] == nodes)  # [B, N, N]
    hops = 1
    while hops < proposal.depth:  # squaring doubles the number of generations covered
        as_float = reach.to(torch.float32)
        reach = (as_float @ as_float) > 0
        hops *= 2
    return reach.expand(batch_size, num_nodes, num_nodes)


def sliding_mask(window: Window, keys: Tensor, size: int) -> Tensor:
    """[B, W, K] bool: what layers may attend to that look at `size` tokens, the query's own included.

    Distances are those of positions, which a tree's slots are not.

    Args:
        keys: [B or 1, K] int64, the slot that each key comes from; negative where there is none.
    """
    first = (window.slots[:, 0] + window.num_pending)[:, None]  # [B, 1] slot of node 0
    positions, queries = keys.expand(len(first), -1), window.slots
    if window.ancestors is not None:
        depth = window.ancestors.sum(-1)  # [B, N]
        last = depth.shape[1] - 1
        node, query = keys - first, window.slots - first
        positions = torch.where(node < 0, keys, first - 1 + depth.gather(1, node.clamp(0, last)))
        queries = torch.where(query < 0, window.slots, first - 1 + depth.gather(1, query.clamp(0, last)))
    near = queries[:, :, None] - positions[:, None, :] < size
    seen = _mask(window.slots, first[:, 0], window.ancestors, keys)
    return seen & near & (keys >= 0)[:, None, :]


def _mask(slots: Tensor, lengths: Tensor, ancestors: Tensor | None, key: Tensor) -> Tensor:
    """[B, W, K] bool. A chain sees every slot up to its own; a tree node its ancestors' slots only.

    Args:
        slots: [B, W] of the queries.
        lengths: [B] committed tokens; the slot of node 0.
        key: [B or 1, K] slots of the keys.
    """
    causal = key[:, None, :] <= slots[:, :, None]
    if ancestors is None:
        return causal
    num_nodes = ancestors.shape[1]
    first = lengths[:, None]  # [B, 1]
    node = slots - first  # [B, W]
    key_node = key - first  # [B, K]
    rows = node.clamp(0, num_nodes - 1)[:, :, None].expand(-1, -1, num_nodes)
    columns = key_node.clamp(0, num_nodes - 1)[:, None, :].expand(-1, slots.shape[1], -1)
    related = ancestors.gather(1, rows).gather(2, columns)
    in_tree = (key_node >= 0)[:, None, :]
    is_self = key[:, None, :] == slots[:, :, None]
    is_node = ((node >= 0) & (node < num_nodes))[:, :, None]
    return torch.where(in_tree & is_node, (related & causal) | is_self, causal)


def to_additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, W, K] bool -> [B, 1, W, K] float mask, as both eager and sdpa attention take it."""
    zero = torch.zeros((), dtype=dtype, device=mask.device)
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    return torch.where(mask, zero, hidden)[:, None]
