"""What a model drafter samples is what it declares: every outcome of its draft coins, through the production session.

Each outcome of all draft coins is a row of one batch, so that one `propose` gives every proposal that the session can
make, with its probability; `oracle.play` then enumerates a round of verification over them, for targets of eight kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from lossless.oracle import NUM_KINDS, Drafted, bias, random_tables, select
from models import tiny
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper

import specdec
from specdec.sampling import Sampler
from specdec.state import DecodeState
from specdec.types import Law, Proposal
from specdec.verify import block, rejection

VOCAB = 3
FLAT = TemperatureLogitsWarper(4.0)  # the tiny model is nearly sure of everything
# The session's scores are float32, so that its q adds up to 1 within rounding only.
EXACT, WRONG = 1e-6, 1e-3


class DraftCoins:
    """Row r of V ** N draws the digits of r; `weight` becomes the probability of drawing them."""

    def __init__(self, num_nodes: int) -> None:
        codes = torch.arange(VOCAB**num_nodes)
        self.digits = codes[:, None] // VOCAB ** torch.arange(num_nodes) % VOCAB
        self.weights = (self.digits == 0).double()  # of a coin that is never drawn one outcome counts
        self.drawn: set[int] = set()

    def draft(self, weights: Tensor, node: int) -> Tensor:
        assert node not in self.drawn, "a coin was drawn twice"
        self.drawn.add(node)
        digit, total = self.digits[:, node], weights.double().sum(1)
        chance = weights.double().gather(1, digit[:, None])[:, 0] / total
        # Nothing to draw: one outcome, of which there must be one row.
        self.weights[:, node] = torch.where(total > 0, chance, (digit == 0).double())
        return torch.where(total > 0, digit, -1)


def enumerated(
    drafter: specdec.Drafter, num_nodes: int, limit: int, processors: Sequence[LogitsProcessor] = (FLAT,)
) -> Drafted:
    """Every proposal of a sampling session behind one prompt, for each target's table."""
    coins = DraftCoins(num_nodes)
    rows = len(coins.digits)
    ids = torch.tensor([[1, 0, 2, 1]]).expand(rows, -1)
    state = DecodeState(ids, ids, torch.ones_like(ids).bool(), 20, VOCAB, Sampler(processors, True, rows), 0)
    state.coins = lambda: coins  # type: ignore[assignment, return-value]
    with torch.inference_mode():
        proposal = drafter.start(state).propose(state, [limit] * rows)
    proposal, broken = proposal.repaired(VOCAB)
    proposal.check(rows)
    weight = coins.weights.prod(1)
    assert not broken[weight > 0].any()
    weight = _first_of_each(proposal, coins, weight)
    can = weight.nonzero()[:, 0].repeat(NUM_KINDS)
    table = torch.arange(NUM_KINDS).repeat_interleave(len(can) // NUM_KINDS)
    return Drafted(select(proposal, can), table, weight[can])


def _first_of_each(proposal: Proposal, coins: DraftCoins, weight: Tensor) -> Tensor:
    """Coins of nodes that are not there decide nothing: their outcomes are summed in the row that draws zeros."""
    out = torch.zeros_like(weight)
    there = proposal.valid[:, : coins.digits.shape[1]]
    missing = coins.digits.shape[1] - there.shape[1]  # a chain that ended early has no such nodes
    there = torch.nn.functional.pad(there, (0, missing))
    code = torch.where(there, coins.digits, 0) @ VOCAB ** torch.arange(coins.digits.shape[1])
    return out.index_add(0, code, weight)


def error(drafted: Drafted, rule: Any = rejection) -> float:
    p, _ = random_tables(0, VOCAB, drafted.proposal.depth, num_tables=NUM_KINDS)
    return bias(rule, p, drafted)


DRAFT = tiny("llama", vocab_size=VOCAB)
SHAPES = {"3": [-1, -1, -1], "2,1": [-1, -1, 0, 1], "irregular": [-1, -1, 0, 0, 2], "chain": [-1, 0, 1]}
LAWS = {"iid": Law.IID, "without_replacement": Law.WITHOUT_REPLACEMENT}


@pytest.mark.parametrize("is_confident", [False, True])
@pytest.mark.parametrize("children", LAWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sampled_trees_are_exact(shape: str, children: str, is_confident: bool) -> None:
    parents = SHAPES[shape]
    min_confidence = 0.0 if not is_confident else 0.4 if shape == "2,1" else 0.3  # cuts a part of what there is
    drafter = specdec.TreeDrafter(DRAFT, parents=parents, children=children, min_confidence=min_confidence)
    drafted = enumerated(drafter, len(parents), limit=4)
    assert drafted.proposal.law is LAWS[children]
    assert drafted.weight.sum().item() == pytest.approx(NUM_KINDS)
    assert error(drafted) < EXACT
    assert bool(drafted.proposal.valid.all()) is (shape == "3" or not is_confident)


@pytest.mark.parametrize("children", LAWS)
def test_a_wrong_label_is_found_out(children: str) -> None:
    drafter = specdec.TreeDrafter(DRAFT, parents=[-1, -1, 0, 0], children=children)
    drafted = enumerated(drafter, 4, limit=4)
    assert error(drafted) < EXACT
    if children == "without_replacement":  # the other way round is exact: a repeated sibling counts as absent
        assert error(drafted.relabelled(Law.IID)) > WRONG
    shifted = replace(drafted.proposal, q=drafted.proposal.q.roll(1, 1))
    assert error(replace(drafted, proposal=shifted)) > WRONG


def test_children_beyond_the_support() -> None:
    """Two tokens are possible, and a third child without replacement is none."""
    drafter = specdec.TreeDrafter(DRAFT, parents=[-1, -1, -1, 2], children="without_replacement")
    drafted = enumerated(drafter, 4, limit=4, processors=[FLAT, TopKLogitsWarper(2)])
    tokens, valid = drafted.proposal.tokens, drafted.proposal.valid
    assert valid[:, :2].all() and not valid[:, 2:].any()
    assert (tokens[:, 0] != tokens[:, 1]).all()
    assert error(drafted) < EXACT


def test_rows_near_their_limit_have_fewer_depths() -> None:
    drafter = specdec.TreeDrafter(DRAFT, parents=SHAPES["irregular"], children="iid")
    drafted = enumerated(drafter, 5, limit=2)
    assert drafted.proposal.num_nodes == 4
    assert error(drafted) < EXACT


CHAIN = 4


@pytest.mark.parametrize("rule", [rejection, block])
@pytest.mark.parametrize("min_confidence", [0.0, 0.1, 0.2, 0.4])
def test_chains_that_stop_when_unsure_are_exact(min_confidence: float, rule: Any) -> None:
    drafted = enumerated(specdec.ModelDrafter(DRAFT, min_confidence=min_confidence), CHAIN, limit=CHAIN)
    lengths = drafted.proposal.valid.sum(1)
    assert bool(lengths.min() < lengths.max()) is (min_confidence > 0)
    assert error(drafted, rule) < EXACT


def test_a_stop_that_looks_at_the_sampled_token_is_found_out() -> None:
    """The same bound on the drawn tokens' own probabilities: it must not be exact, or the test above shows nothing."""
    drafted = enumerated(specdec.ModelDrafter(DRAFT), CHAIN, limit=CHAIN)
    proposal = drafted.proposal
    assert proposal.q is not None
    own = proposal.q.gather(2, proposal.tokens[:, :, None])[:, :, 0]
    broken = replace(proposal, valid=own.cumprod(1) >= 0.2, is_whole=False)
    assert error(replace(drafted, proposal=broken)) > WRONG
