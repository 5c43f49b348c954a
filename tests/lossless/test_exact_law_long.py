"""The long axis of the exact law: every rule over many more tables; and truncation on one side only, at each change.

With those of `test_exact_law.py` more than 20,000 cases; `docs/exactness.md` has the count.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lossless.oracle import Pick, Rule, Tables, bias, complete, draft, error, iid, random_tables, then, top_k
from lossless.test_exact_law import EXACT, ROUNDS, RULES, TREE_CASES, TREES, _round, chain, depth_of, tree_id

from specdec.types import Law
from specdec.verify import rejection

SEEDS = range(1000, 1006)


def truncated(tables: Tables, keep: int) -> Tables:
    """Each distribution's `keep` most likely tokens, as top-k warpers leave them."""
    levels = []
    for level in tables.levels:
        best, tokens = level.topk(min(keep, level.shape[-1]), dim=-1)
        left = torch.zeros_like(level).scatter(-1, tokens, best)
        levels.append(left / left.sum(-1, keepdim=True))
    return Tables(tables.base, levels)


@pytest.mark.parametrize("side", ["target", "draft", "both"])
@pytest.mark.parametrize(
    ("rule", "parents"), [("rejection", chain(2)), ("block", chain(2)), ("rejection", (-1, -1, 0))], ids=tree_id
)
def test_truncation_on_either_side(rule: str, parents: tuple[int, ...], side: str) -> None:
    p, q = random_tables(90, 4, 2)
    p, q = (p if side == "draft" else truncated(p, 2)), (q if side == "target" else truncated(q, 2))
    assert bias(RULES[rule], p, draft(q, parents, iid)) < EXACT


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("label", ["sampled", "argmax", "sampled, q withheld"])
@pytest.mark.parametrize("vocab_size", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_chains(seed: int, length: int, vocab_size: int, label: str, rule: str) -> None:
    p, q = random_tables(seed, vocab_size, length)
    drafted = draft(q, chain(length), top_k if label == "argmax" else iid)
    if label == "sampled, q withheld":
        drafted = drafted.relabelled(Law.GIVEN)
    assert bias(RULES[rule], p, drafted) < EXACT


@pytest.mark.long
@pytest.mark.parametrize(("tree", "vocab_size", "pick"), TREE_CASES, ids=tree_id)
@pytest.mark.parametrize("seed", SEEDS)
def test_trees(seed: int, tree: str, vocab_size: int, pick: Pick) -> None:
    parents = TREES[tree]
    p, q = random_tables(seed, vocab_size, depth_of(parents))
    assert bias(rejection, p, draft(q, parents, pick)) < EXACT


@pytest.mark.long
@pytest.mark.parametrize("second", ROUNDS)
@pytest.mark.parametrize("first", ROUNDS)
@pytest.mark.parametrize("seed", SEEDS[:2])
def test_two_rounds_in_a_row(seed: int, first: str, second: str) -> None:
    p, q = random_tables(seed, 2, 5)
    one: tuple[Rule, tuple[int, ...], Any] = ROUNDS[first]
    two: tuple[Rule, tuple[int, ...], Any] = ROUNDS[second]
    begun = _round(*one, p, q).stopped()
    both = then(begun, lambda d: _round(*two, p.below(d), q.below(d)).stopped())
    assert error(complete(both, p, 6), p) < EXACT
