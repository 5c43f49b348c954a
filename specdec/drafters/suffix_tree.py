"""Growing a tree of drafted tokens from counts of what followed: the likeliest nodes first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from specdec.types import Proposal, int_tensor

Place = TypeVar("Place")


@dataclass(slots=True)
class Branches:
    """One row's proposal: node i has tokens[i] and hangs below node parents[i] < i, or below the root (-1)."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    @property
    def is_chain(self) -> bool:
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    @property
    def depth(self) -> int:
        return max(self.depths, default=0)

    @property
    def width(self) -> int:
        return max((self.parents.count(p) for p in set(self.parents)), default=0)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of a row's proposal."""

    max_depth: int
    max_nodes: int
    min_score: float


def grow(
    followers: Callable[[Place], list[tuple[int, int, Any, Place]]], root: Place, bounds: Bounds, is_chain: bool
) -> Branches:
    """The best nodes of the tree of continuations (SuffixDecoding's greedy expansion, arXiv:2411.04975).

    A node's score is its parent's times its share of its parent's counts: an estimate of its acceptance. Nodes are
    taken best first, ties to what was seen last, until there are `max_nodes` or none scores `min_score`. Parents come
    before children and the likelier child before its siblings.

    Args:
        followers: what followed a place: token, count, recency and the place that it leads to; a new list.
        is_chain: only the likeliest child of each node.

    Example:
        >>> text = {0: [(5, 3, 1, 1), (6, 1, 2, 1)], 1: [(7, 2, 3, 2)], 2: []}
        >>> grow(text.get, 0, Bounds(2, 8, min_score=0.3), is_chain=False).tokens
        [5, 7]
    """
    found = Branches()
    # (-score, when it was seen, token, parent, depth, place); numbered, so that places are never compared
    waiting: list[tuple[float, int, int, int, int, Place]] = []
    pushed = 0

    def push(place: Place, parent: int, depth: int, score: float) -> None:
        nonlocal pushed
        children = followers(place)
        if not children:
            return
        share = score / sum(child[1] for child in children)
        if len(children) > 1:
            children.sort(key=lambda child: (child[1], child[2]), reverse=True)
        for token, count, _, to in children[: 1 if is_chain else bounds.max_nodes]:
            if share * count < bounds.min_score:
                break
            heapq.heappush(waiting, (-share * count, pushed, token, parent, depth, to))
            pushed += 1

    if bounds.max_depth > 0 and bounds.max_nodes > 0:
        push(root, -1, 1, 1.0)
    while waiting and len(found.tokens) < bounds.max_nodes:
        score, _, token, parent, depth, place = heapq.heappop(waiting)
        found.tokens.append(token)
        found.parents.append(parent)
        found.depths.append(depth)
        found.scores.append(-score)
        if depth < bounds.max_depth:
            push(place, len(found.tokens) - 1, depth + 1, -score)
    return found


def to_proposal(rows: Sequence[Branches], device: torch.device) -> Proposal:
    """One proposal of all rows, padded behind; a plain chain where no row branches, which is verified faster."""
    sizes = [len(row.tokens) for row in rows]
    size = max(sizes)
    if size == 0:
        return Proposal.empty(len(rows), device)
    tokens = int_tensor([row.tokens + [0] * (size - len(row.tokens)) for row in rows], device)
    valid = torch.arange(size, device=device) < int_tensor([[n] for n in sizes], device)
    if all(row.is_chain for row in rows):
        return Proposal.chain(tokens, None if min(sizes) == size else valid)
    parents = int_tensor([row.parents + [-1] * (size - len(row.parents)) for row in rows], device)
    depth, width = max(row.depth for row in rows), max(row.width for row in rows)
    return Proposal(tokens, parents, valid, depth, width, is_whole=min(sizes) == size)
