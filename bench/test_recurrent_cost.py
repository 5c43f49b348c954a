"""What recurrent states cost: snapshots, windows, and tokens fed again behind a rejection.

A rejected draft takes a recurrent row back to its snapshot, and the next window feeds again what was accepted
since. The loop's `advance_window` bounds that: beyond it a window without drafts moves the snapshot on. How much is
fed again is counted in the real loop, with drafts that are right with a given probability; what a window costs by its
width is timed with random models of a realistic small size. `bench.report` puts the two together, and
`test_advance_window` times whole calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bench.conftest import Settings
from bench.harness import Comparison, Outcome
from bench.profile_step import Stopwatch
from specdec.cache import RollbackCache
from specdec.cache.recurrent import RecurrentLayer
from specdec.controller import FixedLength
from specdec.drafters.base import DraftSession
from specdec.loop import Decoding
from specdec.probe import probe
from specdec.sampling import Sampler
from specdec.state import DecodeState
from specdec.stats import SpeculationStats
from specdec.stopping import Limits
from specdec.target import ModelRunner
from specdec.types import Proposal
from specdec.window import Window

WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48)
CONTEXT = 64
STEPS = 2  # a run's steps
UNBOUNDED = 10**6
ADVANCE_WINDOWS = (0, 4, 8, 16, 32, UNBOUNDED)
ACCEPTANCES = (0.6, 0.8, 0.95)
DRAFT_TOKENS = (3, 5, 8)
TEXTS, TOKENS = 8, 512  # decoded a case; a short text ends before its unbounded windows are wide

_MAMBA2 = {"hidden_size": 512, "num_heads": 16, "head_dim": 64, "n_groups": 1, "state_size": 128}
_ATTENTION = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
_FALCON_H1 = {
    **_ATTENTION,
    "mamba_d_ssm": 768,
    "mamba_n_heads": 12,
    "mamba_d_head": 64,
    "mamba_n_groups": 1,
    "mamba_d_state": 128,
}
_QWEN3_NEXT = {
    **_ATTENTION,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}
# Without kernels of their own, transformers pads a Mamba2 scan of two tokens or more to the model's whole chunk. Its
# size does not change the result and may be given when the model is loaded.
MODELS: dict[str, tuple[str, dict[str, int]]] = {
    "mamba2, chunks of 256": ("mamba2", {**_MAMBA2, "chunk_size": 256}),
    "mamba2, chunks of 16": ("mamba2", {**_MAMBA2, "chunk_size": 16}),
    "falcon_h1, chunks of 128": ("falcon_h1", {**_FALCON_H1, "mamba_chunk_size": 128}),
    "falcon_h1, chunks of 16": ("falcon_h1", {**_FALCON_H1, "mamba_chunk_size": 16}),
    "qwen3_next": ("qwen3_next", _QWEN3_NEXT),
}
_TINY = {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 16}


def _made(model_type: str, settings: dict[str, int], num_layers: int, vocab_size: int) -> PreTrainedModel:
    arguments: dict[str, Any] = {
        **settings,
        "num_hidden_layers": num_layers,
        "vocab_size": vocab_size,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    config = CONFIG_MAPPING[model_type](**arguments)
    attention = "eager" if model_type == "mamba2" else "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.eval()


@cache
def _model(name: str) -> PreTrainedModel:
    model_type, settings = MODELS[name]
    return _made(model_type, settings, num_layers=8, vocab_size=4096)


@cache
def _tiny() -> PreTrainedModel:
    """Fast and free of ties: what is counted does not depend on the model."""
    return _made("mamba2", _TINY, num_layers=1, vocab_size=96).double()


@dataclass(slots=True)
class Step:
    """One window behind a context: opened, run, and none of it kept, so that it can be repeated."""

    runner: ModelRunner
    cache: RollbackCache
    window: Window

    def __call__(self) -> None:
        self.runner.forward(self.window, self.cache, keep=self.window.tokens.shape[1])
        self.cache.commit(torch.zeros_like(self.window.num_pending))

    @classmethod
    @torch.inference_mode()
    def behind_context(cls, runner: ModelRunner, batch_size: int, width: int, is_kept: bool) -> Step:
        """A window of `width` tokens; without a snapshot if `is_kept` (the states run on then)."""
        cache = runner.new_cache(batch_size, CONTEXT + width)
        tokens = torch.randint(1, runner.vocab_size, (batch_size, CONTEXT + width))
        runner.forward(_window(tokens, 0, CONTEXT, is_kept=True), cache, keep=1)
        cache.commit(torch.full((batch_size,), CONTEXT))
        return cls(runner, cache, _window(tokens, CONTEXT, CONTEXT + width, is_kept))


def _window(tokens: Tensor, first: int, last: int, is_kept: bool) -> Window:
    positions = torch.arange(first, last).expand(len(tokens), -1)
    mask = torch.arange(last) <= positions[:, :, None] if first and last - first > 1 else None
    pending = torch.full((len(tokens),), last - first)
    return Window(tokens[:, first:last], positions, positions, pending, mask, last, level=True, is_kept=is_kept)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_step_by_width(benchmark: Any, settings: Settings, name: str, batch_size: int) -> None:
    runner, watch, widths = ModelRunner(_model(name)), Stopwatch(), WIDTHS if settings.rounds > 1 else WIDTHS[:2]
    made = {kept: [Step.behind_context(runner, batch_size, w, kept) for w in widths] for kept in (True, False)}

    @torch.inference_mode()
    def run(step: Step) -> Outcome:
        before = dict(watch.seconds)
        for _ in range(STEPS):
            step()
        return Outcome(STEPS, {part: seconds - before.get(part, 0.0) for part, seconds in watch.seconds.items()})

    sides: dict[str, Callable[[int], Outcome]] = {
        "kept": lambda i: run(made[True][i]),
        "snapshot": lambda i: run(made[False][i]),
    }
    comparison = Comparison(sides, range(len(widths)))
    benchmark.group = f"recurrent, {STEPS} steps, batch {batch_size}"
    with (
        mock.patch.object(RecurrentLayer, "take_snapshot", watch.wrap(RecurrentLayer.take_snapshot, _named("copy"))),
        mock.patch.object(RollbackCache, "commit", watch.wrap(RollbackCache.commit, _named("commit"))),
    ):
        comparison.measure(benchmark, "snapshot", rounds=max(settings.rounds, 5) if settings.rounds > 1 else 1)
    benchmark.extra_info |= settings.info() | {
        "kind": "recurrent step",
        "model": name,
        "batch": batch_size,
        "widths": widths,
        "snapshot_bytes": [_snapshot_bytes(step) for step in made[False]],
        "parameter_bytes": sum(p.numel() * p.element_size() for p in runner.model.parameters()),
        "milliseconds_of_one_token": 1e3 / comparison.rate("kept", 0),
        # Cost over that of one kept token, both of the same round.
        "cost": {side: [_spread(comparison, "kept", side, i) for i in range(len(widths))] for side in sides},
        "share": {part: [_share(comparison, part, i) for i in range(len(widths))] for part in ("copy", "commit")},
    }


def _named(part: str) -> Callable[..., str]:
    return lambda *_: part


def _snapshot_bytes(step: Step) -> int:
    before = step.cache.snapshot_bytes
    with torch.inference_mode():
        step()
    return step.cache.snapshot_bytes - before


def _spread(comparison: Comparison[int], plain: str, side: str, item: int) -> list[float]:
    ratio = comparison.ratio(plain, side, item=0, over_item=item)
    return [ratio.median, ratio.low, ratio.high]


def _share(comparison: Comparison[int], part: str, item: int) -> float:
    """The part's share of the time of a step with a snapshot: the median of the runs."""
    runs = [r for r in comparison.runs if r.side == "snapshot" and r.item == item]
    shares = sorted(r.outcome.detail.get(part, 0.0) / r.seconds for r in runs)
    return shares[len(shares) // 2]


class Knowing(DraftSession):
    """Drafts from texts known beforehand, some of whose tokens have been made wrong.

    Each token is wrong independently of the others, by its place: a place is drafted again only if a wrong one before
    it ended the round, so that no drafted token's fate is seen twice, and all sides meet the same wrong places.

    Args:
        texts: by request, prompt and drafted tokens.
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._texts = texts

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        most, rows = max(limit), []
        for request, length in zip(state.host_requests, state.host_lengths, strict=True):
            part = list(self._texts[request][length : length + most])
            rows.append(part + [0] * (most - len(part)))
        valid = torch.arange(most) < torch.tensor(limit)[:, None]
        return Proposal.chain(torch.tensor(rows), valid)


class Recording(FixedLength):
    """Notes the width of each round's window and its deepest draft."""

    def __init__(self, num_draft_tokens: int) -> None:
        super().__init__(num_draft_tokens)
        self.rounds: Counter[tuple[int, int]] = Counter()

    def record(
        self, drafted: Sequence[int], accepted: Sequence[int], width: int, draft_seconds: float, step_seconds: float
    ) -> None:
        self.rounds[width, max(drafted)] += 1


@dataclass(slots=True)
class Decoded:
    """Calls, added up."""

    texts: list[list[int]] = field(default_factory=list)
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    rounds: Counter[tuple[int, int]] = field(default_factory=Counter)
    window_tokens: int = 0  # of all rows


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts and their greedy continuations, to be decoded with drafts of a given quality."""

    runner: ModelRunner
    prompts: Tensor  # [texts, P]
    batch_size: int
    texts: list[list[int]]  # prompt and continuation

    @classmethod
    def make(cls, model: PreTrainedModel, num_texts: int, num_tokens: int, batch_size: int, context: int) -> Job:
        runner = ModelRunner(model)
        probe(runner)
        random = torch.Generator().manual_seed(0)
        prompts = torch.randint(1, runner.vocab_size, (num_texts, context), generator=random)
        empty = cls(runner, prompts, batch_size, [])
        new = empty.decode([[] for _ in prompts], 0, num_tokens, UNBOUNDED).texts
        return cls(runner, prompts, batch_size, [p + n for p, n in zip(prompts.tolist(), new, strict=True)])

    @property
    def context(self) -> int:
        return self.prompts.shape[1]

    def drafts(self, acceptance: float) -> list[list[int]]:
        """The texts with each token right with probability `acceptance`."""
        random = torch.Generator().manual_seed(1)
        texts = torch.tensor(self.texts)
        right = torch.rand(texts.shape, generator=random) < acceptance
        return torch.where(right, texts, (texts + 1) % self.runner.vocab_size).tolist()

    def known(self, drafts: list[list[int]], num_draft_tokens: int, advance_window: int) -> Decoded:
        """Decodes all texts again."""
        return self.decode(drafts, num_draft_tokens, len(self.texts[0]) - self.context, advance_window)

    def decode(self, drafts: list[list[int]], num_draft_tokens: int, num_tokens: int, advance_window: int) -> Decoded:
        """Decodes `num_tokens` of all texts, batch by batch."""
        out = Decoded()
        for first in range(0, len(self.prompts), self.batch_size):
            ids = self.prompts[first : first + self.batch_size]
            mask, sampler = torch.ones_like(ids, dtype=torch.bool), Sampler([], False, len(ids))
            most = self.context + num_tokens
            controller = Recording(num_draft_tokens)
            decoding = Decoding(
                self.runner,
                DecodeState(ids, ids, mask, most, self.runner.vocab_size, sampler, None),
                Knowing(drafts[first : first + len(ids)]),
                controller,
                Limits(num_tokens),
                advance_window=advance_window,
            )
            out.texts += decoding.run()
            out.stats += decoding.stats
            out.rounds += controller.rounds
            # Rows leave only in a batch's last rounds.
            out.window_tokens += sum(width * n for (width, _), n in controller.rounds.items()) * len(ids)
        return out

    def are_right(self, decoded: Decoded) -> bool:
        """The texts are plain decoding's."""
        return decoded.texts == [text[self.context :] for text in self.texts]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_refed_tokens(benchmark: Any, settings: Settings, batch_size: int) -> None:
    """Counts, no times: how much is fed again, and how wide the windows are."""
    num_tokens = max(settings.new_tokens, TOKENS) if settings.rounds > 1 else settings.new_tokens
    num_texts = TEXTS if settings.rounds > 1 else batch_size
    job = Job.make(_tiny(), num_texts, num_tokens, batch_size, context=8)
    cases = [(a, k, w) for a in ACCEPTANCES for k in DRAFT_TOKENS for w in ADVANCE_WINDOWS]
    counts: list[dict[str, Any]] = []

    def count(acceptance: float, num_draft_tokens: int, advance_window: int) -> None:
        decoded = job.known(job.drafts(acceptance), num_draft_tokens, advance_window)
        assert job.are_right(decoded)
        stats = decoded.stats
        counts.append(
            {
                "acceptance": acceptance,
                "draft_tokens": num_draft_tokens,
                "advance_window": advance_window,
                "rounds": stats.rounds,
                "row_rounds": stats.row_rounds,
                "refed": stats.refed_tokens,
                "accepted": stats.accepted,
                "tokens": stats.new_tokens - num_texts,  # the prefill gives each text's first
                "window_tokens": decoded.window_tokens,
                "windows": [[*shape, n] for shape, n in sorted(decoded.rounds.items())],  # width, depth, how many
            }
        )

    benchmark.group = "recurrent, counts"
    upcoming = iter(cases)
    benchmark.pedantic(count, setup=lambda: (next(upcoming), {}), rounds=len(cases), iterations=1)
    benchmark.extra_info |= settings.info() | {
        "kind": "refed",
        "batch": batch_size,
        "texts": num_texts,
        "tokens_per_text": num_tokens,
        "counts": counts,
    }


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "mamba2, chunks of 256"])  # no drafts pay there
def test_advance_window(benchmark: Any, settings: Settings, name: str, batch_size: int) -> None:
    """Whole calls, with drafts that cost nothing."""
    num_draft_tokens, acceptances = 5, ACCEPTANCES if settings.rounds > 1 else ACCEPTANCES[-1:]
    job = Job.make(_model(name), batch_size, settings.new_tokens, batch_size, CONTEXT)

    def side(advance_window: int, most: int) -> Callable[[float], Outcome]:
        def run(acceptance: float) -> Outcome:
            decoded = job.known(job.drafts(acceptance), most, advance_window)
            return Outcome(decoded.stats.new_tokens, job.are_right(decoded))

        return run

    sides = {"plain": side(UNBOUNDED, 0)}
    sides |= {str(w): side(w, num_draft_tokens) for w in ADVANCE_WINDOWS}
    comparison = Comparison(sides, acceptances)
    benchmark.group = f"recurrent, whole calls, batch {batch_size}"
    comparison.measure(benchmark, "8", rounds=settings.rounds)
    ratios: dict[str, list[list[float]]] = {}
    for other in (s for s in sides if s != "plain"):
        found = [comparison.ratio(other, "plain", i) for i in range(len(acceptances))]
        ratios[other] = [[r.median, r.low, r.high] for r in found]
    benchmark.extra_info |= settings.info() | {
        "kind": "advance window",
        "model": name,
        "batch": batch_size,
        "fixed_draft_tokens": num_draft_tokens,
        "acceptances": list(acceptances),
        "ratios": ratios,
        "texts_right": {s: sum(comparison.details(s)) / len(comparison.details(s)) for s in sides},
    }
