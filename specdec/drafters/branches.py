"""The fed tokens of a tree that is still growing: their paths, and the windows that feed them."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.window import Window


class Branches:
    """Node i stands i slots behind the committed text; the nodes of one depth stand side by side.

    Args:
        batch_size: rows, all of which have as many nodes.

    Attributes:
        tokens: [B, M] int64.
        depths: of the M nodes, the same in all rows.
        path: [B, F] int64 for each depth: the tokens on the way to the newest depth's F nodes.
        ancestors: [B, M, M] bool, does node i descend from node j, or is it j.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.tokens = torch.zeros(batch_size, 0, dtype=torch.int64, device=device)
        self.depths: list[int] = []
        self.path: list[Tensor] = []
        self.ancestors = torch.zeros(batch_size, 0, 0, dtype=torch.bool, device=device)

    def __len__(self) -> int:
        return len(self.depths)

    def add(self, tokens: Tensor, parents: Tensor) -> None:
        """A new depth: tokens [B, F], and each one's parent [B, F] among those of the depth before."""
        batch_size, width = tokens.shape
        old = len(self)
        own = torch.eye(width, dtype=torch.bool, device=tokens.device).expand(batch_size, -1, -1)
        if old:
            first = self.depths.index(self.depths[-1])  # node of the depth before
            above = self.ancestors.gather(1, (parents + first)[:, :, None].expand(-1, -1, old))
            before = torch.cat([self.ancestors, self.ancestors.new_zeros(batch_size, old, width)], 2)
            self.ancestors = torch.cat([before, torch.cat([above, own], 2)], 1)
        else:
            self.ancestors = own
        self.path = [*(step.gather(1, parents) for step in self.path), tokens]
        self.depths = self.depths + [len(self.path)] * width
        self.tokens = torch.cat([self.tokens, tokens], 1)

    def window(self, lengths: Tensor, host_lengths: list[int], first: int) -> Window:
        """The window of the nodes from number `first` on; the cache holds those before it.

        Each sees the committed text, its ancestors and itself. `num_pending` says where node 0 stands, from which
        sliding windows count, and so it is negative here.

        Args:
            lengths: [B] committed tokens, all of them in the cache; host_lengths the same on the host.
        """
        steps = torch.arange(first, len(self), device=lengths.device)
        extent = max(host_lengths) + len(self)
        node = torch.arange(extent, device=lengths.device) - lengths[:, None]  # [B, extent] at each slot
        index = node.clamp(0, len(self) - 1)[:, None, :].expand(-1, len(steps), -1)
        kin = self.ancestors[:, first:].gather(2, index) & (node < len(self))[:, None]
        return Window(
            tokens=self.tokens[:, first:],
            positions=lengths[:, None] - 1 + torch.tensor(self.depths[first:], device=lengths.device),
            slots=lengths[:, None] + steps,
            num_pending=torch.full_like(lengths, -first),
            mask=(node < 0)[:, None] | kin,
            extent=extent,
            level=min(host_lengths) == max(host_lengths),
            ancestors=self.ancestors,
            num_nodes=len(self),
        )
