"""A drafted token that its own q could not draw counts as absent, and so does what follows it in a chain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from specdec.types import Proposal
from specdec.verify import KeyedCoins, block, rejection

VOCAB, LENGTH, ROWS = 5, 4, 64


@pytest.mark.parametrize("place", range(LENGTH))
@pytest.mark.parametrize("rule", [rejection, block])
def test_a_chain_ends_before_it(rule: Any, place: int) -> None:
    """The same as if the chain had been that short: neither accepted for sure (p / 0), nor a look at what is behind."""
    random = torch.Generator().manual_seed(place)
    p = torch.rand(ROWS, LENGTH + 1, VOCAB, generator=random, dtype=torch.float64).softmax(-1)
    tokens = torch.randint(VOCAB, (ROWS, LENGTH), generator=random)
    # Such a q that a token is accepted more often than not, and the rest of the chain is worth a look.
    q = (p[:, :-1] + 0.1 * torch.rand(ROWS, LENGTH, VOCAB, generator=random, dtype=torch.float64)) / 1.2
    q[:, place].scatter_(1, tokens[:, place, None], 0.0)
    q = q / q.sum(-1, keepdim=True)
    proposal = Proposal.chain(tokens, q=q)
    short = replace(proposal, valid=torch.arange(LENGTH).expand(ROWS, -1) < place, is_whole=False)
    outcomes = []
    for one in (proposal, short):
        rows = torch.arange(ROWS)
        outcomes.append(rule(p, one, KeyedCoins(3, rows, rows)))
    assert torch.equal(outcomes[0].num_accepted, outcomes[1].num_accepted)
    assert torch.equal(outcomes[0].next_token, outcomes[1].next_token)
    assert int(outcomes[0].num_accepted.max()) == place
