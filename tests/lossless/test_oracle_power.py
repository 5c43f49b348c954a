"""The oracle finds what it is for: biased drafters and broken kernels must fail it, the exact twins must not."""

from __future__ import annotations

import inspect
import types
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
from torch import Tensor

from specdec.types import Acceptance, Law, Proposal
from specdec.verify import Coins, block, rejection, rules, tree

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


@pytest.mark.parametrize("pick", [iid, without_replacement])
def test_swapped_laws_of_siblings(pick: Pick) -> None:
    p, q = random_tables(4, 3, 1)
    other = Law.WITHOUT_REPLACEMENT if pick is iid else Law.IID
    assert bias(rejection, p, draft(q, WIDTH_2, pick, law=other)) > BIASED


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

# name: (a line's part, what it becomes). The part occurs once, in specdec/verify/rules.py or tree.py: if an edit there
# makes a mutant stale, write it anew.
REJECTION_MUTANTS = {
    "inverted ratio": ("q_x > 0, r_x / q_x", "r_x > 0, q_x / r_x"),
    "ratio to the target instead of what is left of it": ("r_x = residual.gather", "r_x = _widen(p, q)[0].gather"),
    "residual = p": ("rest = (residual - q_here).clamp(min=0.0)", "rest = residual"),
    "residual of q - p": ("(residual - q_here).clamp(min=0.0)", "(q_here - residual).clamp(min=0.0)"),
    "residual |p - q|": ("(residual - q_here).clamp(min=0.0)", "(residual - q_here).abs()"),
    "residual not normalised": ("_normalise(rest, otherwise=residual)", "rest"),
    "residual loses only the rejected token": ("(residual - q_here).clamp(min=0.0)", "residual * (q_here == 0)"),
    "rejected given token stays": ("residual.scatter(2, token[:, :, None], 0.0)", "residual"),
    "residual of nodes without children too": ("torch.where(has_child[:, :, None], ", "torch.where(torch.tensor(True), "),
    "residual one position early": ("end[:, None, None].expand", "(end - 1).clamp(min=0)[:, None, None].expand"),
    "residual one position late": ("end[:, None, None].expand", "(end + 1).clamp(max=p.shape[1] - 1)[:, None, None].expand"),
    "residual always at the root": ("end[:, None, None].expand", "(end * 0)[:, None, None].expand"),
    "bonus from q": (
        "residual, q = _widen(p, proposal.q)",
        "residual, q = _widen(p, proposal.q); residual = torch.cat([residual[:, :-1], residual[:, -1:] if q is None "
        "else q[:, -1:]], 1)",
    ),
    "elder siblings forgotten": ("proposal.law is Law.WITHOUT_REPLACEMENT", "False"),
    "elder siblings never drawn twice": ("proposal.law is Law.WITHOUT_REPLACEMENT", "True"),
    "conditional q not normalised": ("return _normalise(q.scatter(2, token, keep), otherwise=q)", "return q.scatter(2, token, keep)"),
    "only the eldest sibling excluded": ("children[:, :, :rank])", "children[:, :, : min(rank, 1)])"),
    "every parent has the first one's q": ("row = proposal.q_index.gather(1, node)", "row = torch.zeros_like(node)"),
    "siblings walked in reverse": ("walk(children, coins", "walk(children.flip(2), coins"),
    "siblings verified in reverse": ("children = children_table(proposal)\n    residual", "children = children_table(proposal).flip(2)\n    residual"),
    "last accepted child taken": ("taken.to(torch.int8).argmax(-1, keepdim=True)", "(taken * torch.arange(1, taken.shape[2] + 1)).argmax(-1, keepdim=True)"),
    "walk goes on past a rejection": ("slot = torch.where(alive, node + 1, slot)", "slot = (slot + 1).clamp(max=heir.shape[1] - 1)"),
    "absent nodes take part": ("torch.where(proposal.valid, proposal.parents + 1, num_nodes + 1)", "proposal.parents + 1"),
}
BLOCK_MUTANTS = {
    "inverted ratio": ("q_x > 0, p_x / q_x", "p_x > 0, q_x / p_x"),
    "joint ratio not clamped": ("(joint[-1] * ratio[:, i]).clamp(max=1.0)", "joint[-1] * ratio[:, i]"),
    "joint ratio clamped from the wrong side": ("(joint[-1] * ratio[:, i]).clamp(max=1.0)", "joint[-1] * ratio[:, i].clamp(max=1.0)"),
    "joint ratio without its past": ("(joint[-1] * ratio[:, i]).clamp(max=1.0)", "ratio[:, i].clamp(max=1.0)"),
    "h without - P": ("mass + 1 - reach", "mass + 1"),
    "h = P": ("torch.where(is_end, reach, ", "torch.where(is_end | True, reach, "),
    "h one position early": ("proposal.valid, h[:, 1:]", "proposal.valid, h[:, :-1]"),
    "first rejection ends the block": ("torch.where(accepted, steps[1:], 0).amax(1)", "accepted.long().cumprod(1).sum(1)"),
    "accepted tokens counted": ("torch.where(accepted, steps[1:], 0).amax(1)", "accepted.long().sum(1)"),
    "residual without P": ("reach[:, :, None] * wide_p - q_next", "wide_p - q_next"),
    "residual = p": ("residual.gather(1, last).squeeze(1))", "wide_p.gather(1, last).squeeze(1))"),
    "residual one position late": ("q_next = torch.cat([q, q.new", "q_next = torch.cat([q[:, :1], q[:, :-1], q.new"),
    "bonus one position early": ("wide_p.gather(1, last).squeeze(1), res", "wide_p.gather(1, (last - 1).clamp(min=0)).squeeze(1), res"),
    "rows as long as the longest": ("length = proposal.valid.sum(1)", "length = proposal.valid.sum(1) * 0 + num_nodes"),
    "soft q for given tokens": ("F.one_hot(proposal.tokens, wide_p.shape[2]).to(wide_p.dtype)", "wide_p[:, :-1].nan_to_num()"),
}


def _mutant(rule: str, old: str, new: str) -> Rule:
    """The rule from a changed copy of its source."""
    sources = {module: inspect.getsource(module) for module in (tree, rules)}
    assert sum(source.count(old) for source in sources.values()) == 1, f"stale mutant: {old!r}"
    namespace: dict[str, object] = {}
    for module, source in sources.items():
        copy = types.ModuleType(f"mutant_of_{module.__name__}")
        exec(compile(source.replace(old, new), copy.__name__, "exec"), copy.__dict__)
        if module is rules:  # its own names win, but for what it imports from tree
            copy.__dict__.update({name: namespace[name] for name in ("children_table", "walk")})
        namespace = dict(copy.__dict__)
    mutated = namespace[rule]
    assert callable(mutated)
    return mutated


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
    mutant = _mutant("rejection", *REJECTION_MUTANTS[name])
    assert any(bias(mutant, p, drafted) > BIASED for p, drafted in _scenes(trees=True))


@pytest.mark.parametrize("name", BLOCK_MUTANTS)
def test_broken_block_verification_is_found_out(name: str) -> None:
    mutant = _mutant("block", *BLOCK_MUTANTS[name])
    assert any(bias(mutant, p, drafted) > BIASED for p, drafted in _scenes(trees=False))


@pytest.mark.parametrize(("rule", "trees"), [("rejection", True), ("block", False)])
def test_an_unbroken_copy_passes(rule: str, trees: bool) -> None:
    """What kills the mutants is their mutation, not how they are made."""
    copy = _mutant(rule, "first = taken", "first = taken")
    assert max(bias(copy, p, drafted) for p, drafted in _scenes(trees)) < EXACT
