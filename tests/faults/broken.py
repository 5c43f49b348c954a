"""Proposals that break the contract, each made of a right one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from models import VOCAB_SIZE
from torch import Tensor

import specdec
from specdec.types import MAX_NODES

Proposal, Law = specdec.Proposal, specdec.Law
Make = Callable[[specdec.Proposal, int], Any]  # a right proposal, the most that it may be deep


def _tokens(change: Callable[[Tensor], Any]) -> Make:
    return lambda right, _: replace(right, tokens=change(right.tokens))


def _first_id(token: int) -> Make:
    """The first row's first token is another."""

    def make(right: specdec.Proposal, _: int) -> specdec.Proposal:
        tokens = right.tokens.clone()
        tokens[0, 0] = token
        return replace(right, tokens=tokens)

    return make


def with_q(change: Callable[[Tensor, Tensor], Tensor] = lambda q, _: q) -> Make:
    """As if its tokens had been drawn from one-hot distributions mixed with even ones; change gets q and the tokens."""

    def make(right: specdec.Proposal, _: int) -> specdec.Proposal:
        q = 0.5 * torch.nn.functional.one_hot(right.tokens, VOCAB_SIZE).double() + 0.5 / VOCAB_SIZE
        return Proposal.chain(right.tokens, right.valid, change(q, right.tokens))

    return make


def _first_q(value: float) -> Make:
    """The first row's first distribution has a broken entry, away from its token."""

    def change(q: Tensor, tokens: Tensor) -> Tensor:
        q[0, 0, (tokens[0, 0] + 1) % VOCAB_SIZE] = value
        return q

    return with_q(change)


def _zero_at_own(q: Tensor, tokens: Tensor) -> Tensor:
    own = q[0, 0, tokens[0, 0]].clone()
    q[0, 0, tokens[0, 0]] = 0
    q[0, 0, (tokens[0, 0] + 1) % VOCAB_SIZE] += own
    return q


def _tree(parents: list[int], depth: int, width: int) -> Make:
    """Different tokens on the given parents in every row."""

    def make(right: specdec.Proposal, _: int) -> specdec.Proposal:
        size = len(right.tokens), len(parents)
        tokens = torch.arange(2, 2 + size[1]).expand(size).contiguous()
        hung = torch.tensor(parents).expand(size).contiguous()
        return Proposal(tokens, hung, torch.ones(size, dtype=torch.bool), depth, width)

    return make


def _index_outside(right: specdec.Proposal, most: int) -> specdec.Proposal:
    made = with_q()(right, most)
    assert made.q_index is not None
    return replace(made, q_index=made.q_index + made.num_nodes)


def _nowhere(right: specdec.Proposal, _: int) -> specdec.Proposal:
    return Proposal.chain(right.tokens.to("meta"))


def _lists(right: specdec.Proposal, _: int) -> Any:
    return Proposal(right.tokens.tolist(), right.parents, right.valid, right.depth, right.width)  # type: ignore[arg-type]


def _too_deep(right: specdec.Proposal, most: int) -> specdec.Proposal:
    return Proposal.chain(torch.full((len(right.tokens), most + 1), 3))


def _too_many(right: specdec.Proposal, _: int) -> specdec.Proposal:
    return _tree([-1] * (MAX_NODES + 1), 1, MAX_NODES + 1)(right, 1)


# Whatever the call is, these are breaches that must be told.
BREACHES: dict[str, Make] = {
    "no Proposal": lambda right, _: None,
    "a tensor": lambda right, _: right.tokens,
    "lists for tensors": _lists,
    "id -1": _first_id(-1),
    "id V": _first_id(VOCAB_SIZE),
    "id V + 1": _first_id(VOCAB_SIZE + 1),
    "tokens int32": _tokens(lambda t: t.int()),
    "tokens float": _tokens(lambda t: t.double()),
    "valid int64": lambda right, _: replace(right, valid=right.valid.long()),
    "a row too many": lambda right, _: Proposal.chain(torch.cat([right.tokens, right.tokens[:1]])),
    "a row too few": lambda right, _: Proposal.chain(right.tokens[1:]),
    "one dimension": _tokens(lambda t: t[0]),
    "another device": _nowhere,
    "too deep": _too_deep,
    "too many nodes": _too_many,
    "depth 0": lambda right, _: replace(right, depth=0),
    "width 0.5": lambda right, _: replace(right, width=0.5),  # type: ignore[arg-type]
    "more siblings than width": _tree([-1, -1, -1], 1, 2),
    "forward parent": _tree([1, -1], 1, 2),
    "own parent": _tree([-1, 1], 1, 2),
    "parent -2": _tree([-1, -2], 1, 2),
    "a tree called a chain": _tree([-1, -1], 1, 1),
    "q NaN": _first_q(float("nan")),
    "q inf": _first_q(float("inf")),
    "q negative": _first_q(-0.25),
    "q sums to 2": with_q(lambda q, _: 2 * q),
    "q without rows": with_q(lambda q, _: q[:, :0]),
    "q of no tokens": with_q(lambda q, _: q[:, :, :0]),
    "q of another batch": with_q(lambda q, _: torch.cat([q, q[:1]])),
    "q of integers": with_q(lambda q, _: q.round().long()),
    "q_index outside": _index_outside,
    "q without an index": lambda right, most: replace(with_q()(right, most), q_index=None),
    "a law without q": lambda right, _: replace(right, law=Law.IID, q=None, q_index=None),
}
# Odd, and right: the output must not know.
ODD: dict[str, Make] = {
    "q zero at its own token": with_q(_zero_at_own),
    "nothing valid": lambda right, _: replace(right, valid=torch.zeros_like(right.valid)),
    "nothing at all": lambda right, _: Proposal.empty(len(right.tokens), torch.device("cpu")),
    "the same token again and again": _tokens(lambda t: torch.full_like(t, 7)),
}
# Where a model holds no trees, a tree that is deeper than it says is a chain of the depth that it says.
EITHER: dict[str, Make] = {"deeper than depth": _tree([-1, 0], 1, 2)}
