"""The batched rules against one-token-at-a-time interpreters written from the papers, branch by branch."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lossless.oracle import bias, draft, iid, play, random_tables, without_replacement
from torch import Tensor
from verify import scalar

from specdec.types import Acceptance, Law, Proposal
from specdec.verify import KeyedCoins, block, coins, greedy, rejection
from specdec.verify.coins import inverse_cdf
from specdec.verify.tree import children_table, walk

SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, database=None)
NAN = float("nan")


class Dice:
    """Coins that fell beforehand: one per node [B, N] and one for the next token [B]."""

    def __init__(self, nodes: Any, last: Any) -> None:
        self.nodes, self.last = (torch.as_tensor(x, dtype=torch.float64) for x in (nodes, last))

    def bernoulli(self, prob: Tensor) -> Tensor:
        return self.nodes < prob

    def categorical(self, weights: Tensor) -> Tensor:
        return inverse_cdf(weights, self.last)


# --- against the interpreters ------------------------------------------------------------------------------------


@st.composite
def _worlds(draw: st.DrawFn, chains: bool = False) -> tuple[Tensor, Proposal, Dice]:
    """A batch of rows of one shape with tokens, draft laws and coins of their own; some rows lack some nodes."""
    num_nodes = draw(st.integers(1, 5))
    shape = range(-1, num_nodes - 1) if chains else [draw(st.integers(-1, node - 1)) for node in range(num_nodes)]
    parents = list(shape)
    vocab_size = draw(st.integers(max(2, *map(parents.count, parents)), 6))
    law = draw(st.sampled_from([Law.GIVEN, Law.IID] if chains else list(Law)))
    rand = random.Random(draw(st.integers(0, 2**32)))
    batch_size = 8
    expanded = sorted(set(parents))
    q_index = [expanded.index(parent) for parent in parents]
    depth: list[int] = []
    for parent in parents:
        depth.append(1 if parent < 0 else depth[parent] + 1)
    tokens, valid = [], []
    for _ in range(batch_size):
        row: list[int] = []
        there: list[bool] = []
        for node, parent in enumerate(parents):
            elders = [row[n] for n in range(node) if parents[n] == parent]
            fresh = [t for t in range(vocab_size) if law is not Law.WITHOUT_REPLACEMENT or t not in elders]
            row.append(rand.choice(fresh))
            there.append((parent < 0 or there[parent]) and rand.random() < 0.8)
        tokens.append(row)
        valid.append(there)
    generator = torch.Generator().manual_seed(rand.getrandbits(32))

    def table(rows: int) -> Tensor:
        weights = torch.rand(batch_size, rows, vocab_size, dtype=torch.float64, generator=generator) ** 3
        return weights / weights.sum(-1, keepdim=True)

    proposal = Proposal(
        tokens=torch.tensor(tokens),
        parents=torch.tensor(parents).expand(batch_size, -1),
        valid=torch.tensor(valid),
        depth=max(depth),
        width=max(map(parents.count, parents)),
        q=None if law is Law.GIVEN else table(len(expanded)),
        q_index=None if law is Law.GIVEN else torch.tensor(q_index).expand(batch_size, -1),
        law=law,
    )
    rolls = torch.rand(batch_size, num_nodes + 1, dtype=torch.float64, generator=generator)
    return table(num_nodes + 1), proposal, Dice(rolls[:, 1:], rolls[:, 0])


def _agree(acceptance: Acceptance, interpreter: Any, p: Tensor, proposal: Proposal, dice: Dice) -> None:
    output = acceptance.tokens(proposal).tolist()
    for b in range(p.shape[0]):
        names = ("tokens", "parents", "valid") if proposal.q is None else ("tokens", "parents", "valid", "q_index")
        row = {name: getattr(proposal, name)[b].tolist() for name in names}
        q = None if proposal.q is None else proposal.q[b].tolist()
        arguments = (p[b].tolist(), q, row, proposal.law, dice.nodes[b].tolist(), float(dice.last[b]))
        path, next_token = interpreter(*arguments)
        assert acceptance.path[b].tolist() == path + [-1] * (proposal.depth - len(path))
        assert int(acceptance.num_accepted[b]) == len(path)
        assert output[b][: len(path) + 1] == [row["tokens"][node] for node in path] + [next_token]


@SETTINGS
@given(_worlds())
def test_rejection_over_trees_equals_the_interpreter(world: tuple[Tensor, Proposal, Dice]) -> None:
    p, proposal, dice = world
    _agree(rejection(p, proposal, dice), scalar.rejection, p, proposal, dice)


@SETTINGS
@given(_worlds(chains=True))
def test_chain_rules_equal_their_interpreters(world: tuple[Tensor, Proposal, Dice]) -> None:
    p, proposal, dice = world
    _agree(rejection(p, proposal, dice), scalar.rejection, p, proposal, dice)
    _agree(block(p, proposal, dice), scalar.block, p, proposal, dice)


@SETTINGS
@given(_worlds())
def test_greedy_equals_the_interpreter(world: tuple[Tensor, Proposal, Dice]) -> None:
    p, proposal, dice = world
    p = (p * 3).round()  # ties
    _agree(greedy(p, proposal), scalar.greedy, p, proposal, dice)


@SETTINGS
@given(_worlds(chains=True))
def test_a_chain_may_be_described_as_a_tree(world: tuple[Tensor, Proposal, Dice]) -> None:
    """width and depth are upper bounds: they size loops, never results."""
    p, proposal, dice = world
    tree = replace(proposal, width=2, depth=proposal.depth + 1)
    for one, other in (
        (rejection(p, proposal, dice), rejection(p, tree, dice)),
        (greedy(p, proposal), greedy(p, tree)),
    ):
        assert torch.equal(torch.nn.functional.pad(one.path, (0, 1), value=-1), other.path)
        assert torch.equal(one.num_accepted, other.num_accepted)
        assert torch.equal(one.next_token, other.next_token)


# --- bookkeeping ------------------------------------------------------------------------------------------------


def _tree(parents: list[int], valid: list[bool] | None = None, tokens: list[int] | None = None) -> Proposal:
    nodes = len(parents)
    return Proposal(
        tokens=torch.tensor([tokens or [0] * nodes]),
        parents=torch.tensor([parents]),
        valid=torch.tensor([valid or [True] * nodes]),
        depth=3,
        width=max(map(parents.count, parents)),
    )


def test_children_table() -> None:
    table = children_table(_tree([-1, -1, 0, 0, 1, -1]))
    none = [-1, -1, -1]
    assert table.tolist() == [[[0, 1, 5], [2, 3, -1], [4, -1, -1], none, none, none, none]]


def test_absent_nodes_are_nobodys_children_and_keep_no_place() -> None:
    table = children_table(_tree([-1, -1, 0, 0, 1, -1], valid=[False, True, False, False, True, True]))
    none = [-1, -1, -1]
    assert table.tolist() == [[[1, 5, -1], none, [4, -1, -1], none, none, none, none]]


def test_walk_takes_the_eldest_accepted_child_and_stops_at_a_rejection() -> None:
    proposal = _tree([-1, -1, 0, 1, 1, 4])
    table = children_table(proposal)
    for accepted, path, end in (
        ([0, 0, 1, 1, 1, 1], [-1, -1, -1], 0),
        ([1, 1, 0, 1, 1, 1], [0, -1, -1], 1),
        ([0, 1, 1, 0, 1, 1], [1, 4, 5], 6),
        ([0, 1, 1, 1, 1, 1], [1, 3, -1], 4),
    ):
        got = walk(table, torch.tensor([accepted]).bool(), 3)
        assert [x.tolist() for x in got] == [[path], [sum(node >= 0 for node in path)], [end]]


def test_layout_of_the_tokens() -> None:
    """Accepted tokens in path order, then the next token; rows of differing lengths."""
    proposal = _tree([-1, -1, 1], tokens=[7, 8, 9])
    proposal = replace(proposal, **{n: getattr(proposal, n).expand(3, -1) for n in ("tokens", "parents", "valid")})
    path = torch.tensor([[1, 2, -1], [0, -1, -1], [-1, -1, -1]])
    acceptance = Acceptance(path, torch.tensor([2, 1, 0]), torch.tensor([5, 6, 4]))
    out = acceptance.tokens(proposal)
    assert out.shape == (3, 4)
    assert [row[: a + 1] for row, a in zip(out.tolist(), (2, 1, 0), strict=True)] == [[8, 9, 5], [7, 6], [4]]
    nothing = Proposal.empty(2, torch.device("cpu"))
    assert Acceptance(nothing.tokens, torch.zeros(2), torch.tensor([3, 1])).tokens(nothing).tolist() == [[3], [1]]


# --- edges ------------------------------------------------------------------------------------------------------


def test_greedy_ties_go_to_the_first_index() -> None:
    logits = torch.tensor([[[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]])
    for token, accepted, output in ((1, 1, [1, 0]), (2, 0, [1])):
        acceptance = greedy(logits, Proposal.chain(torch.tensor([[token]])))
        assert acceptance.num_accepted.tolist() == [accepted]
        assert acceptance.tokens(Proposal.chain(torch.tensor([[token]])))[0, : accepted + 1].tolist() == output


@pytest.mark.parametrize("rule", [rejection, block])
@pytest.mark.parametrize("bad", [NAN, 0.0])
@pytest.mark.parametrize("sampled", [True, False])
def test_what_is_no_distribution_gives_no_token(rule: Any, bad: float, sampled: bool) -> None:
    """At the root, behind an accepted node, and without any draft; a token must not be made up."""
    good, q = torch.tensor([0.5, 0.25, 0.25]), torch.full((1, 1, 3), 1 / 3)
    chain = Proposal.chain(torch.tensor([[0]]), q=q if sampled else None)
    for broken, coin in ((0, 0.9), (1, 0.0)):
        p = good.expand(1, 2, 3).clone()
        p[0, broken] = bad
        acceptance = rule(p, chain, Dice([[coin]], [0.5]))
        assert acceptance.next_token.tolist() == [-1]
        assert acceptance.num_accepted.tolist() == [broken]
    nothing = Proposal.empty(1, torch.device("cpu"))
    assert rule(torch.full((1, 1, 3), bad), nothing, Dice([[]], [0.5])).next_token.tolist() == [-1]


@pytest.mark.parametrize("rule", [rejection, block])
@pytest.mark.parametrize("sampled", [True, False])
def test_a_coin_of_zero_rejects_what_the_target_cannot_say(
    monkeypatch: pytest.MonkeyPatch, rule: Any, sampled: bool
) -> None:
    """u < prob, not <=: one coin in 2**53 is 0."""
    monkeypatch.setattr(coins, "uniform", lambda seed, *key: 0.0 * sum(key).double())
    p = torch.tensor([[[0.0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]]])
    chain = Proposal.chain(torch.tensor([[0]]), q=torch.full((1, 1, 3), 1 / 3) if sampled else None)
    acceptance = rule(p, chain, KeyedCoins(0, torch.tensor([0]), torch.tensor([0])))
    assert acceptance.num_accepted.tolist() == [0]
    assert acceptance.next_token.tolist() == [1]


@pytest.mark.parametrize("rule", [rejection, block])
def test_rounding_leaves_a_distribution(rule: Any) -> None:
    """p and q a rounding apart, p nowhere above q: a coin close to 1 rejects, and no residual is left to draw from."""
    p = torch.tensor([[[0.5, 0.49999997], [0.5, 0.5]]])
    chain = Proposal.chain(torch.tensor([[1]]), q=torch.tensor([[[0.5, 0.5]]]))
    assert rule(p, chain, Dice([[1 - 2**-53]], [0.5])).next_token.tolist() == [0]


@pytest.mark.parametrize("sampled", [True, False])
def test_one_nan_is_not_lost_with_its_rejected_token(sampled: bool) -> None:
    p = torch.tensor([[[NAN, 0.5, 0.5], [0.5, 0.25, 0.25]]])
    chain = Proposal.chain(torch.tensor([[0]]), q=torch.full((1, 1, 3), 1 / 3) if sampled else None)
    assert rejection(p, chain, Dice([[0.5]], [0.5])).next_token.tolist() == [-1]


@pytest.mark.parametrize("bad", [NAN, 0.0])
def test_block_does_not_step_back_from_a_broken_distribution(bad: float) -> None:
    """All coins accept: the walk goes through the node whose p is broken, and its silent rejection would be biased."""
    p = torch.full((1, 4, 2), 0.5)
    p[0, 1] = bad
    chain = Proposal.chain(torch.tensor([[0, 0, 0]]), q=torch.tensor([[[0.4, 0.6]] * 3]))
    assert block(p, chain, Dice([[0.0, 0.0, 0.0]], [0.5])).next_token.tolist() == [-1]


def test_siblings_beyond_the_support_of_q_are_as_good_as_absent() -> None:
    """Gumbel top-k over a truncated q fills up with tokens of probability zero once q's own are used up."""
    p, q = random_tables(96, 4, 1)

    def filled(row: Tensor, elders: Tensor) -> Tensor:
        rest = without_replacement(row, elders)
        unused = torch.ones_like(row).scatter(1, elders, 0.0)
        first_unused = torch.nn.functional.one_hot(unused.argmax(1), row.shape[1]).double()
        return torch.where(rest.sum(1, keepdim=True) > 0, rest, first_unused)

    assert bias(rejection, p, draft(q, (-1, -1, -1), filled, law=Law.WITHOUT_REPLACEMENT)) < 1e-12


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("vocab_size", [2, 3])
def test_block_verification_accepts_at_least_as_much(vocab_size: int, length: int) -> None:
    """Exactly, table by table; strictly more somewhere once a chain is longer than one."""
    p, q = random_tables(90 + length, vocab_size, length)
    drafted = draft(q, tuple(range(-1, length - 1)), iid)
    gain = play(block, p, drafted).expected_accepted() - play(rejection, p, drafted).expected_accepted()
    assert gain.min() > -1e-12
    assert (gain.max() > 1e-3) == (length > 1)


@pytest.mark.parametrize("rule", [rejection, block])
def test_one_draft_token_is_accepted_as_often_as_the_overlap(rule: Any) -> None:
    """alpha = sum min(p, q) = 1 - TVD(p, q): what no rule can exceed."""
    p, q = random_tables(95, 4, 1)
    overlap = torch.minimum(p.levels[0], q.levels[0]).sum((1, 2))
    torch.testing.assert_close(play(rule, p, draft(q, (-1,), iid)).expected_accepted(), overlap, atol=1e-12, rtol=0)
