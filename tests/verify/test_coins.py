"""The coins are uniform, independent across every part of their name, and no name is used twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import prompts, tiny
from scipy.stats import chi2
from torch import Tensor

import specdec
from specdec.types import Law, Proposal
from specdec.verify import KeyedCoins, Purpose, block, coins, rejection
from specdec.verify.coins import inverse_cdf, uniform

N = 200_000
ALPHA = 1e-6
SETTINGS = settings(max_examples=300, deadline=None, derandomize=True, database=None)
Key = tuple[int, ...]


def _chi_square(cells: Tensor, num_cells: int) -> float:
    """p-value of outcomes [n] in num_cells equally likely cells."""
    observed = torch.bincount(cells, minlength=num_cells).double()
    expected = len(cells) / num_cells
    return float(chi2.sf(float(((observed - expected) ** 2 / expected).sum()), num_cells - 1))


def _key(part: str, offset: int = 0) -> list[Tensor | int]:
    """The key (request, length, purpose, node) with one part counting up from `offset`."""
    count = torch.arange(N) + offset
    return {
        "request": [count, 10, 1, 0],
        "length": [torch.tensor(3), count, 1, 0],
        "purpose": [torch.tensor(3), 10, count, 0],
        "node": [torch.tensor(3), 10, 1, count],
    }[part]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("part", ["request", "length", "purpose", "node"])
def test_uniform_along_every_part(part: str, seed: int) -> None:
    """Also in the bits that decide among rare tokens: the last of the 53."""
    coin = uniform(seed, *_key(part))
    assert coin.dtype == torch.float64
    assert 0 <= coin.min() <= coin.max() < 1
    assert _chi_square((coin * 1000).long(), 1000) > ALPHA
    assert _chi_square((coin * 2**53).long() % 256, 256) > ALPHA


def _joint(one: Tensor, other: Tensor) -> float:
    return _chi_square((one * 16).long() * 16 + (other * 16).long(), 256)


@pytest.mark.parametrize("neighbour", ["request", "length", "purpose", "node"])
@pytest.mark.parametrize("part", ["request", "length", "purpose", "node"])
def test_neighbours_are_independent(part: str, neighbour: str) -> None:
    """Coins whose names differ by one in one part, or by +1 and -1 in two: sums of parts would collide there."""
    coin = uniform(5, *_key(part, offset=1))
    near = _key(part, offset=0 if part != neighbour else 2)
    index = ["request", "length", "purpose", "node"].index(neighbour)
    if part != neighbour:
        near[index] = near[index] + 1
    assert _joint(coin, uniform(5, *near)) > ALPHA
    if part != neighbour:
        near = _key(part, offset=1)
        near[index] = near[index] + 1
        assert _joint(coin, uniform(5, *near)) > ALPHA


def test_seeds_are_independent() -> None:
    key = _key("request", offset=1)
    assert _joint(uniform(0, *key), uniform(1, *key)) > ALPHA
    assert _joint(uniform(7, *key), uniform(-7, *key)) > ALPHA


def test_the_next_seed_is_not_the_next_request() -> None:
    assert _joint(uniform(0, *_key("request", offset=1)), uniform(1, *_key("request"))) > ALPHA


def test_mixing_is_splitmix64() -> None:
    """torch's 64-bit products wrap and its shifts are arithmetic: compared with plain integers."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    values = [0, 1, -1, 2**62, -(2**63), 0x1234_5678_9ABC_DEF, -987_654_321]
    assert [x % 2**64 for x in coins._mix(torch.tensor(values)).tolist()] == [mix(x % 2**64) for x in values]


# --- names ------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Key]:
    """Every key (seed, request, length, purpose, node) that decides something, in order."""
    keys: list[Key] = []

    def record(method: str, purpose: Purpose, nodes: Callable[..., Iterable[int]]) -> None:
        original = getattr(KeyedCoins, method)

        def recording(self: KeyedCoins, weights: Tensor, *node: int, **named: int) -> Tensor:
            rows = zip(self.requests.tolist(), self.lengths.tolist(), strict=True)
            which = list(nodes(weights, *node, *named.values()))
            keys.extend((self.seed, request, length, int(purpose), n) for request, length in rows for n in which)
            return original(self, weights, *node, **named)

        monkeypatch.setattr(KeyedCoins, method, recording)

    record("bernoulli", Purpose.ACCEPT, lambda prob: range(prob.shape[1]))
    record("categorical", Purpose.NEXT_TOKEN, lambda weights: [0])
    record("draft", Purpose.DRAFT, lambda weights, node: [node])
    return keys


def _law(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    return torch.rand(*shape, 5, generator=random, dtype=torch.float64).square() + 1e-3


def _round(dice: KeyedCoins, kind: str, random: torch.Generator) -> Tensor:
    """One round of sampled drafts; [B] how many tokens it commits."""
    batch_size = len(dice.requests)
    q = _law((batch_size, 3), random)
    q = q / q.sum(-1, keepdim=True)
    p = _law((batch_size, 4), random)
    p = p / p.sum(-1, keepdim=True)
    if kind == "plain":
        return rejection(p[:, :1], Proposal.empty(batch_size, p.device), dice).num_accepted + 1
    tokens = torch.stack([dice.draft(q[:, 0 if kind == "siblings" else node], node) for node in range(3)], 1)
    if kind == "siblings":
        parents, index = torch.full_like(tokens, -1), torch.zeros_like(tokens)
        proposal = Proposal(tokens, parents, tokens >= 0, depth=1, width=3, q=q, q_index=index, law=Law.IID)
    else:
        proposal = Proposal.chain(tokens, q=q)
    return (block if kind == "block" else rejection)(p, proposal, dice).num_accepted + 1


def test_no_key_is_drawn_twice(drawn: list[Key]) -> None:
    """Rounds of every kind in turn; rows advance by what they accept, leave, and change places."""
    random = torch.Generator().manual_seed(0)
    requests, lengths = torch.arange(6), torch.tensor([4, 4, 5, 7, 4, 9])
    kinds = ["chain", "siblings", "plain", "block"]
    for step in range(40):
        lengths = lengths + _round(KeyedCoins(11, requests, lengths), kinds[step % 4], random)
        if step % 10 == 9:
            order = torch.randperm(len(requests), generator=random)[:-1]
            requests, lengths = requests[order], lengths[order]
    assert len(drawn) > 500
    assert len(set(drawn)) == len(drawn)
    assert {key[3] for key in drawn} == {int(purpose) for purpose in Purpose}
    _round(KeyedCoins(11, requests, lengths - 1), "chain", random)  # a round that begins where an earlier one did
    assert len(set(drawn)) < len(drawn)


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_no_key_is_drawn_twice_by_generate(rule: Literal["rejection", "block"], drawn: list[Key]) -> None:
    specdec.generate(
        tiny("llama"),
        **prompts(3),
        drafter=tiny("llama", noise=0.05),
        num_draft_tokens=3,
        rule=rule,
        do_sample=True,
        max_new_tokens=24,
    )
    assert len(drawn) > 3 * 24
    assert len(set(drawn)) == len(drawn)


def test_a_rows_coins_do_not_depend_on_the_batch() -> None:
    """Nor on how many nodes the others propose."""
    requests, lengths = torch.tensor([4, 0, 9]), torch.tensor([17, 3, 17])
    weights = _law((3,), torch.Generator().manual_seed(1))
    prob = torch.full((3, 64), 0.5)
    together, alone = KeyedCoins(3, requests, lengths), KeyedCoins(3, requests[1:2], lengths[1:2])
    assert torch.equal(together.bernoulli(prob)[1:2, :5], alone.bernoulli(prob[1:2, :5]))
    assert torch.equal(together.categorical(weights)[1:2], alone.categorical(weights[1:2]))
    assert torch.equal(together.draft(weights, 2)[1:2], alone.draft(weights[1:2], 2))
    assert not torch.equal(together.bernoulli(prob)[0], together.bernoulli(prob)[2])


def test_drafts_do_not_share_the_verifications_coins() -> None:
    """A draft token drawn with the coin that judges it, or with the next token's, would bias the output."""
    dice = KeyedCoins(0, torch.arange(N), torch.full((N,), 6))
    weights = torch.full((N, 16), 1 / 16)
    drafted, chosen = dice.draft(weights, 0), dice.categorical(weights)
    accept = torch.stack([dice.bernoulli(torch.full((N, 1), (i + 1) / 16))[:, 0] for i in range(16)]).sum(0) - 1
    accept = 15 - accept.clamp(max=15)  # the sixteenth that node 0's coin lies in
    for one, other in ((drafted, chosen), (drafted, accept), (chosen, accept), (drafted, dice.draft(weights, 1))):
        assert _chi_square(one * 16 + other, 256) > ALPHA


# --- inverse_cdf ------------------------------------------------------------------------------------------------


@SETTINGS
@given(
    weights=st.lists(st.floats(0, 1e6) | st.just(0.0), min_size=1, max_size=9).filter(any),
    coin=st.floats(0, 1, exclude_max=True),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@example(weights=[0.0, 5e-324, 0.0], coin=1 - 2**-53, dtype=torch.float64)
@example(weights=[0.0, 1.0, 0.0], coin=0.0, dtype=torch.float32)
@example(weights=[1e6, 5e-324, 0.0], coin=1 - 2**-53, dtype=torch.float64)
def test_a_token_of_weight_zero_is_never_drawn(weights: list[float], coin: float, dtype: torch.dtype) -> None:
    row = torch.tensor([weights], dtype=dtype)
    index = int(inverse_cdf(row, torch.tensor([coin], dtype=torch.float64)))
    if row.sum() > 0:
        assert row[0, index] > 0
    else:
        assert index == -1  # what was left underflowed in float32


def test_a_large_vocabulary_with_few_survivors() -> None:
    """Top-k leaves most of 150,000 tokens without weight; coins at both ends of [0, 1) are the risky ones."""
    random = torch.Generator().manual_seed(0)
    weights = torch.zeros(64, 150_000)
    survivors = torch.randint(150_000, (64, 40), generator=random)
    weights.scatter_(1, survivors, torch.rand(64, 40, generator=random))
    for coin in (0.0, 2.0**-53, 0.5, 1 - 2.0**-53):
        index = inverse_cdf(weights, torch.full((64,), coin, dtype=torch.float64))
        assert (weights.gather(1, index[:, None]) > 0).all()


def test_each_token_gets_its_share_of_the_coins() -> None:
    weights = torch.tensor([[1.0, 2.0, 0.0, 5.0]])
    middle = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    assert inverse_cdf(weights.expand(8, -1), middle).tolist() == [0, 1, 1, 3, 3, 3, 3, 3]
    edge = torch.arange(8, dtype=torch.float64) / 8  # a coin on the edge belongs to the next token
    assert inverse_cdf(weights.expand(8, -1), edge).tolist() == [0, 1, 1, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("weights", [[0.0, 0.0], [math.nan, 1.0], [1.0, math.nan], [math.inf, 1.0]])
def test_what_is_no_distribution(weights: list[float]) -> None:
    assert inverse_cdf(torch.tensor([weights]), torch.tensor([0.5], dtype=torch.float64)).tolist() == [-1]
