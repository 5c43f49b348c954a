"""What acceptance costs over large vocabularies, against the memory bandwidth of this machine.

No model runs: logits of random numbers, drafts accepted about as often as `ACCEPTED` says, coins as in a round.
The sides of a comparison do the same rounds alternately:

    before   the rule over float32 distributions of all positions, as it was before these forms: `float()`, processors,
             softmax, the checks of q, padding, residual, and a draw by one long cumulative sum
    rule     `rules.rejection` or `rules.greedy` as it is now, over distributions of all positions
    parts    `parts.rejection_in_parts`: what calls get where it pays (sampled only)
    compiled maxima and sums of all positions by torch.compile, one pass; only the pass, no coins and no draw (with
             `SPECDEC_BENCH_COMPILE=1`, since it compiles for a minute)
    read     all that a rule may look at, read once by a plain sum: logits, and q where tokens were sampled

"read" is the floor of a form that reads everything; a form that stops where a row stops may go below it.
extra_info has the bytes, the measured bandwidth, and each side's fraction of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TemperatureLogitsWarper

from bench.conftest import Settings
from bench.harness import Comparison, Outcome
from specdec.sampling import Sampler
from specdec.types import Acceptance, Proposal
from specdec.verify import KeyedCoins, greedy, rejection
from specdec.verify import coins as coins_module
from specdec.verify.parts import rejection_in_parts

TEMPERATURE = 0.8
# Chance that a drafted token is accepted: about a weak and a good draft.
ACCEPTED = (0.5, 0.8)


@dataclass(frozen=True, slots=True)
class Case:
    """A round's logits and proposal."""

    logits: Tensor  # [B, N + 1, V]
    proposal: Proposal
    bytes: int

    @classmethod
    def of(cls, shape: tuple[int, int, int], dtype: torch.dtype, accepted: float, sampled: bool) -> Case:
        """Drafts that are accepted with about this chance.

        Sampled: q is p with a share of its mass moved to the neighbouring tokens, so that 1 - TVD(p, q) is near it.
        """
        batch_size, num_nodes, vocab_size = shape
        draws = torch.Generator().manual_seed(0)
        logits = torch.randn(batch_size, num_nodes + 1, vocab_size, generator=draws).mul_(2.5).to(dtype)
        if not sampled:
            choice = logits[:, :-1].float().argmax(-1)
            right = torch.rand(choice.shape, generator=draws) < accepted
            return cls(logits, Proposal.chain(torch.where(right, choice, (choice + 1) % vocab_size)), _bytes(logits))
        q = (logits[:, :-1].float() / TEMPERATURE).softmax(-1)
        q = torch.lerp(q.roll(1, -1), q, accepted)
        tokens = torch.multinomial(q.flatten(0, 1), 1, generator=draws).view(batch_size, num_nodes)
        return cls(logits, Proposal.chain(tokens, q=q), _bytes(logits) + _bytes(q))

    def coins(self) -> KeyedCoins:
        rows = torch.arange(len(self.logits))
        return KeyedCoins(7, rows, rows + 100)


@pytest.mark.parametrize("accepted", ACCEPTED)
@pytest.mark.parametrize("draft_tokens", [4, 8])
@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("vocab_size", [4_096, 32_768, 131_072])
@pytest.mark.parametrize("mode", ["greedy", "temperature"])
def test_acceptance(
    benchmark: Any,
    settings: Settings,
    dtype: torch.dtype,
    mode: str,
    vocab_size: int,
    batch_size: int,
    draft_tokens: int,
    accepted: float,
) -> None:
    case = Case.of((batch_size, draft_tokens, vocab_size), dtype, accepted, mode == "temperature")
    sides = _sampled_sides() if mode == "temperature" else _greedy_sides()
    comparison = Comparison(sides, [case])
    benchmark.group = f"acceptance, {mode}"
    main = "parts" if mode == "temperature" else "rule"
    with torch.inference_mode():
        comparison.measure(benchmark, main, rounds=max(settings.rounds, 7) if settings.rounds > 1 else 1)
    bandwidth = case.bytes * comparison.rate("read")
    found: Acceptance = comparison.details(main)[-1]
    benchmark.extra_info |= settings.info() | {
        "kind": "acceptance",
        "dtype": str(dtype).removeprefix("torch."),
        "mode": mode,
        "shape": [batch_size, draft_tokens + 1, vocab_size],
        "chance": accepted,
        "accepted": float(found.num_accepted.double().mean()),
        "megabytes": case.bytes / 1e6,
        "read_gigabytes_per_second": bandwidth / 1e9,
        "milliseconds": {side: 1e3 / comparison.rate(side) for side in sides},
        # Of the bandwidth, as if everything had been read: above 1 means that not all of it was.
        "bandwidth_fraction": {side: comparison.ratio(side, "read").median for side in sides},
        "speedup_over_before": {side: vars_of(comparison.ratio(side, "before")) for side in sides},
    }


def vars_of(ratio: Any) -> list[float]:
    return [ratio.median, ratio.low, ratio.high]


def _sampled_sides() -> dict[str, Callable[[Case], Outcome]]:
    sampler = Sampler([TemperatureLogitsWarper(TEMPERATURE)], do_sample=True)

    def before(case: Case) -> Outcome:
        proposal, _ = case.proposal.repaired(case.logits.shape[2])
        return Outcome(1, _rejection_before(sampler.probs(case.logits), proposal, case.coins()))

    def rule(case: Case) -> Outcome:
        proposal, _ = case.proposal.repaired(case.logits.shape[2])
        return Outcome(1, rejection(sampler.probs(case.logits), proposal, case.coins()))

    def parts(case: Case) -> Outcome:
        proposal, _ = case.proposal.repaired(case.logits.shape[2], checks_q=False)
        return Outcome(1, rejection_in_parts(case.logits, proposal, case.coins(), sampler.probs)[0])

    def read(case: Case) -> Outcome:
        assert case.proposal.q is not None
        return Outcome(1, (_read(case.logits), _read(case.proposal.q)))

    sides: dict[str, Callable[[Case], Outcome]] = {"before": before, "rule": rule, "parts": parts, "read": read}
    if os.environ.get("SPECDEC_BENCH_COMPILE") == "1":
        sides["compiled"] = lambda case: Outcome(1, _compiled_sums()(case.logits, 1 / TEMPERATURE))
    return sides


def _greedy_sides() -> dict[str, Callable[[Case], Outcome]]:
    def before(case: Case) -> Outcome:
        scores = case.logits.to(torch.float32)
        choice = scores.argmax(-1)
        accepted = ((case.proposal.tokens == choice[:, :-1]) & case.proposal.valid).to(torch.int64).cumprod(1).sum(1)
        return Outcome(1, Acceptance(choice, accepted, choice.gather(1, accepted[:, None])[:, 0]))

    return {
        "before": before,
        "rule": lambda case: Outcome(1, greedy(case.logits, case.proposal)),
        "read": lambda case: Outcome(1, _read(case.logits)),
    }


def _rejection_before(p: Tensor, proposal: Proposal, coins: KeyedCoins) -> Acceptance:
    """The rule as it was: both sides padded by nothing, which copies them, and a draw from one cumulative sum."""
    assert proposal.q is not None and proposal.q_index is not None
    p, q = F.pad(p, (0, 0)), F.pad(proposal.q, (0, 0))
    p_x = p[:, :-1].gather(2, proposal.tokens[:, :, None]).squeeze(2)
    q_x = q.flatten(1).gather(1, proposal.q_index * q.shape[2] + proposal.tokens)
    valid = (proposal.valid & (q_x > 0)).cumprod(1).bool()
    accepted = coins.bernoulli(torch.where(valid, (p_x / q_x).clamp(max=1.0), 0.0))
    count = accepted.to(torch.int64).cumprod(1).sum(1)
    here = _pick(p, count)
    failed = _pick(q, proposal.q_index.gather(1, count.clamp(max=proposal.num_nodes - 1)[:, None]).squeeze(1))
    rest = (here - failed).clamp(min=0.0)
    total = rest.sum(-1, keepdim=True)
    rest = torch.where(total > 0, rest / total, here)
    weights = torch.where((count == valid.sum(1))[:, None], here, rest)
    coin = coins._coins(coins_module.Purpose.NEXT_TOKEN, 1)[:, 0]
    return Acceptance(proposal.tokens, count, coins_module.inverse_cdf(weights, coin))


def _pick(table: Tensor, index: Tensor) -> Tensor:
    return table.gather(1, index[:, None, None].expand(-1, 1, table.shape[2])).squeeze(1)


@cache
def _compiled_sums() -> Callable[..., Any]:
    def sums(logits: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        top = logits.amax(-1, keepdim=True).float()
        return top, ((logits.float() - top) * factor).exp().sum(-1)

    return torch.compile(sums, dynamic=True, fullgraph=True)


def _bytes(table: Tensor) -> int:
    return table.numel() * table.element_size()


def _read(table: Tensor) -> Tensor:
    """Reads a contiguous tensor once, and does next to nothing with it."""
    return table.view(torch.int64 if table.element_size() * table.shape[-1] % 8 == 0 else table.dtype).sum()
