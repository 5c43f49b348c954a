"""Many G-tests at once through the real coins, held to one level for the whole suite (Holm).

Each is a strategy on a table of its own: joint tokens of n requests against the target's law. At each change 37 of
200,000 requests, beside the three in `test_gtests.py`; the long run has 200 of two million.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pytest
import torch
from lossless.oracle import Rule, Tables, random_tables
from lossless.test_gtests import (
    ALPHA,
    PositionCoins,
    Propose,
    decode,
    iid_siblings,
    p_value,
    pruned_top_k,
    sampled_chain,
)
from torch import Tensor

from specdec.types import Law, Proposal
from specdec.verify import KeyedCoins, block, rejection


def argmax_chain(q: Tables, context: Tensor, begun: int, room: int, coins: KeyedCoins) -> Proposal:
    """The two likeliest tokens in a row, not drawn."""
    tokens: list[Tensor] = []
    for node in range(min(2, room)):
        tokens.append(q.levels[begun + node][0, context].argmax(1))
        context = context * q.base + tokens[-1]
    return Proposal.chain(torch.stack(tokens, 1))


def ragged_chain(q: Tables, context: Tensor, begun: int, room: int, coins: KeyedCoins) -> Proposal:
    """As long as the request's number says: rows of one batch draft nothing, one token or two."""
    proposal = sampled_chain(q, context, begun, room, coins)
    steps = torch.arange(proposal.num_nodes)
    return Proposal.chain(proposal.tokens, steps < (coins.requests % 3)[:, None], proposal.q)


def distinct_siblings(q: Tables, context: Tensor, begun: int, room: int, coins: KeyedCoins) -> Proposal:
    """Three children drawn without replacement."""
    law = q.levels[begun][0, context]
    left, tokens = law, []
    for node in range(3):
        tokens.append(coins.draft(left, node))
        left = left.scatter(1, tokens[-1][:, None], 0.0)
    drawn = torch.stack(tokens, 1)
    return Proposal(
        tokens=drawn,
        parents=torch.full_like(drawn, -1),
        valid=torch.ones_like(drawn, dtype=torch.bool),
        depth=1,
        width=3,
        q=law[:, None],
        q_index=torch.zeros_like(drawn),
        law=Law.WITHOUT_REPLACEMENT,
    )


AT_ONCE = 200_000  # requests, so that what they need stays below a gigabyte

# Rule, drafter, vocabulary and length.
SCENES: dict[str, tuple[Rule, Propose, int, int]] = {
    "chain": (rejection, sampled_chain, 3, 4),
    "block": (block, sampled_chain, 2, 5),
    "given chain": (rejection, argmax_chain, 3, 4),
    "given block": (block, argmax_chain, 2, 5),
    "ragged chain": (rejection, ragged_chain, 3, 4),
    "ragged block": (block, ragged_chain, 2, 5),
    "pruned tree": (rejection, pruned_top_k, 4, 3),
    "i.i.d. siblings": (rejection, iid_siblings, 4, 3),
    "distinct siblings": (rejection, distinct_siblings, 4, 3),
}


def p_values(tests: Iterable[int], n: int) -> dict[str, float]:
    """Of scene after scene, each time around on another table and with another seed; n: a multiple of 200,000."""
    out = {}
    names = list(SCENES)
    for i in tests:
        name, turn = names[i % len(names)], i // len(names)
        rule, propose, vocab_size, length = SCENES[name]
        p, q = random_tables(100 + i, vocab_size, length, num_tables=1)
        codes = [
            decode(p, q, length, rule, propose, KeyedCoins, AT_ONCE, seed=1 + i, first=first)
            for first in range(0, n, AT_ONCE)
        ]
        out[f"{name} {turn}"] = p_value(torch.cat(codes), p.law(length)[0])
    return out


def rejected(values: Mapping[str, float], alpha: float = ALPHA) -> Sequence[str]:
    """Holm's procedure: what is refused so that any false alarm has probability alpha in all."""
    out = []
    for i, (name, value) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        if value > alpha / (len(values) - i):
            break
        out.append(name)
    return out


def test_joint_laws() -> None:
    values = p_values(range(37), 200_000)
    assert len(values) == 37
    assert rejected(values) == []


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, 200, 20))
def test_joint_laws_of_two_million(first: int) -> None:
    """Twenty of the 200, at their tenth of the level, so that workers share them."""
    values = p_values(range(first, first + 20), 2_000_000)
    assert len(values) == 20
    assert rejected(values, ALPHA / 10) == []


def test_one_that_is_wrong_is_found_among_them() -> None:
    """Coins of a rejected tail drawn again, with block verification: of that scene, and of no other."""
    values = {f"right {i}": 0.01 + i / 40 for i in range(36)}
    rule, propose, vocab_size, length = SCENES["block"]
    p, q = random_tables(7, vocab_size, length, num_tables=1)
    codes = decode(p, q, length, rule, propose, PositionCoins, 100_000)
    values["reused coins"] = p_value(codes, p.law(length)[0])
    assert rejected(values) == ["reused coins"]


def test_holm() -> None:
    """From the smallest up, each against what is left of alpha, and none behind the first that passes."""
    values = {"a": 0.009, "b": 0.02, "c": 0.026, "d": 0.5}
    assert rejected(values, alpha=0.05) == ["a"]
    assert rejected({**values, "b": 0.0166}, alpha=0.05) == ["a", "b"]
    assert rejected({**values, "a": 0.013}, alpha=0.05) == []
