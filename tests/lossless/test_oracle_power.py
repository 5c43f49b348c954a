"""The oracle finds what it is for: biased drafters and broken kernels must fail it, the exact twins must not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from lossless.oracle import (
    Drafted,
    Pick,
    Rule,
    Tables,
    bias,
    draft,
    iid,
    random_tables,
    select,
    top_k,
    without_replacement,
)
from lossless.reference import Block, Rejection, youngest_first
from torch import Tensor

from specdec.types import Acceptance, Law, Proposal
from specdec.verify import Coins, block, rejection

BIASED, EXACT = 1e-3, 1e-12
WIDTH_3 = (-1, -1, -1)
WIDTH_2 = (-1, -1)


# --- drafters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [rejection, block])
def test_dropping_an_unlikely_token_after_seeing_it(rule: Rule) -> None:
    """assistant_confidence_threshold done wrong: the tokens that stay are no longer draws from q."""
    p, q = random_tables(0, 3, 2)
    drafted = draft(q, (-1, 0), iid)
    proposal = drafted.proposal
    assert proposal.q is not None
    likely = proposal.q.gather(2, proposal.tokens[:, :, None]).squeeze(2) >= 0.4
    dropped = replace(drafted, proposal=replace(proposal, valid=likely.cumprod(1).bool()))
    assert bias(rule, p, dropped) > BIASED
    assert bias(rule, p, dropped.relabelled(Law.GIVEN)) < EXACT
    # Looking at q itself instead of at the token's share of it:
    assert bias(rule, p, draft(q, (-1, 0), iid, stops=lambda row, node: row.amax(1) < 0.4)) < EXACT


def _ranked(drafted: Drafted, scores: Tensor, keep: int) -> Drafted:
    """The siblings of a tree of depth 1 by descending score [R, N], the first `keep` of them."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :keep]
    proposal = drafted.proposal
    parts = {n: getattr(proposal, n).gather(1, order) for n in ("tokens", "parents", "valid", "q_index")}
    return replace(drafted, proposal=replace(proposal, **parts, width=keep))


@pytest.mark.parametrize("keep", [2, 3], ids=["pruned", "sorted"])
@pytest.mark.parametrize("by", ["p", "q"])
@pytest.mark.parametrize("pick", [iid, without_replacement])
def test_sorting_or_pruning_sampled_siblings(pick: Pick, by: str, keep: int) -> None:
    p, q = random_tables(1, 4, 1)
    drafted = draft(q, WIDTH_3, pick)
    table = p if by == "p" else q
    scores = table.levels[0][drafted.table, 0].gather(1, drafted.proposal.tokens)
    ranked = _ranked(drafted, torch.where(drafted.proposal.valid, scores, -1.0), keep)
    assert bias(rejection, p, ranked) > BIASED
    assert bias(rejection, p, ranked.relabelled(Law.GIVEN)) < EXACT


@pytest.mark.parametrize("rule", [rejection, block])
@pytest.mark.parametrize("parents", [(-1,), (-1, 0)])
def test_argmax_drafts_labelled_with_their_softmax(parents: tuple[int, ...], rule: Rule) -> None:
    p, q = random_tables(2, 3, 2)
    assert bias(rule, p, draft(q, parents, top_k, law=Law.IID)) > BIASED


@pytest.mark.parametrize("rule", [rejection, block])
def test_drafts_of_another_temperature_than_declared(rule: Rule) -> None:
    p, q = random_tables(3, 3, 2)
    warm = Tables(q.base, [level.sqrt() / level.sqrt().sum(-1, keepdim=True) for level in q.levels])
    assert bias(rule, p, draft(q, (-1, 0), iid, labels=warm)) > BIASED


def test_swapped_laws_of_siblings() -> None:
    """Not the other way round: i.i.d. siblings whose repetitions count as absent are drawn without replacement."""
    p, q = random_tables(4, 3, 1)
    assert bias(rejection, p, draft(q, WIDTH_2, without_replacement, law=Law.IID)) > BIASED
    assert bias(rejection, p, draft(q, WIDTH_2, iid, law=Law.WITHOUT_REPLACEMENT)) < EXACT


# --- coins ------------------------------------------------------------------------------------------------------


class SharedCoin:
    """One coin for all siblings: the next is accepted with what its probability exceeds its elders' by."""

    def __init__(self, coins: Coins) -> None:
        self.coins = coins
        self.categorical = coins.categorical

    def bernoulli(self, prob: Tensor) -> Tensor:
        before = torch.nn.functional.pad(prob.cummax(1).values[:, :-1], (1, 0))
        return self.coins.bernoulli(((prob - before) / (1 - before).clamp(min=1e-300)).clamp(0, 1))


@pytest.mark.parametrize("pick", [iid, without_replacement, top_k])
def test_one_coin_for_all_siblings(pick: Pick) -> None:
    p, q = random_tables(5, 3, 1)

    def shared(p: Tensor, proposal: Proposal, coins: Coins) -> Acceptance:
        return rejection(p, proposal, SharedCoin(coins))

    assert bias(shared, p, draft(q, WIDTH_2, pick)) > BIASED


# --- kernels ----------------------------------------------------------------------------------------------------

REJECTION_MUTANTS = {
    "ratio inverted": Rejection(ratio=lambda left_x, q_x, p_x: q_x / left_x),
    "ratio to p instead of what is left of it": Rejection(ratio=lambda left_x, q_x, p_x: p_x / q_x),
    "accepted by p alone": Rejection(ratio=lambda left_x, q_x, p_x: left_x),
    "accepted whenever p is the larger": Rejection(ratio=lambda left_x, q_x, p_x: (left_x >= q_x).double()),
    "residual left out": Rejection(residual=lambda left, q, p, x: left),
    "residual = p": Rejection(residual=lambda left, q, p, x: p),
    "residual of q - p": Rejection(residual=lambda left, q, p, x: (q - left).clamp(min=0)),
    "residual |p - q|": Rejection(residual=lambda left, q, p, x: (left - q).abs()),
    "residual of p for every sibling": Rejection(residual=lambda left, q, p, x: (p - q).clamp(min=0)),
    "residual without the rejected token only": Rejection(residual=lambda left, q, p, x: left.scatter(1, x, 0.0)),
    "residual not normalised": Rejection(normalised=False),
    "residual one position early": Rejection(end=lambda slot, last: (slot - 1).clamp(min=0)),
    "residual one position late": Rejection(end=lambda slot, last: (slot + 1).clamp(max=last)),
    "residual always at the root": Rejection(end=lambda slot, last: slot * 0),
    "bonus from q": Rejection(bonus=lambda p, q: q),
    "elder siblings forgotten": Rejection(law=lambda law: Law.IID),
    "elder siblings never drawn again": Rejection(law=lambda law: Law.WITHOUT_REPLACEMENT),
    "elder siblings' share kept": Rejection(q_normalised=False),
    "only the eldest sibling excluded": Rejection(elders=lambda elders: elders[:1]),
    "only the next elder sibling excluded": Rejection(elders=lambda elders: elders[-1:]),
    "the first parent's q for all": Rejection(q_index=lambda index: index * 0),
    "siblings walked in reverse": Rejection(walked=youngest_first),
    "siblings verified in reverse": Rejection(verified=youngest_first),
    "siblings reversed altogether": Rejection(verified=youngest_first, walked=youngest_first),
    "acceptance behind a rejected parent": Rejection(reachable=lambda slot, parent: slot >= 0),
    "absent nodes take part": Rejection(present=torch.ones_like),
}
BLOCK_MUTANTS = {
    "ratio inverted": Block(ratio=lambda p_x, q_x: q_x / p_x),
    "joint ratio not clamped": Block(joint=lambda before, ratio: before * ratio),
    "ratio clamped before the product": Block(joint=lambda before, ratio: before * ratio.clamp(max=1)),
    "joint ratio without its past": Block(joint=lambda before, ratio: ratio.clamp(max=1)),
    "h without - P": Block(h=lambda mass, joint: mass / (mass + 1)),
    "h = P": Block(h=lambda mass, joint: joint),
    "h = S": Block(h=lambda mass, joint: mass.clamp(max=1)),
    "h one position early": Block(h_at=lambda node: node - 1),
    "first rejection ends the block": Block(tau=lambda accepted: accepted.long().cumprod(1).sum(1)),
    "accepted tokens counted": Block(tau=lambda accepted: accepted.sum(1)),
    "residual without P": Block(residual=lambda joint, p, q: (p - q).clamp(min=0)),
    "residual = p": Block(residual=lambda joint, p, q: joint * p),
    "residual one position early": Block(chosen=lambda tau, length: (tau - 1).clamp(min=0)),
    "residual one position late": Block(chosen=lambda tau, length: torch.minimum(tau + 1, length)),
    "residual against the q before": Block(q_behind=lambda node: max(node - 1, 0)),
    "bonus one position early": Block(bonus=lambda tau: (tau - 1).clamp(min=0)),
    "rows as long as the longest": Block(length=lambda valid: valid.sum(1) * 0 + valid.shape[1]),
    "soft q for given tokens": Block(soft=True),
}


def _ragged(drafted: Drafted) -> Drafted:
    """Every row also with its proposal cut short, in equal parts: lengths do not depend on tokens."""
    num_nodes = drafted.proposal.num_nodes
    rows = torch.arange(len(drafted.table)).repeat(num_nodes + 1)
    lengths = torch.arange(num_nodes + 1).repeat_interleave(len(drafted.table))
    proposal = select(drafted.proposal, rows)
    valid = proposal.valid & (torch.arange(num_nodes) < lengths[:, None])
    return Drafted(replace(proposal, valid=valid), drafted.table[rows], drafted.weight[rows] / (num_nodes + 1))


def _scenes(trees: bool) -> list[tuple[Tables, Drafted]]:
    scenes: list[tuple[Tables, Drafted]] = []

    def add(vocab_size: int, parents: tuple[int, ...], pick: Pick, change: Callable[[Drafted], Drafted] | None) -> None:
        p, q = random_tables(len(scenes), vocab_size, 2)
        drafted = draft(q, parents, pick)
        scenes.append((p, change(drafted) if change else drafted))

    for pick in (iid, top_k):
        add(3, (-1, 0), pick, None)
        add(3, (-1, 0), pick, _ragged)
    if trees:
        add(3, WIDTH_2, iid, None)
        add(4, WIDTH_3, without_replacement, None)
        add(3, WIDTH_3, top_k, None)
        add(2, (-1, -1, 1), iid, _ragged)
        add(3, (-1, -1, 0, 1), without_replacement, None)
    return scenes


@pytest.mark.parametrize("name", REJECTION_MUTANTS)
def test_broken_rejection_is_found_out(name: str) -> None:
    assert any(bias(REJECTION_MUTANTS[name], p, drafted) > BIASED for p, drafted in _scenes(trees=True))


@pytest.mark.parametrize("name", BLOCK_MUTANTS)
def test_broken_block_verification_is_found_out(name: str) -> None:
    assert any(bias(BLOCK_MUTANTS[name], p, drafted) > BIASED for p, drafted in _scenes(trees=False))


@pytest.mark.parametrize("rule", [Rejection(), rejection, Block(), block], ids=lambda rule: type(rule).__name__)
def test_what_is_not_broken_passes(rule: Rule) -> None:
    """What kills the mutants is what was changed, not the frame they were made in."""
    trees = rule == rejection or isinstance(rule, Rejection)
    assert max(bias(rule, p, drafted) for p, drafted in _scenes(trees)) < EXACT
