"""The number "auto" against the same engine's plain decoding: hostile drafts, perfect ones, dear verification.

The goals: at least 0.95 with any draft, and with a perfect one within a tenth of the best fixed number. What the
controller does on made-up clocks is proven in tests/test_auto_bounds.py; here it meets the real one.

Calls of seconds, one after the other, differ by more than a twentieth on a busy machine. So each is also held against
its own median plain step (`_Watched.speed`), which knows of nothing but its own rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

import specdec
import specdec.decode
from bench.conftest import Settings
from bench.constructed import TextDrafter
from bench.harness import Comparison, Outcome
from bench.sides import pair
from bench.texts import Judge, Triple, fail_if_others
from specdec.controller import AutoLength
from specdec.drafters import Drafter, DraftSession
from specdec.state import DecodeState
from specdec.types import Acceptance, Proposal

CONTEXT = 64
FIXED = (2, 4, 8, 16)  # what a perfect draft's ideal is taken from
GOAL, GOAL_PERFECT = 0.95, 0.9


class _Wrong(Drafter):
    """Another drafter at its price, each token replaced by the next number."""

    def __init__(self, drafter: Drafter, vocab_size: int) -> None:
        self._drafter, self._vocab_size = drafter, vocab_size

    def start(self, state: DecodeState) -> DraftSession:
        return _WrongSession(self._drafter.start(state), self._vocab_size)


class _WrongSession(DraftSession):
    def __init__(self, session: DraftSession, vocab_size: int) -> None:
        self._session, self._vocab_size = session, vocab_size

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        made = self._session.propose(state, limit)
        return Proposal.chain((made.tokens + 1) % self._vocab_size, made.valid)

    def observe(self, proposal: Proposal, acceptance: Acceptance, num_accepted: Sequence[int]) -> None:
        none = replace(acceptance, num_accepted=torch.zeros_like(acceptance.num_accepted))
        self._session.observe(proposal, none, [0] * len(num_accepted))

    def select_rows(self, rows: Sequence[int], index: Tensor) -> None:
        self._session.select_rows(rows, index)

    def close(self) -> None:
        self._session.close()


class _Watched(AutoLength):
    """Notes what was asked for, and what it cost."""

    last: _Watched  # of the last call

    def __init__(self, debt: float) -> None:
        super().__init__(debt=debt)
        _Watched.last = self
        self.asked: list[int] = []
        self._plain: list[float] = []  # seconds of steps without drafts
        self._others = self._tokens = 0.0  # seconds of whatever else there was, and the tokens that came of it

    def choose(self) -> int:
        asked = super().choose()
        self.asked.append(asked)
        return asked

    def record(
        self, drafted: Sequence[int], accepted: Sequence[int], width: int, draft_seconds: float, step_seconds: float
    ) -> None:
        super().record(drafted, accepted, width, draft_seconds, step_seconds)
        self._others += draft_seconds
        if width == 1:
            self._plain.append(step_seconds)
        else:
            self._others += step_seconds
            self._tokens += 1 + sum(accepted) / len(accepted)

    def speed(self) -> float | None:
        """Over plain steps of the same call, all at their median; None without any."""
        if not self._plain:
            return None
        plain = median(self._plain)
        steps = len(self._plain)
        return (steps + self._tokens) * plain / (steps * plain + self._others)


@dataclass(frozen=True)
class Job:
    """A target, prompts, and how to decode."""

    model: PreTrainedModel
    ids: Tensor
    tokens: int
    compile: bool
    temperature: float

    def run(self, drafter: Drafter | None, k: Any) -> Outcome:
        """Every row to its full length, whatever EOS says."""
        kwargs: dict[str, Any] = {"do_sample": False}
        if self.temperature:
            kwargs = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        decoder = specdec.SpeculativeDecoder(drafter, k if drafter else "auto", compile=self.compile)
        torch.manual_seed(0)
        with mock.patch.object(specdec.decode, "AutoLength", _Watched):
            out: Any = decoder.generate(
                self.model,
                input_ids=self.ids,
                max_new_tokens=self.tokens,
                eos_token_id=None,
                return_dict_in_generate=True,
                **kwargs,
            )
        stats, watched = out.speculation, _Watched.last if k == "auto" and drafter else None
        assert not self.compile or stats.graphs.roles["target"] == "compiled", stats.graphs.roles
        detail = {"drafted": stats.drafted, "rate": stats.acceptance_rate, "rows": out.sequences}
        detail |= {"asked": watched.asked, "speed": watched.speed()} if watched else {"asked": [], "speed": None}
        return Outcome(self.tokens * len(self.ids), detail)


def _sides(job: Job, draft: Drafter | None) -> dict[str, Callable[[int], Outcome]]:
    """Plain decoding, every adversary under "auto"; greedy ones know the text."""
    vocab = job.model.config.vocab_size
    text = job.run(None, 0).detail["rows"].tolist()
    wrong = [[(token + 1) % vocab for token in row] for row in text]
    eos = [[1] * len(row) for row in text]
    drafters: dict[str, Drafter] = {"EOS": TextDrafter(eos), "n-gram": specdec.NgramDrafter()}
    if draft is not None:
        drafters["wrong model"] = _Wrong(draft, vocab)
    sides: dict[str, Callable[[int], Outcome]] = {"plain": lambda _: job.run(None, 0)}
    if not job.temperature:
        drafters["wrong"] = TextDrafter(wrong)
        drafters["perfect"] = TextDrafter(text)
        for k in FIXED:
            sides[f"perfect k={k}"] = lambda _, k=k: job.run(TextDrafter(text), k)  # type: ignore[misc]
    for name, drafter in drafters.items():
        sides[name] = lambda _, drafter=drafter: job.run(drafter, "auto")  # type: ignore[misc]
    return sides


def _measure(benchmark: Any, settings: Settings, job: Job, draft: Drafter | None, name: str) -> None:
    comparison = Comparison(_sides(job, draft), [0])
    benchmark.group = f"never slower, {name}"
    comparison.measure(benchmark, "n-gram", settings.rounds)
    rows, judge = {}, None if job.temperature else Judge(job.model)
    for side in comparison.sides:
        if side != "plain":
            ratio = comparison.ratio(side, "plain")
            details = comparison.details(side)
            last, speeds = details[-1], [d["speed"] for d in details if d["speed"] is not None]
            rows[side] = {
                "ratio": ratio.spread,
                "drafted": last["drafted"],
                "acceptance_rate": last["rate"],
                "asked": _quarters(last["asked"]),
                "texts": judge.count(_triples(comparison, side, job)) if judge else None,
                "by_rounds": [median(speeds), min(speeds), max(speeds)] if speeds else None,
            }
    fixed = [s for s in rows if s.startswith("perfect k=")]
    best = max(fixed, key=comparison.rate, default=None)
    benchmark.extra_info |= settings.info() | {
        "kind": "never slower",
        "name": name,
        "compiled": job.compile,
        "batch": len(job.ids),
        "temperature": job.temperature,
        "tokens": job.tokens,
        "dtype": str(job.model.dtype).removeprefix("torch."),
        "rows": rows,
        "perfect_over_ideal": None if best is None else comparison.ratio("perfect", best).spread,
        "goals": [GOAL, GOAL_PERFECT],
    }
    for side, row in rows.items():
        if row["texts"] is not None:
            fail_if_others(side, row["texts"])


def _triples(comparison: Comparison[int], side: str, job: Job) -> Iterator[Triple]:
    """Each row's prompt, the side's text, and plain decoding's."""
    plain, context = comparison.details("plain")[0]["rows"].tolist(), job.ids.shape[1]
    for detail in comparison.details(side):
        for text, other in zip(detail["rows"].tolist(), plain, strict=True):
            yield text[:context], text[context:], other[context:]


def _quarters(asked: list[int]) -> list[float]:
    """Mean of what was asked for in each quarter of the rounds."""
    size = max(1, len(asked) // 4)
    return [round(sum(part) / len(part), 2) for part in (asked[i : i + size] for i in range(0, 4 * size, size)) if part]


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "t0.8"])
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_bundled_pair(
    benchmark: Any, settings: Settings, dtype: torch.dtype, compile: bool, temperature: float, batch_size: int
) -> None:
    target, draft, tokenizer = pair(dtype)
    ids = torch.randint(10, target.config.vocab_size, (batch_size, CONTEXT), generator=torch.Generator().manual_seed(0))
    model = specdec.ModelDrafter(draft, tokenizer=tokenizer, draft_tokenizer=tokenizer)
    job = Job(target, ids, settings.new_tokens, compile, temperature)
    how = "compiled" if compile else "eager"
    _measure(benchmark, settings, job, model, f"bundled pair, {how}, batch {batch_size}, t {temperature}")


@cache
def _experts() -> PreTrainedModel:
    """A mixture of experts large enough that each expert's weights are read for its own tokens."""
    config = MixtralConfig(
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        vocab_size=4096,
        max_position_embeddings=2048,
        sliding_window=None,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = MixtralForCausalLM._from_config(config, attn_implementation="sdpa")
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() >= 2:
                    weight.normal_(std=1.0 if "embed" in name or "lm_head" in name else 1.5 * weight.shape[-1] ** -0.5)
    return model.eval()


@pytest.mark.parametrize("batch_size", [1, 16])
def test_mixture_of_experts(benchmark: Any, settings: Settings, batch_size: int) -> None:
    """Several tokens meet several experts: verification is not free, in a batch least of all."""
    ids = torch.randint(2, 4096, (batch_size, CONTEXT), generator=torch.Generator().manual_seed(0))
    tokens = min(settings.new_tokens, 256) if batch_size > 1 else settings.new_tokens
    job = Job(_experts(), ids, tokens, False, 0.0)
    _measure(benchmark, settings, job, None, f"mixture of experts, eager, batch {batch_size}")
