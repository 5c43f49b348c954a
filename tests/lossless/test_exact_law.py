"""Every acceptance rule keeps the target's law exactly: all branches of a round are enumerated, none is sampled.

A case is one table of target and draft distributions; each test scores 24 of them, of eight kinds (dense,
peaky, zeros, disjoint supports, p = q, one-hot q, one-hot p, nearly equal).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lossless.oracle import (
    Drafted,
    OracleCoins,
    Outcomes,
    Pick,
    Rule,
    Tables,
    bias,
    complete,
    draft,
    duplicates,
    error,
    iid,
    play,
    random_tables,
    then,
    top_k,
    without_replacement,
)
from torch import Tensor
from torch.nn import functional as F

from specdec.types import Acceptance, Law, Proposal
from specdec.verify import Coins, block, greedy, rejection

EXACT = 1e-12
RULES: dict[str, Rule] = {"rejection": rejection, "block": block}
TREES = {
    "2": (-1, -1),
    "3": (-1, -1, -1),
    "4": (-1, -1, -1, -1),
    "2,1": (-1, -1, 0, 1),
    "2,2": (-1, -1, 0, 0, 1, 1),
    "irregular": (-1, -1, -1, 1, 1, 3),
    "siblings apart": (-1, 0, -1, 0, 1, 2),
}
PICKS: list[Pick] = [iid, without_replacement, top_k, duplicates]
# What a tree of that many sampled nodes costs grows as (2 * vocabulary) ** nodes.
TREE_CASES = [
    (name, vocab_size, pick)
    for name, parents in TREES.items()
    for vocab_size in (2, 3, 4)
    for pick in PICKS
    if pick in (top_k, duplicates) or vocab_size == 2 or len(parents) <= {3: 4, 4: 3}[vocab_size]
]


def chain(length: int) -> tuple[int, ...]:
    return tuple(range(-1, length - 1))


def depth_of(parents: tuple[int, ...]) -> int:
    depth = [0]
    for parent in parents:
        depth.append(depth[parent + 1] + 1)
    return max(depth)


def tree_id(value: object) -> str:
    return getattr(value, "__name__", str(value))


def of_first_children(probs: Tensor, proposal: Proposal, coins: OracleCoins) -> Acceptance:
    """What a memory that holds one branch verifies of a tree; the coins of other nodes weigh nothing."""
    chain, nodes = proposal.first_chain()
    coins.weight *= 0.5 ** (proposal.num_nodes - chain.num_nodes)
    coins.accepts = coins.accepts[:, : chain.num_nodes]
    index = F.pad(nodes + 1, (1, 0))
    there = F.pad(chain.valid, (1, 0), value=True)
    probs = probs.gather(1, index[:, :, None].expand(-1, -1, probs.shape[2]))
    acceptance = rejection(torch.where(there[:, :, None], probs, torch.nan), chain, coins)
    path = torch.where(acceptance.path >= 0, nodes.gather(1, acceptance.path.clamp(min=0)), -1)
    path = F.pad(path, (0, proposal.depth - path.shape[1]), value=-1)
    return replace(acceptance, path=path)


@pytest.mark.parametrize("pick", PICKS, ids=tree_id)
@pytest.mark.parametrize("stops", [None, lambda q, node: (q.amax(1) < 0.6) & (node % 2 == 0)], ids=["whole", "gaps"])
@pytest.mark.parametrize("name", ["2", "3", "2,1", "siblings apart"])
def test_the_first_branch_of_a_tree(name: str, pick: Pick, stops: Any) -> None:
    """Exact whatever the law of the siblings that are not looked at, also where the eldest was left out."""
    parents = TREES[name]
    p, q = random_tables(len(parents), 2, depth_of(parents))
    assert bias(of_first_children, p, draft(q, parents, pick, stops)) < EXACT


def cut_at(rule: Rule, most: int) -> Rule:
    """A round in which another row of the batch accepted `most` tokens, and all rows must stay level."""

    def cut(probs: Tensor, proposal: Proposal, coins: Coins) -> Acceptance:
        return rule(probs, proposal, coins).cut(proposal, torch.tensor(most))

    return cut


@pytest.mark.parametrize("most", range(4))
@pytest.mark.parametrize("label", ["sampled", "argmax"])
@pytest.mark.parametrize(("length", "vocab_size"), [(1, 3), (2, 4), (3, 2), (3, 3)])
@pytest.mark.parametrize("rule", RULES)
def test_rows_that_stay_level(length: int, vocab_size: int, label: str, most: int, rule: str) -> None:
    """What the slowest row accepted ends the others' rounds as well: exact wherever it ends them."""
    p, q = random_tables(length, vocab_size, length)
    drafted = draft(q, chain(length), top_k if label == "argmax" else iid)
    assert bias(cut_at(RULES[rule], most), p, drafted) < EXACT


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("label", ["sampled", "argmax", "sampled, q withheld"])
@pytest.mark.parametrize("vocab_size", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_chains(length: int, vocab_size: int, label: str, rule: str) -> None:
    p, q = random_tables(length, vocab_size, length)
    drafted = draft(q, chain(length), top_k if label == "argmax" else iid)
    if label == "sampled, q withheld":
        drafted = drafted.relabelled(Law.GIVEN)
    assert bias(RULES[rule], p, drafted) < EXACT


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pick", [iid, top_k], ids=tree_id)
@pytest.mark.parametrize("length", [2, 3])
def test_chains_of_differing_lengths(length: int, pick: Pick, rule: str) -> None:
    """Rows near their length limit use a part of the batch's chain: from nothing to all of it."""
    p, q = random_tables(10 + length, 3, length)
    allowed = torch.arange(q.num_tables) // 8 % (length + 1)  # each kind of table gets three lengths
    for shift in range(length + 1):
        drafted = draft(q, chain(length), pick)
        limit = (allowed + shift) % (length + 1)
        proposal = drafted.proposal
        valid = torch.arange(length) < limit[drafted.table][:, None]
        assert bias(RULES[rule], p, replace(drafted, proposal=replace(proposal, valid=valid))) < EXACT


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pick", [iid, top_k], ids=tree_id)
def test_a_drafter_may_stop_where_it_is_unsure_of_the_next_token(pick: Pick, rule: str) -> None:
    """Looking at q before drawing from it is no look at the token; see test_oracle_power.py for the other kind."""
    p, q = random_tables(20, 3, 3)
    drafted = draft(q, chain(3), pick, stops=lambda row, node: row.amax(1) < 0.5)
    assert len(drafted.proposal.valid.sum(1).unique()) > 1
    assert bias(RULES[rule], p, drafted) < EXACT


@pytest.mark.parametrize(("tree", "vocab_size", "pick"), TREE_CASES, ids=tree_id)
def test_trees(tree: str, vocab_size: int, pick: Pick) -> None:
    parents = TREES[tree]
    p, q = random_tables(30 + len(parents), vocab_size, depth_of(parents))
    drafted = draft(q, parents, pick)
    assert not drafted.proposal.is_chain
    assert bias(rejection, p, drafted) < EXACT


@pytest.mark.parametrize("pick", PICKS, ids=tree_id)
def test_trees_that_differ_between_rows(pick: Pick) -> None:
    """Nodes left out by what was known before their token was drawn: subtrees, siblings of either age, whole rows."""
    p, q = random_tables(40, 3, 2)
    thresholds = torch.tensor([[0.6, 0.4, 0.5, 0.7], [0.4, 0.6, 0.7, 0.5]])
    drafted = [draft(q, TREES["2,1"], pick, stops=lambda row, node, t=t: row.amax(1) < t[node]) for t in thresholds]
    assert len(torch.cat([d.proposal.valid for d in drafted]).unique(dim=0)) > 4
    assert max(bias(rejection, p, d) for d in drafted) < EXACT


@pytest.mark.parametrize("pick", [iid, without_replacement], ids=tree_id)
@pytest.mark.parametrize("tree", ["3", "2,1"])
def test_sampled_trees_without_q(tree: str, pick: Pick) -> None:
    """q = None is exact for any choice of tokens that does not depend on the verification coins."""
    p, q = random_tables(41, 3, 2)
    assert bias(rejection, p, draft(q, TREES[tree], pick, law=Law.GIVEN)) < EXACT


@pytest.mark.parametrize(("vocab_size", "draft_vocab_size"), [(2, 3), (2, 4), (3, 4), (3, 2), (4, 2), (4, 3)])
@pytest.mark.parametrize(
    ("rule", "parents", "pick"),
    [
        ("rejection", (-1, 0), iid),
        ("block", (-1, 0), iid),
        ("rejection", (-1, -1), iid),
        ("rejection", (-1, -1, 0), without_replacement),
    ],
    ids=tree_id,
)
def test_draft_vocabulary_of_another_size(
    rule: str, parents: tuple[int, ...], pick: Pick, vocab_size: int, draft_vocab_size: int
) -> None:
    """What one side lacks has probability zero there: padded embeddings, drafts with a reduced vocabulary."""
    p, q = random_tables(50, vocab_size, 2, draft_vocab_size)
    assert bias(RULES[rule], p, draft(q, parents, pick)) < EXACT


@pytest.mark.parametrize("pick", [top_k, duplicates], ids=tree_id)
def test_given_tokens_of_a_narrower_vocabulary(pick: Pick) -> None:
    p, q = random_tables(51, 4, 2, draft_vocab_size=2)
    for parents in (chain(2), TREES["4"], TREES["2,2"]):
        assert bias(rejection, p, draft(q, parents, pick)) < EXACT


ROUNDS: dict[str, tuple[Rule, tuple[int, ...], Pick]] = {
    "chain": (rejection, chain(2), iid),
    "block": (block, chain(2), iid),
    "block given": (block, chain(2), top_k),
    "iid siblings": (rejection, (-1, -1), iid),
    "siblings without replacement": (rejection, (-1, -1, 0), without_replacement),
    "top-k tree": (rejection, (-1, -1, 0, 1), top_k),
}


@pytest.mark.parametrize("second", ROUNDS)
@pytest.mark.parametrize("first", ROUNDS)
def test_two_rounds_in_a_row(first: str, second: str) -> None:
    """The second round starts where the first one ended, with coins of its own, whatever its strategy."""
    p, q = random_tables(60, 2, 5)
    rule, parents, pick = ROUNDS[second]
    begun = _round(*ROUNDS[first], p, q).stopped()
    both = then(begun, lambda d: _round(rule, parents, pick, p.below(d), q.below(d)).stopped())
    assert error(complete(both, p, 6), p) < EXACT


@pytest.mark.parametrize("rule", RULES)
def test_the_next_rounds_length_may_depend_on_this_rounds_outcome(rule: str) -> None:
    """As controllers choose it: a longer chain after a full acceptance, a short one or none after a rejection."""
    p, q = random_tables(61, 2, 6)
    lengths = {1: 0, 2: 1, 3: 3}
    begun = _round(RULES[rule], chain(2), iid, p, q).stopped()
    both = then(begun, lambda d: _round(RULES[rule], chain(lengths[d]), iid, p.below(d), q.below(d)).stopped())
    assert error(complete(both, p, 6), p) < EXACT


def _round(rule: Rule, parents: tuple[int, ...], pick: Pick, p: Tables, q: Tables) -> Outcomes:
    return play(rule, p, draft(q, parents, pick) if parents else _nothing(p))


def _nothing(p: Tables) -> Drafted:
    proposal = Proposal.empty(p.num_tables, torch.device("cpu"))
    return Drafted(proposal, torch.arange(p.num_tables), torch.ones(p.num_tables, dtype=torch.float64))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("vocab_size", [2, 4])
def test_no_proposal_is_plain_decoding(vocab_size: int, rule: str) -> None:
    p, _ = random_tables(70, vocab_size, 1)
    outcomes = play(RULES[rule], p, _nothing(p))
    assert error(complete(outcomes.stopped(), p, 1), p) < EXACT


@pytest.mark.parametrize("rule", RULES)
def test_cut_at_a_length_limit(rule: str) -> None:
    """max_new_tokens inside a block: what is left of the output still has the target's law."""
    p, q = random_tables(71, 3, 3)
    stopped = _round(RULES[rule], chain(3), iid, p, q).stopped()
    assert max(error(complete(stopped, p, cap), p) for cap in (1, 2, 3)) < EXACT


@pytest.mark.parametrize("eos", [0, 2])
@pytest.mark.parametrize(
    ("rule", "parents"), [("rejection", chain(3)), ("block", chain(3)), ("rejection", (-1, -1, 0))]
)
def test_cut_at_end_of_sequence(rule: str, parents: tuple[int, ...], eos: int) -> None:
    """Output up to the first EOS has the law of a target that stops there, though drafts went on behind it."""
    p, q = random_tables(72, 3, 3)
    outcomes = _round(RULES[rule], parents, iid, p, q)
    depth = outcomes.tokens.shape[1]
    kept = torch.arange(depth) < outcomes.length[:, None]
    over = ((outcomes.tokens == eos) & kept).cumsum(1) > 0  # from the first EOS on, EOS for ever
    tokens = torch.where(over, eos, outcomes.tokens)
    cut = replace(outcomes, tokens=tokens, length=torch.where(over.any(1), depth, outcomes.length))
    stopping = _absorbing(p, eos)
    assert error(complete(cut.stopped(), stopping, depth), stopping) < EXACT


def _absorbing(p: Tables, eos: int) -> Tables:
    levels = []
    for depth, level in enumerate(p.levels):
        code = torch.arange(p.base**depth)
        over = torch.stack([code // p.base**i % p.base == eos for i in range(depth)] or [code < 0]).any(0)
        for_ever = F.one_hot(torch.tensor(eos), p.vocab_size).double()
        levels.append(torch.where(over[None, :, None], for_ever, level))
    return Tables(p.base, levels)


@pytest.mark.parametrize("rule", RULES)
def test_float32_is_exact_to_its_rounding(rule: str) -> None:
    """The dtype of production; nothing but rounding may be lost."""
    p, q = random_tables(73, 3, 3)
    outcomes = play(RULES[rule], p, draft(q, chain(3), iid), dtype=torch.float32)
    assert error(complete(outcomes.stopped(), p, 4), p) < 1e-6


@pytest.mark.parametrize("pick", PICKS, ids=tree_id)
@pytest.mark.parametrize("tree", ["1,1,1", "2", "2,1", "2,2", "irregular"])
def test_greedy(tree: str, pick: Pick) -> None:
    """Temperature 0: one outcome, the target's argmax, whatever was drafted; ties included."""
    parents = TREES.get(tree, chain(3))
    p, q = random_tables(80, 2, depth_of(parents))
    p = Tables(p.base, [(level * 4).round() for level in p.levels])  # about a quarter of all contexts are ties
    argmax = Tables(p.base, [F.one_hot(level.argmax(-1), 2).double() for level in p.levels])
    drafted = draft(q, parents, pick)
    outcomes = play(_greedy, p, drafted)
    assert error(complete(outcomes.stopped(), argmax, drafted.proposal.depth + 1), argmax) < EXACT


def _greedy(p: Tensor, proposal: Proposal, coins: Coins) -> Acceptance:
    """greedy() as a rule: it has no use for coins, so that all their outcomes but one weigh nothing."""
    coins.bernoulli(torch.zeros_like(proposal.tokens, dtype=p.dtype))
    coins.categorical(F.one_hot(torch.zeros_like(proposal.tokens[:, 0]), p.shape[2]))
    return greedy(p, proposal)
