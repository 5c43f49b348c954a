"""The rejection rule in parts, for large vocabularies, under the oracle, and as `rules.rejection` branch by branch."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lossless.oracle import OracleCoins, Rule, bias, draft, iid, play, random_tables, top_k
from lossless.test_exact_law import EXACT, chain
from torch import Tensor

import specdec.verify.parts as parts
from specdec.types import Acceptance, Law, Proposal
from specdec.verify import rejection
from specdec.verify.parts import rejection_in_parts


class Collected:
    """Doors that are opened part by part, before the oracle, which weighs a round's coins at once.

    What was never asked has probability zero, as behind a rejection.
    """

    def __init__(self, inner: OracleCoins, p: Tensor, proposal: Proposal) -> None:
        self._inner = inner
        self.prob = torch.zeros(proposal.tokens.shape, dtype=p.dtype)
        width = p.shape[2] if proposal.q is None else max(p.shape[2], proposal.q.shape[2])
        self.weights = torch.zeros(len(p), width, dtype=p.dtype)

    def bernoulli(self, prob: Tensor, rows: Tensor, first: int) -> Tensor:
        nodes = torch.arange(first, first + prob.shape[1])
        assert not self.prob[rows[:, None], nodes].any(), "a coin was flipped twice"
        self.prob[rows[:, None], nodes] = prob
        return self._inner.accepts[rows[:, None], nodes]

    def categorical(self, weights: Tensor, rows: Tensor) -> Tensor:
        self.weights[rows] = weights
        return self._inner.next_token[rows]

    def close(self) -> None:
        self._inner.bernoulli(self.prob)
        self._inner.categorical(self.weights)


def in_parts(p: Tensor, proposal: Proposal, coins: Any) -> Acceptance:
    """The form as a rule over p, whose logarithms are its logits."""
    collected: Any = Collected(coins, p, proposal)
    acceptance, _ = rejection_in_parts(p.log(), proposal, collected, lambda logits: logits.softmax(-1))
    collected.close()
    return acceptance


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def _small_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches in parts of some hundred rows; few rows look at several positions at once where there are threads."""
    monkeypatch.setattr(parts, "_PART", 1 << 10)
    threads = {1: 1, 3: 1 << 16}[request.param]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)


@pytest.mark.usefixtures("_small_parts")
@pytest.mark.parametrize("label", ["sampled", "argmax", "sampled, q withheld"])
@pytest.mark.parametrize(("length", "vocab_size"), [(1, 2), (1, 4), (2, 3), (3, 2)])
def test_chains(length: int, vocab_size: int, label: str) -> None:
    p, q = random_tables(length, vocab_size, length)
    drafted = draft(q, chain(length), top_k if label == "argmax" else iid)
    if label == "sampled, q withheld":
        drafted = drafted.relabelled(Law.GIVEN)
    assert bias(in_parts, p, drafted) < EXACT


@pytest.mark.usefixtures("_small_parts")
@pytest.mark.parametrize("pick", [iid, top_k])
def test_chains_that_end_early(pick: Any) -> None:
    p, q = random_tables(20, 3, 3)
    drafted = draft(q, chain(3), pick, stops=lambda row, node: row.amax(1) < 0.5)
    assert len(drafted.proposal.valid.sum(1).unique()) > 1
    assert bias(in_parts, p, drafted) < EXACT


@pytest.mark.parametrize(("vocab_size", "draft_vocab_size"), [(2, 3), (3, 2), (4, 2)])
def test_draft_vocabulary_of_another_size(vocab_size: int, draft_vocab_size: int) -> None:
    p, q = random_tables(50, vocab_size, 2, draft_vocab_size)
    assert bias(in_parts, p, draft(q, chain(2), iid)) < EXACT


def test_branch_by_branch_as_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the same law: each branch of the coins ends alike, where all of them are asked for."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 << 16)
    p, q = random_tables(21, 3, 2)
    drafted = draft(q, chain(2), iid)
    ours, rules = (play(rule, p, drafted) for rule in (in_parts, rejection))
    mine, theirs = ours.weight > EXACT, rules.weight > EXACT  # p = q leaves branches that rounding alone makes possible
    length = ours.length[mine]
    assert torch.equal(length, rules.length[theirs])
    assert torch.allclose(ours.weight[mine], rules.weight[theirs], atol=EXACT)
    steps = torch.arange(ours.tokens.shape[1])
    assert not ((ours.tokens[mine] != rules.tokens[theirs]) & (steps < length[:, None])).any()


def broken(old: str, new: str) -> Rule:
    """The form with one piece of its source replaced."""
    source = pathlib.Path(parts.__file__).read_text()
    assert source.count(old) == 1, f"{old!r} is not there once"
    scope: dict[str, Any] = {"__name__": "specdec.verify.parts"}
    exec(compile(source.replace(old, new), "broken", "exec"), scope)
    form: Callable[..., Any] = scope["rejection_in_parts"]

    def rule(p: Tensor, proposal: Proposal, coins: Any) -> Acceptance:
        collected: Any = Collected(coins, p, proposal)
        acceptance, _ = form(p.log(), proposal, collected, lambda logits: logits.softmax(-1))
        collected.close()
        return acceptance

    return rule


_OTHER = "other = tokens[part].gather(1, at[:, None]) if q is None else _places(q, part, at)"
_P_X = "_at(p[:, : tokens.shape[1]], tokens)"
BROKEN = {
    "ratio upside down": ("p_x / q_x", "q_x / p_x"),
    "residual is p": ("(here - other).clamp_(min=0.0)", "here.clone()"),
    "residual of the first position": (_OTHER, _OTHER.replace("part, at)", "part, at * 0)")),
    "a late rejection draws from p": ("ended = (count == valid.sum(1))[stops]", "ended = (count >= 1)[stops]"),
    "rejection draws from p": ("((stops[ended], False), (stops[~ended], True))", "((stops, False),)"),
    "the token that was rejected can come again": ("here.gather(1, other) * 0)", "here.gather(1, other))"),
    "p from the position before": (_P_X, _P_X.replace("]]", "]].roll(1, 1)")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_form_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 << 16)
    rule = broken(*BROKEN[name])
    worst = 0.0
    for seed, pick in ((30, iid), (31, top_k)):
        p, q = random_tables(seed, 3, 2, num_tables=8)
        worst = max(worst, bias(rule, p, draft(q, chain(2), pick)))
    assert worst > 1e-3
