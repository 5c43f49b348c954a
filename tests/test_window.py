"""Windows: positions follow depth, slots follow order, masks follow ancestry."""

from __future__ import annotations

import torch

from specdec.types import Proposal
from specdec.window import Plan, ancestor_matrix, build_window, plan


def tree(parents: list[int], batch_size: int = 1) -> Proposal:
    tokens = torch.arange(50, 50 + len(parents)).expand(batch_size, -1)
    width = max(parents.count(p) for p in set(parents))
    return Proposal(tokens, torch.tensor(parents).expand(batch_size, -1), tokens > 0, depth=len(parents), width=width)


def test_tree_positions_and_mask() -> None:
    """Siblings share a position, sit in slots of their own, and see their ancestors only."""
    committed = torch.tensor([[7, 8, 9, 0]])
    window = build_window(
        committed, torch.tensor([3]), torch.tensor([2]), tree([-1, -1, 0, 1]), Plan(5, 7, masked=True, level=False)
    )
    assert window.tokens.tolist() == [[9, 50, 51, 52, 53]]
    assert window.positions.tolist() == [[2, 3, 3, 4, 4]]
    assert window.slots.tolist() == [[2, 3, 4, 5, 6]]
    assert window.mask is not None
    assert window.mask[0].int().tolist() == [
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0],
        [1, 1, 1, 1, 0, 1, 0],
        [1, 1, 1, 0, 1, 0, 1],
    ]


def test_rows_of_different_lengths_and_padding() -> None:
    """Padding goes to free slots behind the row, at a position inside the model's range, unseen by the rest."""
    committed = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    proposal = Proposal.chain(torch.tensor([[11, 12], [21, 22]]), torch.tensor([[True, True], [True, False]]))
    window = build_window(
        committed, torch.tensor([4, 2]), torch.tensor([2, 1]), proposal, Plan(5, 7, masked=True, level=False)
    )
    assert window.tokens.tolist() == [[3, 4, 11, 12, 0], [6, 21, 0, 0, 0]]
    assert window.positions.tolist() == [[2, 3, 4, 5, 3], [1, 2, 1, 1, 1]]
    assert window.mask is not None
    assert window.mask[1, 1].int().tolist() == [1, 1, 1, 0, 0, 0, 0]


def test_ancestor_matrix_is_the_transitive_closure() -> None:
    parents = [-1, 0, 1, 2, 0, 4, 3, 6, 7]
    closure = ancestor_matrix(tree(parents))[0]
    for node in range(len(parents)):
        ancestors, up = {node}, parents[node]
        while up >= 0:
            ancestors.add(up)
            up = parents[up]
        assert set(closure[node].nonzero().flatten().tolist()) == ancestors


def test_plan_leaves_the_mask_out_where_causal_attention_is_right() -> None:
    """Prefill and plain steps of rows of one length keep the fast attention path."""
    nothing = Proposal.empty(2, torch.device("cpu"))
    chain = Proposal.chain(torch.zeros(2, 3, dtype=torch.int64))
    assert plan([0, 0], [5, 9], nothing) == Plan(9, 9, masked=False, level=True)
    assert plan([8, 8], [9, 9], nothing) == Plan(1, 9, masked=False, level=True, is_kept=True)
    assert plan([7, 8], [8, 9], nothing) == Plan(1, 9, masked=True, level=False, is_kept=True)
    assert plan([8, 8], [9, 9], chain) == Plan(4, 12, masked=True, level=True)
