"""Each coin is what its whole name says: request, length, purpose and node; none of them may get lost on the way."""

from __future__ import annotations

import torch

from specdec.verify.coins import KeyedCoins, Purpose, uniform

SEED, NODES = 5, 20
REQUESTS, LENGTHS = torch.arange(6).repeat(9), torch.arange(3, 12).repeat_interleave(6)


def test_no_two_names_have_one_coin() -> None:
    """Not those of neighbours either: node 1 at length 7 is none of node 0 at length 8."""
    drawn = [KeyedCoins(seed, REQUESTS, LENGTHS)._coins(p, NODES) for seed in (SEED, SEED + 1) for p in Purpose]
    every = torch.stack(drawn).flatten()
    assert len(every.unique()) == len(every) == 2 * len(Purpose) * len(REQUESTS) * NODES


def test_what_each_door_draws_with() -> None:
    coins = KeyedCoins(SEED, REQUESTS, LENGTHS)

    def named(purpose: Purpose, node: int) -> torch.Tensor:
        return uniform(SEED, REQUESTS, LENGTHS, int(purpose), node)

    for node in range(NODES):
        accept = named(Purpose.ACCEPT, node)
        # A bound a little above the coin accepts it, the coin itself does not.
        for bound, answer in ((accept + 1e-12, True), (accept, False)):
            prob = torch.zeros(len(accept), NODES, dtype=torch.float64)
            prob[:, node] = bound
            assert coins.bernoulli(prob)[:, node].tolist() == [answer] * len(accept)
        drawn = coins.draft(torch.ones(len(accept), 1000), node)
        assert torch.equal(drawn, (named(Purpose.DRAFT, node) * 1000).long())
    chosen = coins.categorical(torch.ones(len(REQUESTS), 1000))
    assert torch.equal(chosen, (named(Purpose.NEXT_TOKEN, 0) * 1000).long())
