"""A drafter for tests: trees of any shape, of which some path is right by construction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import specdec


class ScriptedTreeDrafter(specdec.Drafter):
    """Proposes the given parents; at each parent one child, chosen at random, is the known continuation.

    Args:
        parents: of every node, -1 = child of the root, parents before children.
        answers: [B, L] int64, the whole output of each request, prompts without padding included.
        luck: probability that a sibling group contains the right token.
    """

    def __init__(self, parents: Sequence[int], answers: Sequence[Sequence[int]], vocab_size: int, luck: float) -> None:
        self.parents, self.answers, self.vocab_size, self.luck = list(parents), answers, vocab_size, luck

    def start(self, state: specdec.DecodeState) -> specdec.DraftSession:
        return _Session(self)


class _Session(specdec.DraftSession):
    def __init__(self, drafter: ScriptedTreeDrafter) -> None:
        self.drafter = drafter
        self.random = torch.Generator().manual_seed(0)
        self.widths: list[int] = []

    def propose(self, state: specdec.DecodeState, limit: Sequence[int]) -> specdec.Proposal:
        parents = self.drafter.parents
        depth = [0] * len(parents)
        rows: list[list[int]] = []
        for tokens, request in zip(state.host_tokens, state.host_requests, strict=True):
            answer = self.drafter.answers[request][len(tokens) :]
            right = {-1}  # nodes on the right path
            row: list[int] = []
            for node, parent in enumerate(parents):
                depth[node] = 1 if parent < 0 else depth[parent] + 1
                siblings = [n for n, p in enumerate(parents) if p == parent]
                token = int(torch.randint(2, self.drafter.vocab_size, (), generator=self.random))
                is_chosen = node == siblings[len(rows) % len(siblings)]
                lucky = float(torch.rand((), generator=self.random)) < self.drafter.luck
                if parent in right and is_chosen and lucky and depth[node] <= len(answer):
                    token = answer[depth[node] - 1]
                    right.add(node)
                row.append(token)
            rows.append(row)
        room = torch.tensor(limit)[:, None]
        valid = torch.tensor(depth) <= room
        return specdec.Proposal(
            tokens=torch.tensor(rows),
            parents=torch.tensor(parents).expand(len(rows), -1),
            valid=valid,
            depth=min(max(depth), max(limit)),
            width=max(parents.count(p) for p in set(parents)),
        )


def unpadded(sequences: Tensor, mask: Tensor) -> list[list[int]]:
    """The tokens of each row without its left padding."""
    padding = (mask == 0).sum(1).tolist()
    return [row[skip:] for row, skip in zip(sequences.tolist(), padding, strict=True)]
