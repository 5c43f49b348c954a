"""What a session that observes "choices" is told: the target's argmax after the root and each node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import families
import pytest
import torch
from torch import Tensor

import specdec
from specdec.state import DecodeState
from specdec.types import Acceptance, Proposal

PARENTS = [-1, -1, 0, 0, 1]


class Watching(specdec.DraftSession):
    observes = "choices"

    def __init__(self, chain: bool) -> None:
        self.chain = chain
        self.seen: list[tuple[list[list[int]], Proposal, list[int], Tensor]] = []
        self.texts: list[list[int]] = []

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        self.texts = [list(row) for row in state.host_tokens]
        if min(limit) < 2:
            return Proposal.empty(state.batch_size, state.device)
        tokens = torch.tensor([[3, 5, 7, 9, 11]] * state.batch_size)
        if self.chain:
            return Proposal.chain(tokens[:, :2])
        valid = torch.ones_like(tokens, dtype=torch.bool)
        return Proposal(tokens, torch.tensor([PARENTS] * state.batch_size), valid, depth=2, width=2)

    def observe_choices(
        self, proposal: Proposal, acceptance: Acceptance, num_accepted: Sequence[int], choices: Tensor
    ) -> None:
        self.seen.append((self.texts, proposal, list(num_accepted), choices.clone()))


class Watcher(specdec.Drafter):
    def __init__(self, chain: bool) -> None:
        self.session = Watching(chain)

    def start(self, state: DecodeState) -> Watching:
        return self.session


def path_to(proposal: Proposal, row: int, node: int) -> list[int]:
    out: list[int] = []
    while node >= 0:
        out.insert(0, int(proposal.tokens[row, node]))
        node = int(proposal.parents[row, node])
    return out


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_choices_are_the_targets_argmax_behind_each_node(family: str, chain: bool) -> None:
    target: Any = families.family(family)
    ids = torch.arange(12).view(2, 6) + 20
    watcher = Watcher(chain)
    specdec.generate(target, ids, drafter=watcher, num_draft_tokens=2, max_new_tokens=8, do_sample=False)
    assert watcher.session.seen
    asked = 0
    for texts, proposal, _, choices in watcher.session.seen:
        for row, text in enumerate(texts):
            for node in range(-1, proposal.num_nodes):
                choice = int(choices[row, node + 1])
                if choice < 0:
                    continue
                asked += 1
                whole = torch.tensor([text + path_to(proposal, row, node)])
                assert choice == int(target(whole).logits[0, -1].argmax())
    rounds = len(watcher.session.seen)
    assert asked >= 2 * rounds * 2  # at least root and first child of each of two rows
