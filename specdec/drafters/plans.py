"""How a tree grows by a depth: which children its leaves get, which of them are fed, which are proposed.

A plan is one round's. All its tensors have fixed shapes, with rows that differ in what is valid, so that nothing waits
for the device.

Terms: a *candidate* is a drafted token, numbered as it was drafted; of these some are *fed* to the draft, and their
children are the next depth's candidates; the proposal's *nodes* are chosen from all candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from specdec.drafters.shapes import Shape
from specdec.state import DecodeState
from specdec.types import Law

NEVER = float("-inf")  # the value of a candidate that is not there


@dataclass(frozen=True, slots=True)
class Candidates:
    """One depth of a row's tree.

    Args:
        tokens: [B, C] int64.
        parents: [B, C] int64, which of the fed ones of the depth above is each one's parent.
        values: [B, C] float32, log of the confidence in the whole path; NEVER where there is no such node.
        fed: [B, F] int64, those that are fed and get children; empty at the last depth.
    """

    tokens: Tensor
    parents: Tensor
    values: Tensor
    fed: Tensor

    def above(self, floor: float) -> Candidates:
        """Without those of a lower value; NaN stays, for the loop to see."""
        return replace(self, values=torch.where(self.values < floor, NEVER, self.values))


class Plan(Protocol):
    """Settings of one round's growth, and what it keeps meanwhile."""

    depth: int  # of the tree
    width: int  # most children of one parent, a bound

    def children(self, scores: Tensor, values: Tensor, depth: int) -> Candidates:
        """The candidates of a depth.

        Args:
            scores: [B, F, V] of the draft behind the fed ones of the depth above; at first of the root.
            values: [B, F] theirs.
        """
        ...

    def nodes(self, values: Tensor) -> Tensor | None:
        """Which of all candidates are proposed: [B, N] int64 of values [B, C], parents first; None = all of them."""
        ...

    def drawn(self, depth: int) -> tuple[Law, Tensor | None, Tensor | None]:
        """Law, q [B, M, V] and q_index [B, N] of all candidates down to a depth, where they were sampled."""
        ...


class BestChildren:
    """Shared by plans whose children are the draft's likeliest tokens: fixed, not sampled, so that q is None."""

    def drawn(self, depth: int) -> tuple[Law, Tensor | None, Tensor | None]:
        return Law.GIVEN, None, None


def likeliest(scores: Tensor, values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Tokens [B, F, width] of the likeliest children, and the values of their paths."""
    best, tokens = scores.topk(width, dim=-1)
    # Not above 0 by rounding either: a child's value must never exceed its parent's.
    logprobs = (best - scores.logsumexp(-1, keepdim=True)).clamp(max=0.0)
    return tokens, values[:, :, None] + torch.where(best == NEVER, NEVER, logprobs)


class StaticPlan(BestChildren):
    """A given shape, filled with the likeliest tokens of each parent.

    Args:
        limit: [B] depths of the rows.
    """

    def __init__(self, shape: Shape, limit: Sequence[int], device: torch.device) -> None:
        self.shape, self.depth, self.width = shape, shape.depth, shape.width
        self.device = device
        self.limit = torch.tensor(limit, device=device)[:, None]
        self.inner = [self._inner(d) for d in range(self.depth + 1)]

    def _inner(self, depth: int) -> list[int]:
        """Nodes of a depth that have children."""
        return [node for node in self.shape.level(depth) if self.shape.num_children[node + 1]]

    def layout(self, depth: int) -> tuple[list[int], Tensor, Tensor]:
        """Nodes of a depth, their parents' places among the fed ones above, and places of those that are fed."""
        nodes, above = self.shape.level(depth), self.inner[depth - 1]
        place = {node: i for i, node in enumerate(above)}
        parents = torch.tensor([place[self.shape.parents[node]] for node in nodes], device=self.device)
        fed = torch.tensor([nodes.index(n) for n in self.inner[depth]], dtype=torch.int64, device=self.device)
        return nodes, parents, fed

    def children(self, scores: Tensor, values: Tensor, depth: int) -> Candidates:
        nodes, parents, fed = self.layout(depth)
        ranks = torch.tensor([self.shape.ranks[node] for node in nodes], device=self.device)
        tokens, worth = likeliest(scores, values, int(ranks.max()) + 1)
        worth = worth[:, parents, ranks].masked_fill(self.limit < depth, NEVER)
        rows = len(scores)
        return Candidates(tokens[:, parents, ranks], parents.expand(rows, -1), worth, fed.expand(rows, -1))

    def nodes(self, values: Tensor) -> Tensor | None:
        return None


class SampledPlan(StaticPlan):
    """A given shape, whose children are drawn from their parent's distribution q, each by a coin of its own.

    Which nodes are there follows from the shape, the limits and the distributions at their ancestors, never from
    their own tokens or later ones; so q may be given.

    Args:
        law: IID, or WITHOUT_REPLACEMENT.
    """

    def __init__(self, shape: Shape, limit: Sequence[int], state: DecodeState, law: Law) -> None:
        super().__init__(shape, limit, state.device)
        self._state, self._law = state, law
        self._q: list[Tensor] = []  # [B, F, V] of each depth

    def children(self, scores: Tensor, values: Tensor, depth: int) -> Candidates:
        nodes, parents, fed = self.layout(depth)
        probs = scores.softmax(-1)
        self._q.append(probs)
        tokens: list[Tensor] = []
        weights = probs  # what the elder siblings have left
        for node, parent in zip(nodes, parents.tolist(), strict=True):
            token = self._state.coins().draft(weights[:, parent], node=node)
            tokens.append(token)
            if self._law is Law.WITHOUT_REPLACEMENT:
                weights = weights.clone()
                weights[:, parent] = weights[:, parent].scatter(1, token.clamp(min=0)[:, None], 0.0)
        drawn = torch.stack(tokens, 1)
        # Confidence by the largest probability, which is known before anything is drawn.
        worth = (values + probs.amax(-1).log())[:, parents].masked_fill(self.limit < depth, NEVER)
        # Beyond q's support, or where processors forbid all that the draft knows, there is nobody to draw. Another q
        # that is no distribution is left for the loop to see.
        is_sane = torch.isfinite(probs).all(-1) | (scores == NEVER).all(-1)
        worth = torch.where((drawn < 0) & is_sane[:, parents], NEVER, worth)
        rows = len(scores)
        return Candidates(drawn, parents.expand(rows, -1), worth, fed.expand(rows, -1))

    def drawn(self, depth: int) -> tuple[Law, Tensor | None, Tensor | None]:
        index, first = [], 0
        for d, q in enumerate(self._q[:depth], start=1):
            index.append(self.layout(d)[1] + first)
            first += q.shape[1]
        return self._law, torch.cat(self._q[:depth], 1), torch.cat(index).expand(len(self._q[0]), -1)


class DynamicPlan(BestChildren):
    """The most probable paths, as the draft sees them.

    With `expand`, EAGLE-2's trees (arXiv:2406.16858, section 4): of each depth the `expand` best paths get `branch`
    children each; of all candidates the best `num_nodes` are proposed. Without, best-first expansion under a node
    budget as in DDTree (arXiv:2604.12989): every candidate of a depth that is among the best `num_nodes` so far gets
    children. No other can have a descendant that is kept, as values fall along a path and better candidates only push
    it further back; so the tree is the best of its size and depth among those with at most `branch` children a node.
    It costs a host read a depth, for the number of them.

    Args:
        limit: [B] depths of the rows.
    """

    def __init__(
        self, num_nodes: int, expand: int | None, branch: int, limit: Sequence[int], depth: int, device: torch.device
    ) -> None:
        self.depth, self.width = depth, branch
        self._num_nodes, self._expand = num_nodes, expand
        self._limit = torch.tensor(limit, device=device)[:, None]
        self._best: Tensor | None = None  # [B, <= num_nodes] the best values so far

    def children(self, scores: Tensor, values: Tensor, depth: int) -> Candidates:
        rows, num_parents = values.shape
        width = min(self.width, scores.shape[-1])
        tokens, worth = likeliest(scores, values, width)
        worth = worth.flatten(1).masked_fill(self._limit < depth, NEVER)
        parents = torch.arange(num_parents, device=values.device).repeat_interleave(width).expand(rows, -1)
        fed = parents[:, :0] if depth == self.depth else self._fed(worth)
        return Candidates(tokens.flatten(1), parents, worth, fed)

    def _fed(self, values: Tensor) -> Tensor:
        """Which of the candidates of a depth [B, C] get children: [B, F]."""
        size = values.shape[1]
        if self._expand is not None:
            return values.topk(min(self._expand, size)).indices
        every = values if self._best is None else torch.cat([self._best, values], 1)
        self._best = every.topk(min(self._num_nodes, every.shape[1])).values
        # A tie with the last of the best may be expanded in vain.
        among = (values >= self._best[:, -1:]) & (values > NEVER)
        most = int(among.sum(1).max())  # a host read
        return values.topk(min(max(most, 1), size, self._num_nodes)).indices

    def nodes(self, values: Tensor) -> Tensor | None:
        if values.shape[1] <= self._num_nodes:
            return None
        # Stable: a child that is as good as its parent, but for rounding, stands behind it.
        order = values.argsort(dim=1, descending=True, stable=True)
        return order[:, : self._num_nodes].sort(1).values
