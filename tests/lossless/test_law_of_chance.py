"""Compiled rounds' own acceptance under the oracle: the module that becomes the graph of chance, branch by branch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lossless.oracle import OracleCoins, Rule, bias, draft, iid, play, random_tables, top_k
from lossless.test_exact_law import EXACT, chain
from torch import Tensor
from torch.nn import functional as F
from transformers import TemperatureLogitsWarper

from specdec.compiled.chance import ChanceGraph, Recipe
from specdec.types import Acceptance, Law, Proposal
from specdec.verify import Coins, rejection

Patch = pytest.MonkeyPatch
chance = importlib.import_module("specdec.compiled.chance")  # the package has a function of that name


class _WithPadding:
    """The graph has a node more than the proposal: the last one never counts, and has no coin in the oracle."""

    def __init__(self, coins: Any) -> None:
        self._coins = coins
        self.categorical = coins.categorical

    def bernoulli(self, prob: Tensor) -> Tensor:
        assert not prob[:, -1].any()
        return F.pad(self._coins.bernoulli(prob[:, :-1]), (0, 1))


def of_graph(patch: Patch, recipe: Recipe | None = None) -> Rule:
    """The graph as a rule over p, whose logarithms are its logits."""
    graph = ChanceGraph(recipe or Recipe("", [], []))

    def rule(p: Tensor, proposal: Proposal, coins: Coins) -> Acceptance:
        patch.setattr(chance, "_NamedCoins", lambda *_: _WithPadding(coins))
        rows = torch.zeros(len(p), dtype=torch.int64)
        nothing = torch.zeros(len(p), 1, p.shape[2], dtype=p.dtype)
        outcome, ends, _ = graph(
            p.log(),
            F.pad(proposal.tokens, (1, 0)),
            proposal.valid.cumprod(1).sum(1),
            nothing if proposal.q is None else proposal.q,
            torch.tensor([proposal.q is None]),
            rows[:1],
            rows,
            rows,
            torch.tensor([2, 0]),
            rows,
            torch.tensor((recipe.numbers if recipe else []), dtype=p.dtype),
        )
        num_accepted, tokens = outcome[:, 1], outcome[:, 3:]
        assert torch.equal(ends, num_accepted + 1)
        steps = torch.arange(proposal.num_nodes)
        path = torch.where(steps < num_accepted[:, None], steps, -1)
        return Acceptance(path, num_accepted, tokens.gather(1, num_accepted[:, None])[:, 0])

    return rule


@pytest.mark.parametrize("label", ["sampled", "argmax", "sampled, q withheld"])
@pytest.mark.parametrize("vocab_size", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_chains(length: int, vocab_size: int, label: str, monkeypatch: Patch) -> None:
    p, q = random_tables(length, vocab_size, length)
    drafted = draft(q, chain(length), top_k if label == "argmax" else iid)
    if label == "sampled, q withheld":
        drafted = drafted.relabelled(Law.GIVEN)
    assert bias(of_graph(monkeypatch), p, drafted) < EXACT


@pytest.mark.parametrize("pick", [iid, top_k])
def test_chains_that_end_early(pick: Any, monkeypatch: Patch) -> None:
    p, q = random_tables(20, 3, 3)
    drafted = draft(q, chain(3), pick, stops=lambda row, node: row.amax(1) < 0.5)
    assert len(drafted.proposal.valid.sum(1).unique()) > 1
    assert bias(of_graph(monkeypatch), p, drafted) < EXACT


def test_branch_by_branch_as_the_rule(monkeypatch: Patch) -> None:
    """Not only the same law: each branch of the coins ends alike."""
    p, q = random_tables(21, 3, 2)
    drafted = draft(q, chain(2), iid)
    ours, rules = (play(rule, p, drafted) for rule in (of_graph(monkeypatch), rejection))
    # Where p = q rounding leaves some branches that are next to impossible.
    mine, theirs = ours.weight > EXACT, rules.weight > EXACT
    length = ours.length[mine]
    assert torch.equal(length, rules.length[theirs])
    assert torch.allclose(ours.weight[mine], rules.weight[theirs], atol=EXACT)
    steps = torch.arange(ours.tokens.shape[1])
    assert not ((ours.tokens[mine] != rules.tokens[theirs]) & (steps < length[:, None])).any()


def test_a_temperature_is_the_targets(monkeypatch: Patch) -> None:
    """The graph's own number, on its side alone: the law is that of the warmer target."""
    p, q = random_tables(22, 3, 2)
    warm = type(p)(p.base, [(level.log() / 2).softmax(-1) for level in p.levels])
    recipe = Recipe.of([TemperatureLogitsWarper(2.0)])
    assert isinstance(recipe, Recipe)
    inner = of_graph(monkeypatch, recipe)

    def rule(probs: Tensor, proposal: Proposal, coins: Coins) -> Acceptance:
        return inner(probs**2, proposal, coins)  # log p of the colder one, but for a constant

    assert bias(rule, warm, draft(q, chain(2), iid)) < EXACT
    assert bias(inner, warm, draft(q, chain(2), iid)) > 1e-3


def _zero(*_: Any) -> Tensor:
    return torch.zeros(1, 2, dtype=torch.float64)


@pytest.mark.parametrize("is_given", [True, False])
def test_a_coin_of_zero_rejects_what_the_target_cannot_say(is_given: bool, monkeypatch: Patch) -> None:
    monkeypatch.setattr(chance, "uniform", _zero)
    one = torch.tensor([0])
    q = torch.tensor([[[0.5, 0.5, 0.0]]]) if not is_given else torch.zeros(1, 1, 3)
    logits = torch.tensor([[[-torch.inf, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    graph: Callable[..., Any] = ChanceGraph(Recipe("", [], []))
    coins = [one, one, one, torch.tensor([2, 0])]
    monkeypatch.setattr(chance, "inverse_cdf", lambda weights, _: weights.argmax(-1))
    tokens, count = torch.tensor([[1, 0]]), torch.tensor([1])
    outcome, _, _ = graph(logits, tokens, count, q, torch.tensor([is_given]), *coins, one, torch.zeros(0))
    assert outcome[0, :3].tolist() == [1, 0, 0]
    assert outcome[0, 3] != 0


def test_a_broken_graph_is_found_out(monkeypatch: Patch) -> None:
    """The frame above tells: with the first token's q for all it is biased."""
    p, q = random_tables(23, 3, 2)
    drafted = draft(q, chain(2), iid)
    inner = of_graph(monkeypatch)

    def rule(probs: Tensor, proposal: Proposal, coins: OracleCoins) -> Acceptance:
        assert proposal.q is not None
        first = proposal.q[:, :1].expand_as(proposal.q)
        return inner(probs, type(proposal).chain(proposal.tokens, proposal.valid, first), coins)

    assert bias(rule, p, drafted) > 1e-3
