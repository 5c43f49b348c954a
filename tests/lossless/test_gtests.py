"""Sampled tests through the real coins, against what exact enumeration cannot see: how coins are made and named.

Joint tokens of 200,000 requests, one a row. Small biases are invisible at this size: those are the oracle's.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lossless.oracle import Rule, Tables, random_tables
from scipy.stats import chi2
from torch import Tensor

from specdec.types import Law, Proposal
from specdec.verify import KeyedCoins, Purpose, block, rejection
from specdec.verify.coins import inverse_cdf, uniform

NUM_SAMPLES = 200_000
ALPHA = 1e-6
SEED = 2024

# (draft tables, contexts [R] of the rows, their length, tokens that may be drafted, coins) -> proposal
Propose = Callable[[Tables, Tensor, int, int, KeyedCoins], Proposal]


def decode(
    p: Tables,
    q: Tables,
    length: int,
    rule: Rule,
    propose: Propose,
    coins: type[KeyedCoins],
    n: int = NUM_SAMPLES,
    seed: int = SEED,
    first: int = 0,
) -> Tensor:
    """`length` tokens of each of n requests, numbered from `first`, round after round: [n] their code in base V."""
    context = torch.zeros(n, dtype=torch.int64)
    reached = torch.zeros(n, dtype=torch.int64)
    for begun in range(length):
        rows = (reached == begun).nonzero().squeeze(1)
        dice = coins(seed, first + rows, torch.full_like(rows, begun))
        room = length - begun - 1
        proposal = propose(q, context[rows], begun, room, dice) if room else Proposal.empty(len(rows), rows.device)
        acceptance = rule(_at_nodes(p, context[rows], begun, proposal), proposal, dice)
        for step, token in enumerate(acceptance.tokens(proposal).unbind(1)):
            there = step <= acceptance.num_accepted
            context[rows] = torch.where(there, context[rows] * p.base + token, context[rows])
        reached[rows] += acceptance.num_accepted + 1
    assert (reached == length).all()
    return context


def _at_nodes(p: Tables, context: Tensor, begun: int, proposal: Proposal) -> Tensor:
    """p at the root and behind every node: [R, N + 1, V]; rows may have trees of different shapes."""
    contexts, depth = context[:, None], torch.zeros_like(context)[:, None]
    for node, token in enumerate(proposal.tokens.unbind(1)):
        parent = proposal.parents[:, node, None] + 1
        contexts = torch.cat([contexts, contexts.gather(1, parent) * p.base + token[:, None]], 1)
        depth = torch.cat([depth, depth.gather(1, parent) + 1], 1)
    out = p.levels[0].new_zeros(*contexts.shape, p.vocab_size)
    for d in range(proposal.depth + 1):
        here = depth == d
        out[here] = p.levels[begun + d][0, contexts[here]]
    return out


def p_value(codes: Tensor, law: Tensor) -> float:
    """G-test of outcomes [n] against their law [cells]; cells of fewer than five expected are merged."""
    observed = torch.bincount(codes, minlength=len(law)).double()
    expected = law * len(codes)
    rare = expected < 5
    observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    if expected[-1] < 5:  # the merged cell is rare itself: the smallest of the others takes it in
        smallest = int(expected[:-1].argmin())
        observed[smallest] += observed[-1]
        expected[smallest] += expected[-1]
        observed, expected = observed[:-1], expected[:-1]
    statistic = 2 * torch.xlogy(observed, observed / expected).sum()
    return float(chi2.sf(float(statistic), len(observed) - 1))


def sampled_chain(q: Tables, context: Tensor, begun: int, room: int, coins: KeyedCoins) -> Proposal:
    """Two tokens from q."""
    tokens: list[Tensor] = []
    laws: list[Tensor] = []
    for node in range(min(2, room)):
        laws.append(q.levels[begun + node][0, context])
        tokens.append(coins.draft(laws[-1], node))
        context = context * q.base + tokens[-1]
    return Proposal.chain(torch.stack(tokens, 1), q=torch.stack(laws, 1))


def pruned_top_k(q: Tables, context: Tensor, begun: int, room: int, coins: KeyedCoins) -> Proposal:
    """The four most likely of three children and two grandchildren each: a tree whose shape depends on q."""
    first, tokens = q.levels[begun][0, context].topk(3, dim=1)
    parents = torch.full_like(tokens, -1)
    scores = first
    if room > 1:
        behind = context[:, None] * q.base + tokens
        second, more = q.levels[begun + 1][0, behind].topk(2, dim=2)
        scores = torch.cat([first, (first[:, :, None] * second).flatten(1)], 1)
        tokens = torch.cat([tokens, more.flatten(1)], 1)
        parents = torch.cat([parents, torch.tensor([0, 0, 1, 1, 2, 2]).expand(len(tokens), -1)], 1)
    # A node scores no more than its parent, so that the parent is kept too, and sorting leaves it in front.
    kept = scores.argsort(dim=1, descending=True, stable=True)[:, :4]
    parents = parents.gather(1, kept)
    renamed = (kept[:, None, :] == parents[:, :, None]).int().argmax(2)
    return Proposal(
        tokens=tokens.gather(1, kept),
        parents=torch.where(parents < 0, -1, renamed),
        valid=torch.ones_like(kept, dtype=torch.bool),
        depth=min(2, room),
        width=3,
    )


def _siblings(q: Tables, context: Tensor, begun: int, coins: KeyedCoins, keep: int | None = None) -> Proposal:
    """Three tokens drawn from q; `keep` leaves the likeliest of them, which is biased."""
    law = q.levels[begun][0, context]
    tokens = torch.stack([coins.draft(law, node) for node in range(3)], 1)
    if keep is not None:
        tokens = tokens.gather(1, law.gather(1, tokens).argsort(dim=1, descending=True)[:, :keep])
    return Proposal(
        tokens=tokens,
        parents=torch.full_like(tokens, -1),
        valid=torch.ones_like(tokens, dtype=torch.bool),
        depth=1,
        width=tokens.shape[1],
        q=law[:, None],
        q_index=torch.zeros_like(tokens),
        law=Law.IID,
    )


def iid_siblings(q: Tables, context: Tensor, begun: int, room: int, coins: KeyedCoins) -> Proposal:
    return _siblings(q, context, begun, coins)


def pruned_samples(q: Tables, context: Tensor, begun: int, room: int, coins: KeyedCoins) -> Proposal:
    return _siblings(q, context, begun, coins, keep=2)


class PositionCoins(KeyedCoins):
    """Named by absolute position alone: a rejected tail's coins are drawn again in the next round."""

    def _at(self, purpose: Purpose, node: int) -> Tensor:
        return uniform(self.seed, self.requests, self.lengths + node, int(purpose))

    def bernoulli(self, prob: Tensor) -> Tensor:
        return torch.stack([self._at(Purpose.ACCEPT, node) for node in range(prob.shape[1])], 1) < prob

    def draft(self, weights: Tensor, node: int) -> Tensor:
        return inverse_cdf(weights, self._at(Purpose.DRAFT, node))


class SharedCoins(KeyedCoins):
    """One coin for all siblings."""

    def bernoulli(self, prob: Tensor) -> Tensor:
        return uniform(self.seed, self.requests, self.lengths, int(Purpose.ACCEPT), 0)[:, None] < prob


@pytest.mark.parametrize(
    ("table", "vocab_size", "length", "rule", "propose", "coins", "exact"),
    [
        pytest.param(7, 2, 5, block, sampled_chain, KeyedCoins, True, id="block, rounds in a row"),
        pytest.param(7, 2, 5, block, sampled_chain, PositionCoins, False, id="block, coins of a rejected tail reused"),
        pytest.param(7, 4, 3, rejection, pruned_top_k, KeyedCoins, True, id="pruned tree"),
        pytest.param(7, 4, 3, rejection, pruned_samples, KeyedCoins, False, id="samples pruned by q, called i.i.d."),
        # A table on which a second sibling is often neither certain nor out of the question, else its coin is idle.
        pytest.param(23, 4, 3, rejection, iid_siblings, KeyedCoins, True, id="i.i.d. siblings"),
        pytest.param(23, 4, 3, rejection, iid_siblings, SharedCoins, False, id="one coin for all siblings"),
    ],
)
def test_joint_law_of_the_tokens(
    table: int, vocab_size: int, length: int, rule: Rule, propose: Propose, coins: type[KeyedCoins], exact: bool
) -> None:
    p, q = random_tables(table, vocab_size, length, num_tables=1)
    value = p_value(decode(p, q, length, rule, propose, coins), p.law(length)[0])
    assert (value > ALPHA) == exact


def test_the_statistic_itself() -> None:
    """A law against samples of its own passes, against one moved by two per cent fails; rare cells are merged."""
    law = torch.tensor([0.4, 0.3, 0.2, 0.1 - 2e-6, 1e-6, 1e-6], dtype=torch.float64)
    codes = torch.multinomial(law, NUM_SAMPLES, replacement=True, generator=torch.Generator().manual_seed(0))
    assert p_value(codes, law) > 1e-3
    moved = law + torch.tensor([0.02, -0.02, 0.0, 0.0, 0.0, 0.0])
    assert p_value(codes, moved) < ALPHA
    assert p_value(torch.where(codes == 0, 4, codes), law) < ALPHA
