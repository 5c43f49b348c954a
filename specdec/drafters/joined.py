"""Several drafters' proposals made one, and what became of it told in terms of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec.drafters.trie import Trie
from specdec.errors import DrafterError
from specdec.types import Acceptance, Law, Proposal, int_tensor


@dataclass
class Share:
    """One drafter's proposal of a round.

    Args:
        proposal: as it was made, with at least one node.
        trees: its valid nodes on the host, a row each; None where nobody has asked.
        nodes: of each row, its nodes' places in `trees`.
    """

    proposal: Proposal
    trees: list[Trie] | None = None
    nodes: list[dict[int, int]] = field(default_factory=list)

    def read(self, limit: Sequence[int]) -> list[Trie]:
        """Brings the tokens to the host, as far as each row's limit."""
        if self.trees is None:
            proposal = self.proposal
            parents = None if proposal.is_chain else proposal.parents.tolist()
            self.trees = []
            for row, (tokens, valid) in enumerate(zip(proposal.tokens.tolist(), proposal.valid.tolist(), strict=True)):
                above = range(-1, len(tokens) - 1) if parents is None else parents[row]
                tree, nodes = _tree(tokens, above, valid, limit[row])
                self.trees.append(tree)
                self.nodes.append(nodes)
        return self.trees

    def size(self, row: int) -> int:
        """Nodes of the row."""
        return 0 if self.trees is None else len(self.trees[row])

    def acceptance(self, committed: Sequence[Sequence[int]], device: torch.device) -> tuple[Acceptance, list[int]]:
        """What was accepted of this proposal, whoever drafted the tokens; also its counts on the host.

        Args:
            committed: each row's accepted tokens, then the next one.
        """
        assert self.trees is not None
        paths, following = [], []
        for tree, nodes, tokens in zip(self.trees, self.nodes, committed, strict=True):
            own = {place: node for node, place in reversed(nodes.items())}
            path = [own[place] for place in tree.follow(tokens[:-1])]
            paths.append(path + [-1] * (self.proposal.depth - len(path)))
            following.append(tokens[len(path)])
        counts = [sum(node >= 0 for node in path) for path in paths]
        accepted = Acceptance(int_tensor(paths, device), int_tensor(counts, device), int_tensor(following, device))
        return accepted, counts

    def right(self, row: int, committed: Sequence[int], expected: float) -> float:
        """How many of the row's tokens are known to be right; `expected` at least where the text ends before them."""
        assert self.trees is not None
        tree = self.trees[row]
        path = tree.follow(committed)
        is_cut = len(path) == len(committed) and path[-1] in tree.parents
        return max(len(path), expected) if is_cut else len(path)

    def choices(self, merged: Tensor, places: Sequence[dict[int, int]]) -> Tensor:
        """[B, N + 1] the target's choices behind this proposal's nodes, -1 where they were not verified.

        Args:
            merged: [B, M + 1] those of the proposal that was verified.
            places: of each row, where the nodes of its tree stand in that proposal.
        """
        rows = []
        for nodes, moved in zip(self.nodes, places, strict=True):
            row = [0] + [-1] * self.proposal.num_nodes
            for node, place in nodes.items():
                row[node + 1] = moved[place] + 1 if place in moved else -1
            rows.append(row)
        index = int_tensor(rows, merged.device)
        return torch.where(index >= 0, merged.gather(1, index.clamp(min=0)), -1)


def _tree(
    tokens: Sequence[int], parents: Sequence[int], valid: Sequence[bool], limit: int
) -> tuple[Trie, dict[int, int]]:
    """The valid nodes as a trie, and the place of each in it."""
    tree = Trie()
    places = {-1: -1}
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        if not -1 <= parent < node:
            raise DrafterError(
                f"a drafter of a mix gave node {node} the parent {parent}: parents come before children."
            )
        if valid[node] and parent in places and (parent < 0 or tree.depths[places[parent]] < limit):
            places[node] = tree.child(places[parent], token)
    del places[-1]
    return tree, places


def merge(target: Trie, tree: Trie) -> dict[int, int]:
    """Adds a tree to another one; returns where its nodes stand there."""
    places = {-1: -1}
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        places[node] = target.child(places[parent], token)
    del places[-1]
    return places


def beside(sampled: Proposal, given: Proposal, uses: Sequence[bool], vocab_size: int) -> Proposal:
    """Rows that use a sampled proposal, and rows that use one without q.

    A given token is one that was drawn from a distribution with one outcome: the same acceptance probability, p(x) / 1,
    and the same residual, p without x, under every law, as long as siblings differ.

    Args:
        uses: of each row, whether it uses `sampled`.
        vocab_size: the target's.
    """
    assert sampled.q is not None and sampled.q_index is not None
    device = sampled.tokens.device
    most = max(sampled.num_nodes, given.num_nodes)
    row = torch.tensor(uses, device=device)[:, None]

    def both(one: Tensor, other: Tensor, filler: int) -> Tensor:
        one, other = (F.pad(x, (0, most - x.shape[1]), value=filler) for x in (one, other))
        return torch.where(row, one, other)

    tokens = both(sampled.tokens, given.tokens, 0)
    valid = both(sampled.valid.to(torch.int64), given.valid.to(torch.int64), 0).bool()
    nodes = torch.arange(given.num_nodes, device=device).expand_as(given.tokens)
    is_chain = sampled.is_chain and given.is_chain
    filled = torch.arange(-1, most - 1, device=device).expand_as(tokens)
    parents = filled if is_chain else both(sampled.parents, given.parents, -1)
    size = max(sampled.q.shape[2], vocab_size)  # tokens that the draft's vocabulary lacks
    parts = max(sampled.q.shape[1], given.num_nodes)
    q = F.pad(sampled.q, (0, size - sampled.q.shape[2], 0, parts - sampled.q.shape[1]))
    certain = torch.zeros_like(q[:, : given.num_nodes]).scatter(2, given.tokens.clamp(0, size - 1)[:, :, None], 1.0)
    certain = F.pad(certain, (0, 0, 0, parts - given.num_nodes))
    return Proposal(
        tokens,
        parents,
        valid,
        depth=max(sampled.depth, given.depth),
        width=max(sampled.width, given.width),
        q=torch.where(row[:, :, None], q, certain),
        q_index=both(sampled.q_index, nodes, 0),
        law=sampled.law if sampled.law is not Law.GIVEN else Law.IID,
    )
