"""Exact enumeration of one round of speculation through the production kernels: no sampling, no tolerance.

The kernels draw every acceptance coin in one call and the next token in one more. So each branch (the
drafted tokens, the outcome of every coin, the next token) can be a row of one batch: a branch weighs the
product of its choices' probabilities, and the weights add up to the law of the round's output. Outputs
shorter than the depth plus one are completed from the target, and the joint law is compared with the
target's.

What it cannot see is how coins are made, since it takes every call for fresh: see test_gtests.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from specdec.types import Acceptance, Law, Proposal
from specdec.verify import Coins

Rule = Callable[[Tensor, Proposal, Coins], Acceptance]
Stopped = list[Tensor]  # [d]: [T, base**d], weight of the outputs of exactly d tokens


@dataclass(frozen=True)
class Tables:
    """Context-dependent distributions of T toy models: levels[d][t, c] is the one after the d tokens coded by c.

    A context's code is its tokens as digits in `base`, the larger of the two vocabularies.
    """

    base: int
    levels: list[Tensor]  # [d]: [T, base**d, V] float64

    @property
    def num_tables(self) -> int:
        return self.levels[0].shape[0]

    @property
    def vocab_size(self) -> int:
        return self.levels[0].shape[2]

    def below(self, depth: int) -> Tables:
        """The tables that start at each context of `depth` tokens: T * base**depth of them."""
        size = self.base**depth
        levels = [level.view(self.num_tables, size, -1, self.vocab_size) for level in self.levels[depth:]]
        return Tables(self.base, [level.flatten(0, 1) for level in levels])

    def widened(self, depth: int) -> Tensor:
        """levels[depth] with zeros for the tokens that this model lacks: [T, base**depth, base]."""
        return torch.nn.functional.pad(self.levels[depth], (0, self.base - self.vocab_size))

    def law(self, length: int) -> Tensor:
        """Joint law of the next `length` tokens: [T, base**length]."""
        joint = self.levels[0].new_ones(self.num_tables, 1)
        for depth in range(length):
            joint = (joint[:, :, None] * self.widened(depth)).flatten(1)
        return joint


NUM_KINDS = 8


def random_tables(
    seed: int, vocab_size: int, depth: int, draft_vocab_size: int | None = None, num_tables: int = 3 * NUM_KINDS
) -> tuple[Tables, Tables]:
    """Target and draft with contexts of 0..depth tokens; every kind of pair in which rules were seen to go wrong."""
    random = np.random.default_rng(seed)
    sizes = (vocab_size, draft_vocab_size or vocab_size)
    base = max(sizes)
    target: list[Tensor] = []
    draft: list[Tensor] = []
    for d in range(depth + 1):
        p, q = (random.dirichlet(np.ones(base), (num_tables, base**d)) for _ in sizes)
        peaky = random.dirichlet(np.full(base, 0.3), (2, num_tables, base**d)) + 1e-9
        side = np.where(random.random((num_tables, base**d, base)) < 0.5, 1.0, 0.0)
        side[..., :2] = np.eye(2)[random.integers(2, size=(num_tables, base**d))]  # both sides keep a token
        one_hot = np.eye(base)[random.integers(min(sizes), size=(num_tables, base**d))]
        some = np.maximum(side, random.random(side.shape) < 0.5)
        for t in range(num_tables):
            kind = t % NUM_KINDS
            if kind == 1:
                p[t], q[t] = peaky[:, t]
            elif kind == 2:  # zeros on both sides, at different tokens
                p[t], q[t] = p[t] * some[t], q[t] * np.maximum(1 - some[t], side[t])
            elif kind == 3:  # disjoint supports: every draft token is rejected
                p[t], q[t] = p[t] * side[t], q[t] * (1 - side[t])
            elif kind == 4:  # every draft token is accepted, and no residual is left
                q[t] = p[t]
            elif kind == 5:
                q[t] = one_hot[t]
            elif kind == 6:
                p[t] = one_hot[t]
            elif kind == 7:
                q[t] = p[t] + 0.05 * q[t]
        for levels, table, size in ((target, p, sizes[0]), (draft, q, sizes[1])):
            table = table[..., :size]
            levels.append(torch.from_numpy(table / table.sum(-1, keepdims=True)))
    return Tables(base, target), Tables(base, draft)


# A pick gives weights [R, Vq] of the next child from its parent's q [R, Vq] and elder siblings [R, S], -1 where one
# was left out; all zero where there is no such child.
Pick = Callable[[Tensor, Tensor], Tensor]


def iid(q: Tensor, elders: Tensor) -> Tensor:
    return q


def without_replacement(q: Tensor, elders: Tensor) -> Tensor:
    drawn = torch.where(elders < 0, q.shape[1], elders)
    rest = torch.nn.functional.pad(q, (0, 1)).scatter(1, drawn, 0.0)[:, :-1]
    return rest / rest.sum(1, keepdim=True).clamp(min=1e-300)


def top_k(q: Tensor, elders: Tensor) -> Tensor:
    """The r-th most likely token for the r-th child, none beyond the vocabulary."""
    rank = elders.shape[1]
    if rank >= q.shape[1]:
        return torch.zeros_like(q)
    order = q.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(q).scatter(1, order[:, rank : rank + 1], 1.0)


def duplicates(q: Tensor, elders: Tensor) -> Tensor:
    """Top-k with each token proposed twice."""
    return top_k(q, elders[:, ::2][:, : elders.shape[1] // 2])


LAWS = {iid: Law.IID, without_replacement: Law.WITHOUT_REPLACEMENT, top_k: Law.GIVEN, duplicates: Law.GIVEN}


@dataclass(frozen=True)
class Drafted:
    """Every proposal that a drafter can make, one a row, with its probability; several tables in one batch."""

    proposal: Proposal  # R rows
    table: Tensor  # [R] int64
    weight: Tensor  # [R] float64, adds up to 1 within each table

    def relabelled(self, law: Law) -> Drafted:
        """The same proposals declared as drawn by another law; GIVEN drops q."""
        proposal = replace(self.proposal, law=law)
        if law is Law.GIVEN:
            proposal = replace(proposal, q=None, q_index=None)
        return replace(self, proposal=proposal)


def draft(
    q: Tables,
    parents: Sequence[int],
    pick: Pick,
    stops: Callable[[Tensor, int], Tensor] | None = None,
    labels: Tables | None = None,
    law: Law | None = None,
) -> Drafted:
    """Enumerates what a drafter that fills the tree `parents` from q may propose.

    Args:
        parents: of each node, -1 = child of the root.
        stops: (q [R, Vq] at a node's parent, the node) -> bool [R], where the node is left out; all that
            it may look at was there before the node's own token was drawn.
        labels: the distributions that the proposal declares, q if omitted.
        law: the law that it declares, that of `pick` if omitted.
    """
    table = torch.arange(q.num_tables)
    weight = torch.ones(q.num_tables, dtype=torch.float64)
    tokens, context = table.new_zeros(q.num_tables, 0), table.new_zeros(q.num_tables, 1)  # context per slot
    valid = torch.ones(q.num_tables, 1, dtype=torch.bool)  # per slot
    depth = [0]
    for node, parent in enumerate(parents):
        depth.append(depth[parent + 1] + 1)
        here = q.levels[depth[parent + 1]][table, context[:, parent + 1]]
        siblings = [n for n, other in enumerate(parents[:node]) if other == parent]
        elders = torch.where(valid[:, 1:], tokens, -1)[:, siblings]
        choice = torch.where(valid[:, parent + 1, None], pick(here, elders), 0.0)
        if stops is not None:
            choice = torch.where(stops(here, node)[:, None], 0.0, choice)
        absent = (choice.sum(1, keepdim=True) == 0).to(choice.dtype)
        branch, token = torch.cat([choice, absent], 1).nonzero().unbind(1)
        exists = token < q.vocab_size
        weight = weight[branch] * torch.where(exists, choice[branch, token.clamp(max=q.vocab_size - 1)], 1.0)
        token = torch.where(exists, token, 0)
        table, valid, context = table[branch], valid[branch], context[branch]
        tokens = torch.cat([tokens[branch], token[:, None]], 1)
        context = torch.cat([context, context[:, parent + 1, None] * q.base + token[:, None]], 1)
        valid = torch.cat([valid, exists[:, None]], 1)
    expanded = sorted(set(parents))
    declared = labels or q
    rows = [declared.levels[depth[parent + 1]][table, context[:, parent + 1]] for parent in expanded]
    proposal = Proposal(
        tokens=tokens,
        parents=torch.tensor(parents).expand(len(table), -1),
        valid=valid[:, 1:],
        depth=max(depth),
        width=max(list(parents).count(parent) for parent in expanded),
        q=torch.stack(rows, 1),
        q_index=torch.tensor([expanded.index(parent) for parent in parents]).expand(len(table), -1),
        law=Law.IID,
    )
    return Drafted(proposal, table, weight).relabelled(law or LAWS[pick])


class OracleCoins:
    """Coins whose outcomes were fixed beforehand, one branch a row; `weight` becomes the branch's probability."""

    def __init__(self, accepts: Tensor, next_token: Tensor) -> None:
        self.accepts, self.next_token = accepts, next_token  # [B, N] bool, [B] int64
        self.weight = torch.ones(len(next_token), dtype=torch.float64)
        self.doors: list[str] = []

    def bernoulli(self, prob: Tensor) -> Tensor:
        self.doors.append("bernoulli")
        self.weight *= torch.where(self.accepts, prob, 1 - prob).double().prod(1)
        return self.accepts

    def categorical(self, weights: Tensor) -> Tensor:
        self.doors.append("categorical")
        shares = torch.nn.functional.pad(weights.double(), (0, int(self.next_token.max()) + 1 - weights.shape[1]))
        total = shares.sum(1, keepdim=True)
        shares = torch.where(total > 0, shares / total, 0.0)  # no distribution: the branch's weight is lost, and missed
        self.weight *= shares.gather(1, self.next_token[:, None]).squeeze(1)
        return self.next_token


@dataclass(frozen=True)
class Outcomes:
    """The branches of a round that can happen, one a row."""

    base: int
    num_tables: int
    table: Tensor  # [R] int64
    weight: Tensor  # [R] float64
    tokens: Tensor  # [R, D + 1] int64, the output
    length: Tensor  # [R] int64, how many tokens of it there are

    def stopped(self) -> Stopped:
        """The law of the output as it stands, by length."""
        steps = torch.arange(self.tokens.shape[1])
        kept = torch.where(steps < self.length[:, None], self.tokens, 0)
        out = [self.weight.new_zeros(self.num_tables, 1)]
        for length in range(1, self.tokens.shape[1] + 1):
            code = sum(kept[:, i] * self.base ** (length - 1 - i) for i in range(length))
            here = torch.where(self.length == length, self.weight, 0.0)
            mass = self.weight.new_zeros(self.num_tables * self.base**length)
            out.append(mass.index_add(0, self.table * self.base**length + code, here).view(self.num_tables, -1))
        return out

    def expected_accepted(self) -> Tensor:
        """[T] mean number of accepted tokens."""
        return self.weight.new_zeros(self.num_tables).index_add(0, self.table, self.weight * (self.length - 1))


def play(rule: Rule, p: Tables, drafted: Drafted, dtype: torch.dtype = torch.float64) -> Outcomes:
    """One round: every proposal, every outcome of the coins, every next token, through `rule` in one call.

    Nodes that are not there carry NaN, so that a kernel that looks at them is found out.
    """
    proposal, base = drafted.proposal, p.base
    num_proposals, num_nodes = proposal.tokens.shape
    valid = torch.cat([torch.ones(num_proposals, 1, dtype=torch.bool), proposal.valid], 1)
    context, depth, rows = [torch.zeros(num_proposals, dtype=torch.int64)], [0], [p.levels[0][drafted.table, 0]]
    for node, parent in enumerate(proposal.parents[0].tolist()):
        depth.append(depth[parent + 1] + 1)
        context.append(context[parent + 1] * base + proposal.tokens[:, node])
        rows.append(p.levels[depth[-1]][drafted.table, context[-1]])
    probs = torch.where(valid[:, :, None], torch.stack(rows, 1), torch.nan).to(dtype)
    if proposal.q is not None:
        parent_valid = torch.zeros(proposal.q.shape[:2], dtype=torch.bool)
        parent_valid = parent_valid.scatter(1, proposal.q_index, valid.gather(1, proposal.parents + 1))
        proposal = replace(proposal, q=torch.where(parent_valid[:, :, None], proposal.q, torch.nan).to(dtype))
    bits = torch.arange(2**num_nodes)[:, None] >> torch.arange(num_nodes) & 1
    num_branches = len(bits) * base
    which = torch.arange(num_proposals).repeat_interleave(num_branches)
    coins = OracleCoins(
        bits.bool().repeat_interleave(base, 0).repeat(num_proposals, 1),
        torch.arange(base).repeat(num_proposals * len(bits)),
    )
    proposal = select(proposal, which)
    acceptance = rule(probs[which], proposal, coins)
    assert sorted(coins.doors) == sorted(set(coins.doors)), "a second call through a door is not enumerated"
    weight = drafted.weight[which] * coins.weight
    can = (weight != 0).nonzero().squeeze(1)  # NaN included
    tokens, length = acceptance.tokens(proposal)[can], acceptance.num_accepted[can] + 1
    return Outcomes(base, p.num_tables, drafted.table[which][can], weight[can], tokens, length)


def select(proposal: Proposal, rows: Tensor) -> Proposal:
    """The given rows of a proposal."""
    optional = {n: t[rows] for n in ("q", "q_index") if (t := getattr(proposal, n)) is not None}
    parts = {n: getattr(proposal, n)[rows] for n in ("tokens", "parents", "valid")}
    return replace(proposal, **parts, **optional)


def then(first: Stopped, second: Callable[[int], Stopped]) -> Stopped:
    """Two rounds in a row with fresh coins; second(d) is the law of a round from each context of d tokens."""
    num_tables, base = first[1].shape
    out: dict[int, Tensor] = {}
    for d, mass in enumerate(first[1:], start=1):
        for m, more in enumerate(second(d)[1:], start=1):
            joint = (mass.reshape(-1, 1) * more).view(num_tables, -1)
            out[d + m] = out.get(d + m, 0.0) + joint
    return [out.get(d, mass.new_zeros(num_tables, base**d)) for d in range(max(out) + 1)]


def complete(stopped: Stopped, p: Tables, length: int) -> Tensor:
    """Joint law of the first `length` tokens [T, base**length]: longer outputs cut, shorter ones continued from p."""
    total = stopped[0]
    for d in range(1, length + 1):
        total = (total[:, :, None] * p.widened(d - 1)).flatten(1)
        if d < len(stopped):
            total = total + stopped[d]
    for longer in stopped[length + 1 :]:
        total = total + longer.view(total.shape[0], total.shape[1], -1).sum(2)
    return total


def error(law: Tensor, p: Tables) -> float:
    """Largest deviation of a joint law [T, base**length] from the target's, over all tables and outcomes."""
    length = round(np.log(law.shape[1]) / np.log(p.base))
    return float(torch.nan_to_num(law - p.law(length), nan=1.0).abs().max())


def bias(rule: Rule, p: Tables, drafted: Drafted) -> float:
    """error() of one round of `rule` on what was drafted."""
    return error(complete(play(rule, p, drafted).stopped(), p, drafted.proposal.depth + 1), p)
