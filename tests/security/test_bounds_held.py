"""What a stranger's drafter, callback or prompt cannot do: the bounds and the walls between requests."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import families
import pytest
import torch
from models import VOCAB_SIZE, prompts, tiny
from transformers import LogitsProcessor

import specdec
from specdec.cache.recurrent import RecurrentLayer
from specdec.controller import MAX_DRAFT_TOKENS
from specdec.drafters.jacobi import Pool
from specdec.drafters.shapes import optimal_tree
from specdec.generate import MOST_NESTED
from specdec.types import MAX_NODES

TARGET, DRAFT = tiny("llama"), tiny("llama", noise=0.02)


@pytest.mark.parametrize(
    "make",
    [
        lambda: specdec.TreeDrafter(DRAFT, num_nodes=MAX_NODES + 1),
        lambda: specdec.TreeDrafter(DRAFT, widths=[40, 40]),
        lambda: specdec.TreeDrafter(DRAFT, parents=[-1] * (MAX_NODES + 1)),
        lambda: specdec.SuffixDrafter(max_nodes=MAX_NODES + 1),
        lambda: specdec.LookaheadDrafter(window=200, ngram=10),
        lambda: optimal_tree([0.5], MAX_NODES + 1),
        lambda: specdec.SpeculativeDecoder(DRAFT, num_draft_tokens=MAX_DRAFT_TOKENS + 1),
    ],
    ids=["tree", "widths", "parents", "suffix", "lookahead", "optimal", "depth"],
)
def test_nodes_and_depth_are_bounded(make: Callable[[], object]) -> None:
    with pytest.raises(specdec.OptionError):
        make()


class Proposes(specdec.Drafter):
    """What a function makes of the state."""

    def __init__(self, make: Callable[[specdec.DecodeState, int], Any]) -> None:
        self._make = make

    def start(self, state: specdec.DecodeState) -> specdec.DraftSession:
        session = specdec.DraftSession()
        session.propose = lambda state, limit: self._make(state, max(limit))  # type: ignore[method-assign]
        return session


@pytest.mark.parametrize(("nodes", "deep"), [(MAX_NODES + 1, 1), (9, 9)])
def test_a_drafters_own_proposal_is_bounded_as_well(nodes: int, deep: int) -> None:
    """Before anything of the square of its size is made."""

    def make(state: specdec.DecodeState, _: int) -> specdec.Proposal:
        tokens = torch.full((1, nodes), 3)
        if deep > 1:
            return specdec.Proposal.chain(tokens)
        return specdec.Proposal(tokens, torch.full_like(tokens, -1), torch.ones_like(tokens).bool(), 1, nodes)

    with pytest.raises(specdec.DrafterError, match="at most"):
        specdec.generate(TARGET, **prompts(1), drafter=Proposes(make), num_draft_tokens=4, max_new_tokens=8)


def test_indexes_are_bounded_in_all() -> None:
    """Whatever calls write: by default 256 MB, and never more than was said."""
    assert specdec.SuffixIndex().max_bytes == 256_000_000
    remembering = specdec.SuffixDrafter(remember=True)
    assert remembering.index is not None and remembering.index.max_bytes == 256_000_000
    drafter = specdec.SuffixDrafter(specdec.SuffixIndex(400), remember=True)
    for seed in range(4):
        specdec.generate(TARGET, **prompts(1, seed=seed), drafter=drafter, max_new_tokens=24)
        assert drafter.index is not None and 0 < drafter.index.num_bytes <= 400


def test_indexes_of_a_request_grow_with_its_text_only() -> None:
    """Of a text of any content: two states a token, an n-gram a size and token."""
    from specdec.drafters.ngram import NgramIndex
    from specdec.drafters.suffix_automaton import SuffixAutomaton

    worst = {"alike": [5] * 600, "different": list(range(600)), "rising": [i % (1 + i // 9) for i in range(600)]}
    for text in worst.values():
        automaton, ngrams = SuffixAutomaton(), NgramIndex(2, 6)
        automaton.extend(text)
        ngrams.propose(text, 4)
        assert max(len(v) for v in vars(automaton).values() if hasattr(v, "__len__")) <= 2 * len(text) + 1
        assert len(ngrams._ends) <= 5 * len(text)


@pytest.mark.parametrize("max_candidates", [3, 100], ids=["some of a token", "all of a token"])
@pytest.mark.parametrize("firsts", [1, 7, 100_000], ids=["one first token", "seven", "all different"])
def test_lookaheads_pool_is_bounded(firsts: int, max_candidates: int) -> None:
    """Ten times as many n-grams as it may hold, all different: it holds no more at any time, and counts rightly."""
    most, pool = 100, Pool(max_candidates, 100)
    for number in range(10 * most):
        pool.add(number % firsts, (number, number + 1))
        assert len(pool) <= most
        assert pool.candidates(number % firsts)[0] == (number, number + 1), "the latest stays"
        if number % 41 == 0:
            assert sum(len(pool.candidates(first)) for first in range(min(firsts, 10 * most))) == len(pool)
    assert len(pool) >= min(most, max_candidates * firsts) // 2, "all of one token's leave at once, no more"
    # One token's n-grams are never too many, since no drafter is made that allows it more than there may be in all.
    with pytest.raises(specdec.OptionError, match="max_ngrams"):
        specdec.LookaheadDrafter(max_candidates=most + 1, max_ngrams=most)


def test_lookahead_passes_its_bound_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drafter's own: 16,384 unless another one is asked for, and no pool of a call is larger."""
    assert inspect.signature(specdec.LookaheadDrafter).parameters["max_ngrams"].default == 16_384
    sizes, add = [], Pool.add

    def counted(self: Pool, first: int, rest: tuple[int, ...]) -> None:
        add(self, first, rest)
        sizes.append(len(self))

    monkeypatch.setattr(Pool, "add", counted)
    for most in (5, 1000):
        sizes.clear()
        drafter = specdec.LookaheadDrafter(4, 3, 3, max_ngrams=most)
        specdec.generate(TARGET, **prompts(1), drafter=drafter, max_new_tokens=40, do_sample=False)
        assert (max(sizes) <= most) if most == 5 else (max(sizes) > 5)


def test_snapshots_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one for each drafted token of a round and one more; none is held between rounds."""
    most, take = [0], RecurrentLayer.take_snapshot

    def counted(self: RecurrentLayer) -> int:
        size = take(self)
        most[0] = max(most[0], len(self.snapshots))
        return size

    monkeypatch.setattr(RecurrentLayer, "take_snapshot", counted)
    name = "lfm2"
    drafter = specdec.ModelDrafter(families.family(name, 0.05))
    out = specdec.generate(
        families.family(name), **prompts(1), drafter=drafter, num_draft_tokens=MAX_DRAFT_TOKENS, max_new_tokens=40,
        do_sample=False, return_dict_in_generate=True,
    )  # fmt: skip
    assert 2 <= most[0] <= MAX_DRAFT_TOKENS + 1
    assert out.speculation.snapshot_bytes > 0


# What calls share


@pytest.mark.parametrize(
    "make",
    [
        specdec.NgramDrafter,
        specdec.SuffixDrafter,
        specdec.LookaheadDrafter,
        lambda: specdec.ModelDrafter(DRAFT),
        # With costs given, since a clock's may let it choose otherwise.
        lambda: specdec.MixedDrafter([specdec.SuffixDrafter(), specdec.ModelDrafter(DRAFT)], costs=[0, 0.15]),
    ],
    ids=["ngram", "suffix", "lookahead", "model", "mixed"],
)
def test_nothing_is_kept_from_one_request_to_the_next(make: Callable[[], specdec.Drafter]) -> None:
    """A second request drafts as if it were the first: the same numbers, whatever was decoded before it."""
    used, fresh = make(), make()
    secret = TARGET.generate(**prompts(1), max_new_tokens=40)
    arguments: dict[str, Any] = {"num_draft_tokens": 4, "max_new_tokens": 24, "return_dict_in_generate": True}
    # The next request's text is the earlier one's: what had been kept would draft it.
    specdec.generate(TARGET, **prompts(1), drafter=used, max_new_tokens=40)
    beside = [specdec.generate(TARGET, secret[:, :20], drafter=d, **arguments).speculation for d in (used, fresh)]
    assert (beside[0].drafted, beside[0].accepted) == (beside[1].drafted, beside[1].accepted)
    assert getattr(used, "index", None) is None


def test_keeping_texts_is_for_the_user_to_ask() -> None:
    """With remember=True the same request is drafted from the earlier one's output: the test above would show it."""
    used, fresh = (specdec.SuffixDrafter(remember=True) for _ in range(2))
    secret = TARGET.generate(**prompts(1), max_new_tokens=40)
    specdec.generate(TARGET, **prompts(1), drafter=used, max_new_tokens=40)
    counts = [
        specdec.generate(
            TARGET, secret[:, :20], drafter=d, num_draft_tokens=4, max_new_tokens=24, return_dict_in_generate=True
        ).speculation.accepted
        for d in (used, fresh)
    ]
    assert counts[0] > counts[1]
    for kind in (specdec.SuffixDrafter, specdec.drafters.SuffixDrafter):
        assert inspect.signature(kind).parameters["remember"].default is False


def test_the_models_forward_is_the_models_own_during_a_call() -> None:
    """Nothing is patched and no config is written, not even while the call runs.

    Looked at where somebody else could: in the models' forwards, a processor, and as tokens are committed. Afterwards
    `tests/faults/test_fault_points.py` looks.
    """
    seen: list[tuple[str, list[Any]]] = []

    def state() -> list[Any]:
        patched = [
            name
            for model in (TARGET, DRAFT)
            for module in model.modules()
            for name in vars(module)
            if name in ("forward", "generate", "__call__")
        ]
        written = [(m.training, type(m).forward, m.config.to_dict(), m.generation_config.to_dict(), id(m.config),
                    id(m.generation_config), m.config._attn_implementation) for m in (TARGET, DRAFT)]  # fmt: skip
        return [patched, copy.deepcopy(written)]

    def look(where: str) -> Callable[..., None]:
        return lambda *_: seen.append((where, state()))

    class Looks(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            look("processor")()
            return scores

    before = state()
    assert before[0] == []
    handles = [model.lm_head.register_forward_hook(look("forward")) for model in (TARGET, DRAFT)]
    settings: list[dict[str, Any]] = [{"do_sample": False}, {"do_sample": True, "temperature": 0.7, "top_k": 9}]
    try:
        for drafter in (DRAFT, "early-exit:1", specdec.LayerSkipDrafter([1])):
            for setting in settings:
                specdec.generate(
                    TARGET, **prompts(1), drafter=drafter, num_draft_tokens=3, max_new_tokens=8, use_cache=True,
                    eos_token_id=1, logits_processor=[Looks()], on_commit=look("commit"), **setting,
                )  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    assert {where for where, _ in seen} == {"forward", "processor", "commit"}
    assert [where for where, now in seen if now != before] == []


# Calls inside calls


def inner(state: specdec.DecodeState, most: int, **arguments: Any) -> specdec.Proposal:
    """Drafts with a call of its own on the same target."""
    rows = [
        specdec.generate(TARGET, torch.tensor([tokens]), max_new_tokens=most, **arguments)[0, len(tokens) :].tolist()
        for tokens in state.host_tokens
    ]
    return specdec.Proposal.chain(torch.tensor(rows))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_drafter_that_decodes_with_the_same_target(batch_size: int) -> None:
    """Works, since a call keeps nothing on a model; also where the target's generate is ours."""
    inputs = prompts(batch_size)
    expected = TARGET.generate(**inputs, max_new_tokens=12)
    drafter = Proposes(lambda s, d: inner(s, d, drafter=specdec.NgramDrafter()))
    out = specdec.generate(
        TARGET, **inputs, drafter=drafter, num_draft_tokens=3, max_new_tokens=12, return_dict_in_generate=True
    )
    assert torch.equal(out.sequences, expected)
    assert out.speculation.accepted == out.speculation.drafted > 0
    with specdec.attached(TARGET, drafter, num_draft_tokens=3):
        assert torch.equal(TARGET.generate(**inputs, max_new_tokens=12), expected)


@pytest.mark.parametrize("where", ["processor", "on_commit"])
def test_a_callback_that_decodes_with_the_same_target(where: str) -> None:
    inputs, texts = prompts(1), []

    def decodes(*_: Any) -> None:
        texts.append(specdec.generate(TARGET, **inputs, drafter=DRAFT, num_draft_tokens=2, max_new_tokens=4))

    class Decodes(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            decodes()
            return scores

    given: dict[str, Any] = {"on_commit": decodes} if where == "on_commit" else {"logits_processor": [Decodes()]}
    out = specdec.generate(TARGET, **inputs, drafter=DRAFT, num_draft_tokens=3, max_new_tokens=8, **given)
    assert torch.equal(out, TARGET.generate(**inputs, max_new_tokens=8))
    assert len(texts) > 2
    assert all(torch.equal(text, out[:, : texts[0].shape[1]]) for text in texts)


def test_a_drafter_that_calls_itself_without_end() -> None:
    """A typed error instead of Python's own limit, and the next call is as always."""
    calls = [0]

    def again(state: specdec.DecodeState, most: int) -> specdec.Proposal:
        calls[0] += 1
        specdec.generate(TARGET, **prompts(1), drafter=drafter, num_draft_tokens=3, max_new_tokens=8)
        return specdec.Proposal.chain(torch.full((1, most), 3))

    drafter = Proposes(again)
    for _ in range(2):
        calls[0] = 0
        with pytest.raises(specdec.OptionError, match="runs inside itself"):
            specdec.generate(TARGET, **prompts(1), drafter=drafter, num_draft_tokens=3, max_new_tokens=8)
        assert calls[0] == MOST_NESTED
    out = specdec.generate(TARGET, **prompts(1), drafter=DRAFT, max_new_tokens=8)
    assert torch.equal(out, TARGET.generate(**prompts(1), max_new_tokens=8))


# What leaves a call


@pytest.mark.parametrize("num_tokens", [8, 16])  # more than a round commits
def test_bursts_of_an_aggregated_stream_tell_nothing_of_acceptance(num_tokens: int) -> None:
    """Two drafters of very different luck hand the same bursts on."""
    texts = TARGET.generate(**prompts(1), max_new_tokens=33)
    lucky = Proposes(lambda s, d: specdec.Proposal.chain(texts[:, len(s.host_tokens[0]) :][:, :d]))
    unlucky = Proposes(lambda s, d: specdec.Proposal.chain(torch.full((1, d), VOCAB_SIZE - 1)))
    shapes = []
    for drafter in (lucky, unlucky):
        held, bursts = [], []

        class Inner:
            def put(self, value: torch.Tensor) -> None:
                held.append(value)  # noqa: B023

            def end(self) -> None:
                bursts.append(len(held))  # noqa: B023

        streamer = specdec.AggregatedStreamer(Inner(), num_tokens)
        out = specdec.generate(
            TARGET, **prompts(1), drafter=drafter, num_draft_tokens=4, max_new_tokens=33, streamer=streamer,
            on_commit=lambda _: bursts.append(len(held)), return_dict_in_generate=True,  # noqa: B023
        )  # fmt: skip
        shapes.append((sorted(set(bursts)), out.speculation.accepted))
    assert shapes[0][1] > 20 > shapes[1][1]
    assert shapes[0][0] == shapes[1][0]
