"""Integer bookkeeping shared by the acceptance rules: who is whose child, and the walk from the root.

Nodes are shifted by one so that the root has index 0 and node i of a proposal has index i + 1: "slot".
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.types import Proposal


def children_table(proposal: Proposal) -> Tensor:
    """Children by parent slot and sibling rank: [B, N + 1, width] int64 node indices, -1 = none."""
    batch_size, num_nodes = proposal.tokens.shape
    device = proposal.tokens.device
    nodes = torch.arange(num_nodes, device=device)
    elder = (proposal.parents[:, :, None] == proposal.parents[:, None, :]) & proposal.valid[:, None, :]
    rank = (elder & (nodes[None, :] < nodes[:, None])).sum(-1)  # [B, N] earlier siblings of each node
    # Invalid nodes go to a row of their own, which is cut off.
    slot = torch.where(proposal.valid, proposal.parents + 1, num_nodes + 1)
    table = torch.full((batch_size, (num_nodes + 2) * proposal.width), -1, device=device)
    position = slot * proposal.width + rank.clamp(max=proposal.width - 1)
    table = table.scatter(1, position, nodes.expand(batch_size, num_nodes))
    return table.view(batch_size, num_nodes + 2, proposal.width)[:, :-1]


def accepted_prefix(accepted: Tensor) -> tuple[Tensor, Tensor]:
    """The walk along a chain: accepted [B, N] bool -> (path [B, N], -1 padded; num_accepted [B])."""
    num_accepted = accepted.to(torch.int64).cumprod(1).sum(1)
    steps = torch.arange(accepted.shape[1], device=accepted.device)
    return torch.where(steps < num_accepted[:, None], steps, -1), num_accepted


def walk(children: Tensor, accepted: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Follows the first accepted child from the root.

    Args:
        children: [B, N + 1, width] int64 from `children_table`.
        accepted: [B, N] bool, would the node be accepted if the walk came to its turn.
        depth: the longest possible path.

    Returns:
        path [B, depth] of node indices, -1 padded; num_accepted [B]; end [B], the last slot reached.
    """
    batch_size = children.shape[0]
    slot = torch.zeros(batch_size, dtype=torch.int64, device=children.device)
    if depth == 0:
        return slot.new_empty(batch_size, 0), slot, slot
    taken = accepted.gather(1, children.clamp(min=0).flatten(1)).view(children.shape) & (children >= 0)
    first = taken.to(torch.int8).argmax(-1, keepdim=True)  # the eldest accepted
    heir = torch.where(taken.any(-1), children.gather(2, first).squeeze(2), -1)  # [B, N + 1]
    alive = torch.ones_like(slot, dtype=torch.bool)
    path = []
    for _ in range(depth):
        node = heir.gather(1, slot[:, None]).squeeze(1)
        alive = alive & (node >= 0)
        path.append(torch.where(alive, node, -1))
        slot = torch.where(alive, node + 1, slot)
    stacked = torch.stack(path, dim=1)
    return stacked, (stacked >= 0).sum(1), slot
