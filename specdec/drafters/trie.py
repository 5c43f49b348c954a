"""Draft trees built on the host: equal prefixes share nodes, so that no two siblings are the same token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from specdec.types import Proposal, int_tensor


class Trie:
    """One row's draft tokens, as branches from its last committed token (node -1).

    Siblings that were the same token would cost a node and lose whatever hangs on the second of them, since the walk
    of acceptance enters the first.

    Example:
        >>> trie = Trie()
        >>> trie.add([5, 7, 9], limit=8), trie.add([5, 7, 8], limit=8), trie.tokens
        ([0, 1, 2], [0, 1, 3], [5, 7, 9, 8])
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def child(self, parent: int, token: int) -> int:
        """The node of this token below `parent`, made if it is not there."""
        node = self._children.setdefault((parent, token), len(self.tokens))
        if node == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(1 if parent < 0 else self.depths[parent] + 1)
        return node

    def add(self, tokens: Iterable[int], limit: int, parent: int = -1) -> list[int]:
        """Adds a chain below `parent`, as far as depth `limit`; returns its nodes."""
        nodes: list[int] = []
        for token in tokens:
            if (0 if parent < 0 else self.depths[parent]) >= limit:
                break
            parent = self.child(parent, token)
            nodes.append(parent)
        return nodes

    def follow(self, tokens: Iterable[int]) -> list[int]:
        """The nodes that spell the beginning of `tokens`, as far as they are there."""
        nodes: list[int] = []
        node: int | None = -1
        for token in tokens:
            assert node is not None
            node = self._children.get((node, token))
            if node is None:
                break
            nodes.append(node)
        return nodes

    @property
    def width(self) -> int:
        """Most children of one node."""
        counts: dict[int, int] = {}
        for parent in self.parents:
            counts[parent] = counts.get(parent, 0) + 1
        return max(counts.values(), default=0)


def to_proposal(rows: Sequence[Trie], device: torch.device) -> Proposal:
    """The rows' trees as one proposal without q; shorter rows are padded."""
    most = max(map(len, rows))
    if most == 0:
        return Proposal.empty(len(rows), device)
    tokens = int_tensor([row.tokens + [0] * (most - len(row)) for row in rows], device)
    valid = torch.arange(most, device=device) < int_tensor([len(row) for row in rows], device)[:, None]
    width = max(row.width for row in rows)
    if width == 1:
        return Proposal.chain(tokens, None if min(map(len, rows)) == most else valid)
    parents = int_tensor([row.parents + [-1] * (most - len(row)) for row in rows], device)
    return Proposal(tokens, parents, valid, depth=max(max(row.depths, default=0) for row in rows), width=width)
