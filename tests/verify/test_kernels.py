"""The Triton form of the rejection rule against the torch form, `rules.rejection`, and under the oracle.

Runs where triton is installed, on a GPU, or on the CPU through triton's interpreter:
TRITON_INTERPRET=1 python -m pytest tests/verify/test_kernels.py
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from lossless.oracle import bias, draft, iid, random_tables, top_k
from lossless.test_exact_law import EXACT, chain
from torch import Tensor

from specdec.types import Acceptance, Law, Proposal
from specdec.verify import Coins, KeyedCoins, rejection

pytest.importorskip("triton", reason="the kernels need triton, which comes with CUDA builds of torch")
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (IS_INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no GPU here: set TRITON_INTERPRET=1 to run the kernels on the CPU", allow_module_level=True)
kernels: Any = import_module("specdec.verify.kernels")  # not before triton was found

# The interpreter computes with numpy, which warns of infinities that a GPU takes in silence.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")


def case(seed: int, shape: tuple[int, int, int], dtype: torch.dtype, has_q: bool) -> tuple[Tensor, Proposal]:
    batch_size, num_nodes, vocab_size = shape
    draws = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(batch_size, num_nodes + 1, vocab_size, generator=draws)
    logits[..., 3] = -torch.inf
    q = (logits[:, :-1] + 0.4 * torch.randn(batch_size, num_nodes, vocab_size, generator=draws)).softmax(-1)
    tokens = torch.zeros(batch_size, 0, dtype=torch.int64)
    if num_nodes:
        tokens = torch.multinomial(q.flatten(0, 1), 1, generator=draws).view(batch_size, num_nodes)
    valid = (
        torch.arange(num_nodes)
        < torch.tensor([[num_nodes], [max(1, num_nodes - 1)]]).repeat(batch_size, 1)[:batch_size]
    )
    chains = Proposal.chain(tokens.to(DEVICE), valid.to(DEVICE), q.to(DEVICE) if has_q and num_nodes else None)
    return logits.to(dtype).to(DEVICE), chains


def both(logits: Tensor, proposal: Proposal, temperature: float, seed: int) -> tuple[Acceptance, Acceptance, Tensor]:
    rows = torch.arange(len(logits), device=DEVICE)
    p = (logits.float() / temperature).softmax(-1)
    ours, unfair = kernels.rejection(logits, proposal, KeyedCoins(seed, rows, rows + 5), temperature)
    return rejection(p, proposal, KeyedCoins(seed, rows, rows + 5)), ours, unfair


def same(rule: Acceptance, ours: Acceptance) -> bool:
    fields = ("path", "num_accepted", "next_token")
    return all(torch.equal(getattr(rule, field), getattr(ours, field)) for field in fields)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is several programs of several steps, the last one cut short."""
    monkeypatch.setattr(kernels, "_BLOCK", 128)
    monkeypatch.setattr(kernels, "_SPLIT", 2)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("has_q", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_commits_what_the_torch_form_does(dtype: torch.dtype, has_q: bool, temperature: float) -> None:
    """Sums are added in another order, which moves a coin's edge by some 1e-7: none of these coins lies there."""
    accepted = 0
    for seed, shape in enumerate([(1, 0, 300), (2, 1, 40), (3, 3, 301), (4, 5, 128)]):
        logits, proposal = case(seed, shape, dtype, has_q)
        rule, ours, unfair = both(logits, proposal, temperature, seed)
        assert same(rule, ours) and not unfair.any()
        accepted += int(ours.num_accepted.sum())
    assert accepted > 2


def test_rows_apart_in_memory_and_rows_of_q_in_any_order() -> None:
    logits, proposal = case(5, (3, 3, 200), torch.float32, True)
    assert proposal.q is not None and proposal.q_index is not None
    apart = torch.zeros(3, 9, 200, device=DEVICE)[:, 1:8:2]
    apart.copy_(logits)
    mixed = replace(proposal, q=proposal.q.flip(1), q_index=2 - proposal.q_index)
    rule, _, _ = both(logits, proposal, 1.0, 1)
    assert same(rule, both(apart, mixed, 1.0, 1)[1])
    turned = logits.transpose(1, 2).contiguous().transpose(1, 2)
    assert same(rule, both(turned, proposal, 1.0, 1)[1])


@pytest.mark.parametrize("draft_vocab_size", [150, 260])
def test_draft_vocabulary_of_another_size(draft_vocab_size: int) -> None:
    logits, proposal = case(6, (4, 3, 200), torch.float32, True)
    assert proposal.q is not None
    q = torch.nn.functional.pad(proposal.q, (0, draft_vocab_size - 200))
    tokens = proposal.tokens.clamp(max=draft_vocab_size - 1)
    if draft_vocab_size > 200:
        q = q + 1 / 260  # what only the draft has is drawn, too
        tokens = tokens.clone()
        tokens[1, 0] = 230
    rule, ours, _ = both(logits, replace(proposal, tokens=tokens, q=q / q.sum(-1, keepdim=True)), 1.0, 2)
    assert same(rule, ours)


def test_where_p_is_q() -> None:
    logits, proposal = case(7, (4, 3, 200), torch.float32, True)
    rule, ours, _ = both(logits, replace(proposal, q=logits[:, :-1].softmax(-1)), 1.0, 3)
    assert same(rule, ours)


def test_what_is_no_distribution_is_told() -> None:
    logits, proposal = case(8, (3, 2, 200), torch.float32, True)
    assert proposal.q is not None
    for broken in (2 * proposal.q, proposal.q * torch.nan, proposal.q - 1e-6):
        q = proposal.q.clone()
        q[1, 0] = broken[1, 0]
        assert both(logits, replace(proposal, q=q), 1.0, 4)[2].tolist() == [False, True, False]
    for odd in (torch.nan, torch.inf):
        lost = logits.clone()
        lost[2, :, 70] = odd
        rule, ours, unfair = both(lost, proposal, 1.0, 4)
        assert same(rule, ours) and not unfair.any()
        assert (ours.next_token == -1).tolist() == [False, False, True]


def in_kernels(p: Tensor, proposal: Proposal, coins: Coins) -> Acceptance:
    return kernels.rejection(p.log().to(DEVICE), proposal, coins)[0]


@pytest.mark.skipif(not IS_INTERPRETED, reason="the oracle's tables are on the CPU")
@pytest.mark.parametrize("label", ["sampled", "argmax", "sampled, q withheld"])
def test_law(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All branches of rounds of one token, of eight kinds of tables, in float64."""
    monkeypatch.setattr(kernels, "_BLOCK", 2)
    p, q = random_tables(1, 3, 1, num_tables=8)
    drafted = draft(q, chain(1), top_k if label == "argmax" else iid)
    if label == "sampled, q withheld":
        drafted = drafted.relabelled(Law.GIVEN)
    assert bias(in_kernels, p, drafted) < EXACT


@pytest.mark.skipif(not IS_INTERPRETED, reason="the oracle's tables are on the CPU")
def test_a_broken_form_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = random_tables(2, 3, 1, num_tables=8)
    drafted = draft(q, chain(1), iid)
    changed: dict[str, Any] = {"_RESIDUAL": kernels._WHOLE, "_WHOLE": kernels._RESIDUAL}
    for name, value in changed.items():
        with monkeypatch.context() as patch:
            patch.setattr(kernels, name, value)
            assert bias(in_kernels, p, drafted) > 1e-3
