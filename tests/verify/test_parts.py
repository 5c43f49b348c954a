"""Acceptance over large vocabularies: coin by coin what the rule gives, what it costs in memory, and faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import specdec.verify.blocks as blocks
import specdec.verify.parts as parts
from specdec.sampling import Sampler
from specdec.types import Proposal
from specdec.verify import KeyedCoins, Purpose, greedy, rejection
from specdec.verify.blocks import drawn, largest
from specdec.verify.coins import inverse_cdf
from specdec.verify.parts import rejection_in_parts

VOCAB = 9000  # no multiple of a block
WARPERS: dict[str, list[Any]] = {
    "none": [],
    "temperature": [TemperatureLogitsWarper(0.8)],
    "top-k, top-p": [TemperatureLogitsWarper(0.9), TopKLogitsWarper(50), TopPLogitsWarper(0.9)],
}


def case(seed: int, batch_size: int, num_nodes: int, dtype: torch.dtype, has_q: bool) -> tuple[Tensor, Proposal]:
    """Logits, and a chain drawn from what resembles them; some rows end early."""
    draws = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(batch_size, num_nodes + 1, VOCAB, generator=draws)
    q = (logits[:, :-1] + 0.4 * torch.randn(batch_size, num_nodes, VOCAB, generator=draws)).softmax(-1)
    tokens = torch.zeros(batch_size, 0, dtype=torch.int64)
    if num_nodes:
        tokens = torch.multinomial(q.flatten(0, 1), 1, generator=draws).view(batch_size, num_nodes)
    lengths = torch.randint(num_nodes, (batch_size, 1), generator=draws) + 1 if num_nodes else torch.zeros(1, 1)
    lengths[::2] = num_nodes
    valid = torch.arange(num_nodes) < lengths
    return logits.to(dtype), Proposal.chain(tokens, valid, q if has_q and num_nodes else None)


def both(logits: Tensor, proposal: Proposal, warpers: list[Any], seed: int) -> tuple[Any, Any, Tensor]:
    """`rules.rejection`, the form in parts, and the rows whose q it refuses."""
    sampler = Sampler(warpers, do_sample=True)
    requests, lengths = torch.arange(len(logits)), 5 + torch.arange(len(logits))
    rule = rejection(sampler.probs(logits), proposal, KeyedCoins(seed, requests, lengths))
    ours, unfair = rejection_in_parts(logits, proposal, KeyedCoins(seed, requests, lengths), sampler.probs)
    return rule, ours, unfair


def same(rule: Any, ours: Any) -> bool:
    fields = ("path", "num_accepted", "next_token")
    return all(torch.equal(getattr(rule, field), getattr(ours, field)) for field in fields)


@pytest.fixture(params=[1, 4], ids=["one thread", "four threads"])
def _threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    monkeypatch.setattr(parts, "_PART", 3 * VOCAB)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("has_q", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", WARPERS)
def test_commits_what_the_rule_does(name: str, dtype: torch.dtype, has_q: bool) -> None:
    accepted = ended = 0
    for seed, (batch_size, num_nodes) in enumerate([(1, 0), (3, 1), (1, 4), (7, 5)]):
        logits, proposal = case(seed, batch_size, num_nodes, dtype, has_q)
        rule, ours, unfair = both(logits, proposal, WARPERS[name], seed)
        assert same(rule, ours)
        assert not unfair.any()
        accepted += int(ours.num_accepted.sum())
        ended += int((ours.num_accepted == proposal.valid.sum(1)).sum())
    assert accepted > (3 if has_q else 0) and ended < 12


def test_a_token_that_q_cannot_draw_ends_the_chain() -> None:
    logits, proposal = case(1, 4, 3, torch.float32, True)
    assert proposal.q is not None
    q = proposal.q.scatter(2, proposal.tokens[:, :, None], 0.0)
    rule, ours, _ = both(logits, replace(proposal, q=q), [], 3)
    assert same(rule, ours)
    assert not ours.num_accepted.any()


def test_rows_of_q_in_any_order_and_a_wider_q() -> None:
    in_order = []  # what comes of it where the order is not looked at
    for seed in range(2, 12):
        logits, proposal = case(seed, 4, 3, torch.float32, True)
        assert proposal.q is not None and proposal.q_index is not None
        mixed = replace(proposal, q=proposal.q.flip(1), q_index=2 - proposal.q_index)
        straight, ours, unfair = (*both(logits, proposal, [], seed)[:1], *both(logits, mixed, [], seed)[1:])
        assert same(straight, ours) and not unfair.any()
        in_order.append(same(straight, both(logits, replace(proposal, q=proposal.q.flip(1)), [], seed)[1]))
    assert not all(in_order), "the order makes no difference here"
    for change in (lambda q: torch.nn.functional.pad(q, (0, 7)), lambda q: q[..., : VOCAB - 9]):
        q = change(proposal.q)
        other = replace(proposal, q=q / q.sum(-1, keepdim=True), tokens=proposal.tokens.clamp(max=VOCAB - 10))
        rule, ours, _ = both(logits, other, [], 5)
        assert same(rule, ours)


def test_where_p_is_q() -> None:
    """No residual is left; rounding may still reject."""
    logits, proposal = case(3, 6, 4, torch.float32, True)
    rule, ours, _ = both(logits, replace(proposal, q=logits[:, :-1].softmax(-1)), [], 6)
    assert same(rule, ours)


def test_what_is_no_distribution_is_told() -> None:
    logits, proposal = case(4, 3, 2, torch.float32, True)
    assert proposal.q is not None
    for broken in (2 * proposal.q, proposal.q * torch.nan, proposal.q - 1e-4):
        q = proposal.q.clone()
        q[1, 0] = broken[1, 0]
        assert both(logits, replace(proposal, q=q), [], 7)[2].tolist() == [False, True, False]
    lost = logits.clone()
    lost[2] = torch.nan
    rule, ours, unfair = both(lost, proposal, [], 7)
    assert same(rule, ours) and not unfair.any()
    assert (ours.next_token == -1).tolist() == [False, False, True]


def test_what_lies_behind_a_rejection_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first token that the target cannot say ends every row: one position of logits is read, and none behind it."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    logits, proposal = case(5, 4, 3, torch.float32, True)
    logits[:, 0].scatter_(1, proposal.tokens[:, :1], -torch.inf)
    asked = []

    def probs(scores: Tensor) -> Tensor:
        asked.append(scores.shape[0] * scores.shape[1])
        return scores.softmax(-1)

    ours, _ = rejection_in_parts(logits, proposal, KeyedCoins(1, torch.arange(4), torch.arange(4)), probs)
    assert not ours.num_accepted.any() and sum(asked) == 4


# --- memory -----------------------------------------------------------------------------------------------------------


class Sizes(TorchDispatchMode):
    """The most bytes that one operation's result took of its own."""

    def __init__(self, *known: Tensor | None) -> None:
        super().__init__()
        self._known = {t.untyped_storage().data_ptr() for t in known if t is not None}
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in self._known:
                self.largest = max(self.largest, leaf.untyped_storage().nbytes())
        return out


def peak(act: Callable[[], Any], *known: Tensor | None) -> int:
    with Sizes(*known) as sizes:
        act()
    return sizes.largest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_distributions_of_all_positions_are_made(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_PART", 2 * VOCAB)
    monkeypatch.setattr(blocks, "_PART", 2 * VOCAB)
    logits, proposal = case(6, 8, 4, dtype, True)
    all_positions = 4 * logits.numel()
    sampler = Sampler(WARPERS["temperature"], do_sample=True)
    coins = KeyedCoins(1, torch.arange(8), torch.arange(8))
    known = (logits, proposal.q)
    ours = peak(lambda: rejection_in_parts(logits, proposal, coins, sampler.probs), *known)
    assert ours <= 8 * 2 * VOCAB  # two rows, also in the float64 of the draw
    assert peak(lambda: rejection(sampler.probs(logits), proposal, coins), *known) >= all_positions  # the frame sees it
    fair = peak(lambda: proposal.repaired(VOCAB, checks_q=False), *known)
    assert fair < VOCAB <= peak(lambda: proposal.repaired(VOCAB), *known)


def test_greedy_makes_no_copy() -> None:
    logits, proposal = case(7, 8, 4, torch.bfloat16, False)
    assert peak(lambda: greedy(logits, proposal), logits) < logits.numel()
    assert torch.equal(greedy(logits, proposal).next_token, greedy(logits.float(), proposal).next_token)


# --- searches in two levels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("vocab_size", [40, 8191, 8192, 9000, 9001])
def test_largest_is_argmax(vocab_size: int, dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(vocab_size)
    scores = torch.randn(3, 40, vocab_size, generator=draws).to(dtype)  # in half precision ties are common
    assert torch.equal(largest(scores), scores.float().argmax(-1) if dtype != torch.float64 else scores.argmax(-1))
    flat = torch.zeros(2, vocab_size, dtype=dtype)
    assert largest(flat).tolist() == [0, 0]
    flat[0, vocab_size - 1], flat[1, 7] = 1, torch.nan
    assert largest(flat).tolist() == [vocab_size - 1, 7]
    assert largest(torch.full((1, vocab_size), -torch.inf, dtype=dtype)).tolist() == [0]


@pytest.mark.parametrize("vocab_size", [512, 700, 9001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drawn_inverts_the_same_sum(vocab_size: int, dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(vocab_size)
    weights = torch.randn(50, vocab_size, generator=draws, dtype=dtype).mul(4).exp()
    weights[torch.rand(weights.shape, generator=draws) < 0.5] = 0
    coin = torch.rand(50, generator=draws, dtype=torch.float64)
    coin[0], coin[1] = 0.0, 1 - 2.0**-53
    token = drawn(weights, coin)
    assert torch.equal(token, inverse_cdf(weights, coin))
    assert (weights.gather(1, token[:, None]) > 0).all()
    assert len(token.unique()) > 5


def test_drawn_never_draws_weight_zero_or_from_no_distribution() -> None:
    coins = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2.0**-53], dtype=torch.float64)
    alone = torch.zeros(5, 1500)
    for place in (0, 511, 512, 1499):
        assert drawn(alone.scatter(1, torch.full((5, 1), place), 0.3), coins).tolist() == [place] * 5
    assert drawn(alone, coins).tolist() == [-1] * 5
    for odd in (torch.nan, torch.inf):
        assert drawn(alone.scatter(1, torch.full((5, 1), 600), odd), coins).tolist() == [-1] * 5
    # Halves in blocks 0 and 2: a coin at the border belongs to the second one.
    halves = alone.scatter(1, torch.tensor([[3, 1400]] * 5), 1.0)
    assert drawn(halves, coins).tolist() == [3, 3, 1400, 1400, 1400]


def test_the_doors_draw_as_before_over_large_vocabularies() -> None:
    logits, _ = case(8, 6, 0, torch.float32, False)
    weights = logits[:, 0].softmax(-1)
    coins = KeyedCoins(3, torch.arange(6), torch.arange(6) + 4)
    coin = coins._coins(Purpose.NEXT_TOKEN, 1)[:, 0]
    assert torch.equal(coins.categorical(weights), inverse_cdf(weights, coin))
    some = torch.tensor([4, 1])
    assert torch.equal(coins.categorical(weights[some], some), inverse_cdf(weights[some], coin[some]))
    prob = torch.rand(6, 9, dtype=torch.float64)
    assert torch.equal(coins.bernoulli(prob[some, 3:5], some, first=3), coins.bernoulli(prob)[some, 3:5])
