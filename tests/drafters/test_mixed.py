"""A mix of drafters: which is chosen, what each is told, and that the output stays the target's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import families
import pytest
import torch
from lossless.enumerated import FEW, SUPPRESSED, TOP_K, p_of
from lossless.oracle import Drafted, Tables, bias, draft, iid, random_tables, top_k, without_replacement
from models import VOCAB_SIZE, prompts, tiny
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec.drafters.gains import Costs, Gains, Repeats
from specdec.drafters.joined import beside
from specdec.drafters.mixed import MixedSession
from specdec.drafters.model import ModelSession
from specdec.state import DecodeState
from specdec.types import Acceptance, Law, Proposal
from specdec.verify import rejection

NEW_TOKENS = 30
DEPTH = 4


class Scripted(specdec.Drafter):
    """Right in some rows (requests), wrong in the others; says nothing where `silent`.

    Args:
        answers: the whole text of each request.
        counts_forwards: as a drafter that runs a model.
        observes: what its session wants to be told.
    """

    def __init__(
        self,
        answers: Sequence[Sequence[int]],
        right: Sequence[int] = (),
        silent: Sequence[int] = (),
        counts_forwards: bool = False,
        observes: str = "acceptance",
    ) -> None:
        self.answers, self.right, self.silent = answers, set(right), set(silent)
        self.counts_forwards, self.observes = counts_forwards, observes
        self.session: Any = None

    def start(self, state: DecodeState) -> specdec.DraftSession:
        self.session = CountingSession(self, state) if self.counts_forwards else ScriptedSession(self, state)
        return self.session


class ScriptedSession(specdec.DraftSession):
    def __init__(self, drafter: Scripted, state: DecodeState) -> None:
        self.drafter, self.state = drafter, state
        self.observes = drafter.observes  # type: ignore[assignment]
        self.rounds: list[int] = []  # lengths of row 0's text when it was asked
        self.open: Proposal | None = None
        self.texts: list[list[int]] = []
        self.told: list[tuple[list[list[int]], Proposal, Any, list[int], Tensor | None]] = []
        self.closed = False

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        assert self.open is None, "the last proposal's outcome was never told"
        self.rounds.append(len(state.host_tokens[0]))
        self.texts = [list(row) for row in state.host_tokens]
        depth = max(limit)
        rows, valid = [], []
        for row, (text, request) in enumerate(zip(state.host_tokens, state.host_requests, strict=True)):
            answer = list(self.drafter.answers[request][len(text) :][:depth])
            answer += [1] * (depth - len(answer))
            if request not in self.drafter.right:
                answer = [(t + 1) % VOCAB_SIZE for t in answer]
            rows.append(answer)
            valid.append([request not in self.drafter.silent and n < limit[row] for n in range(depth)])
        if not any(map(any, valid)):
            return Proposal.empty(state.batch_size, state.device)
        proposal = Proposal.chain(torch.tensor(rows), torch.tensor(valid))
        if self.observes != "nothing":
            self.open = proposal
        return proposal

    def _told(self, proposal: Proposal, acceptance: Any, counts: Sequence[int], choices: Tensor | None) -> None:
        assert self.open is not None
        assert torch.equal(proposal.tokens, self.open.tokens)
        assert len(counts) == len(self.texts)
        self.told.append((self.texts, proposal, acceptance, list(counts), choices))
        self.open = None

    def observe(self, proposal: Proposal, acceptance: Acceptance, num_accepted: Sequence[int]) -> None:
        assert self.observes == "acceptance"
        self._told(proposal, acceptance, num_accepted, None)

    def observe_counts(self, proposal: Proposal, num_accepted: Sequence[int]) -> None:
        assert self.observes == "counts"
        self._told(proposal, None, num_accepted, None)

    def observe_choices(
        self, proposal: Proposal, acceptance: Acceptance, num_accepted: Sequence[int], choices: Tensor
    ) -> None:
        assert self.observes == "choices"
        self._told(proposal, acceptance, num_accepted, choices)

    def close(self) -> None:
        self.closed = True


class CountingSession(ScriptedSession):
    @property
    def forwards(self) -> int:
        return len(self.rounds)


class Watched(specdec.MixedDrafter):
    """Keeps what the mix proposed, for which texts, and how many of its drafters had spoken."""

    def start(self, state: DecodeState) -> MixedSession:
        session = super().start(state)
        self.rounds: list[tuple[list[list[int]], Proposal]] = []
        self.spoke: list[int] = []
        propose = session.propose

        def kept(state: DecodeState, limit: Sequence[int]) -> Proposal:
            texts = [list(row) for row in state.host_tokens]
            self.rounds.append((texts, propose(state, limit)))
            self.spoke.append(len(session._shares))
            return self.rounds[-1][1]

        session.propose = kept  # type: ignore[method-assign]
        return session


def generate(target: PreTrainedModel, inputs: dict[str, Tensor], drafter: specdec.Drafter, **kwargs: Any) -> Any:
    arguments = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "num_draft_tokens": DEPTH, **kwargs}
    return specdec.generate(target, **inputs, drafter=drafter, return_dict_in_generate=True, **arguments)


def answers(target: PreTrainedModel, inputs: dict[str, Tensor], length: int = 60) -> list[list[int]]:
    out = target.generate(**inputs, max_new_tokens=length, do_sample=False)
    padding = (inputs["attention_mask"] == 0).sum(1).tolist()
    return [row[skip:] for row, skip in zip(out.tolist(), padding, strict=True)]


def branches(proposal: Proposal, row: int) -> list[list[int]]:
    """The token paths to the row's valid nodes."""
    paths: list[list[int]] = []
    for node in range(proposal.num_nodes):
        parent = int(proposal.parents[row, node])
        paths.append([*(paths[parent] if parent >= 0 else []), int(proposal.tokens[row, node])])
    return [path for path, ok in zip(paths, proposal.valid[row].tolist(), strict=True) if ok]


@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_each_row_finds_the_drafter_that_is_right_for_it(family: str) -> None:
    """Within five rounds a row's proposals are those of its good drafter only, with trees and without."""
    target, inputs = families.family(family), families.inputs(family, 3)
    texts = answers(target, inputs)
    drafter = Watched([Scripted(texts, right=[0]), Scripted(texts, right=[1, 2]), Scripted(texts)], costs=[0, 0, 0])
    out = generate(target, inputs, drafter, max_new_tokens=50)
    assert torch.equal(out.sequences, target.generate(**inputs, max_new_tokens=50, do_sample=False))
    assert len(drafter.rounds) > 7
    if family == "llama":
        assert any(not p.is_chain for _, p in drafter.rounds[:5])
    for begun, proposal in drafter.rounds[5:-1]:
        for row, text in enumerate(begun):
            found = branches(proposal, row)
            full = texts[row][len(text) :]
            assert found == [full[:n] for n in range(1, len(found) + 1)]
            assert family != "llama" or len(found) >= 1


def test_a_model_is_not_run_while_a_free_drafter_is_right() -> None:
    target, inputs = tiny("llama"), prompts(3)
    texts = answers(target, inputs)
    costly = Scripted(texts, right=[0, 1, 2], counts_forwards=True)
    free = Scripted(texts, right=[0, 1, 2])
    out = generate(target, inputs, specdec.MixedDrafter([free, costly], costs=[0, 0.5]))
    assert out.speculation.acceptance_rate == 1.0
    assert costly.session.rounds == []
    assert out.speculation.draft_calls == 0


@pytest.mark.parametrize("silent", [True, False])
def test_a_model_is_run_when_free_drafters_fail(silent: bool) -> None:
    """At once where they say nothing, within four rounds where they are wrong; and then every round."""
    target, inputs = tiny("llama"), prompts(3)
    texts = answers(target, inputs)
    costly = Scripted(texts, right=[0, 1, 2], counts_forwards=True)
    free = Scripted(texts, silent=[0, 1, 2] if silent else [])
    drafter = Watched([free, costly], costs=[0, 0.5])
    out = generate(target, inputs, drafter)
    assert torch.equal(out.sequences, target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False))
    asked = len(costly.session.rounds)
    assert asked == len(drafter.rounds) if silent else asked >= len(drafter.rounds) - 4
    assert out.speculation.draft_calls == asked


def test_a_model_that_does_not_pay_is_tried_again_at_longer_intervals() -> None:
    """One that is wrong: at first, after 8 rounds, after 16 more."""
    target, inputs = tiny("llama"), prompts(1)
    texts = answers(target, inputs)
    costly = Scripted(texts, counts_forwards=True)
    silent = Scripted(texts, silent=[0])
    drafter = Watched([silent, costly], costs=[0, 0.5])
    generate(target, inputs, drafter, max_new_tokens=44)
    rounds = [len(text[0]) for text, _ in drafter.rounds]
    asked = [rounds.index(length) for length in costly.session.rounds]
    early = [n for n in asked if n < 8]
    assert early == list(range(len(early)))
    assert 1 <= len(early) <= 4
    later = [b - a for a, b in zip(asked[len(early) - 1 :], asked[len(early) :], strict=False)]
    assert later == [9, 17]


def test_joined_trees_hold_both_drafters_and_no_siblings_alike() -> None:
    target, inputs = tiny("llama"), prompts(2)
    texts = answers(target, inputs)
    drafter = Watched(
        [Scripted(texts, right=[0, 1]), Scripted(texts), specdec.LookaheadDrafter(3, 3, 2)], costs=[0] * 3
    )
    generate(target, inputs, drafter)
    joined = [p for _, p in drafter.rounds if not p.is_chain]
    assert joined
    for proposal in joined:
        assert proposal.q is None
        for row in range(2):
            paths = [tuple(path) for path in branches(proposal, row)]
            assert len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    ("family", "observes"),
    [
        *(("llama", o) for o in ("acceptance", "counts", "choices", "nothing")),
        ("mistral", "counts"),
        ("mamba2", "choices"),
    ],
)
def test_each_session_is_told_of_its_own_proposal(family: str, observes: str) -> None:
    """Once for each, in its own nodes: what is accepted of it is in the text, and what stands there next is right."""
    target: Any = families.family(family)
    inputs = families.inputs(family, 3)
    texts = answers(target, inputs)
    watched = [
        Scripted(texts, right=[0], observes=observes),
        Scripted(texts, right=[1], observes=observes),
        Scripted(texts, right=[0, 2], observes=observes, counts_forwards=True),
    ]
    drafter = specdec.MixedDrafter([*watched, specdec.NgramDrafter(min_ngram=1)], costs=[0, 0, 0.3, 0])
    out = generate(target, inputs, drafter, max_new_tokens=NEW_TOKENS)
    assert torch.equal(out.sequences, target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False))
    accepted = 0
    for one in watched:
        assert one.session.open is None or observes == "nothing"
        assert (len(one.session.told) > 0) == (observes != "nothing")
        for begun, proposal, acceptance, counts, choices in one.session.told:
            for row, text in enumerate(begun):
                answer = next(t for t in texts if t[: len(text)] == text)[len(text) :]
                count = counts[row]
                accepted += count
                assert proposal.tokens[row, :count].tolist() == answer[:count]
                if acceptance is not None:
                    assert int(acceptance.num_accepted[row]) == count
                    path = acceptance.path[row].tolist()
                    assert path[:count] == list(range(count))
                    assert set(path[count:]) <= {-1}
                    assert int(acceptance.next_token[row]) == answer[count]
                if choices is not None:
                    assert choices.shape == (len(begun), proposal.num_nodes + 1)
                    assert int(choices[row, 0]) == answer[0]
                    for node in range(count):
                        assert int(choices[row, node + 1]) in (-1, answer[node + 1])
    assert (accepted > 20) == (observes != "nothing")


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("do_sample", [False, True])
def test_a_model_in_a_mix_never_drafts_from_a_wrong_cache(batch_size: int, do_sample: bool) -> None:
    """After rounds without it, with parts of its draft, or with another's: what it drafts is what it would afresh."""
    target, model = tiny("llama"), tiny("llama", noise=0.03)
    rounds: list[tuple[list[list[int]], Proposal]] = []

    class Kept(specdec.ModelDrafter):
        def start(self, state: DecodeState) -> ModelSession:
            session = super().start(state)
            propose = session.propose

            def kept(state: DecodeState, limit: Sequence[int]) -> Proposal:
                proposal = propose(state, limit)
                rounds.append(([list(row) for row in state.host_tokens], proposal))
                return proposal

            session.propose = kept  # type: ignore[method-assign]
            return session

    drafter = Watched([specdec.NgramDrafter(min_ngram=1), Kept(model)], costs=[0, 1.0])
    warpers: dict[str, Any] = {"top_k": 0, "temperature": 0.3} if do_sample else {}
    out = generate(
        target, prompts(batch_size), drafter, suppress_tokens=list(range(8, VOCAB_SIZE)), do_sample=do_sample,
        max_new_tokens=60, generator=torch.Generator().manual_seed(1), **warpers,
    )  # fmt: skip
    assert 0 < len(rounds) < len(drafter.rounds), "in some rounds the model ran, in some it did not"
    assert out.speculation.accepted > 0
    for texts, proposal in rounds:
        for row, text in enumerate(texts):
            tokens = proposal.tokens[row].tolist()
            logits = model(torch.tensor([text + tokens])).logits[0, len(text) - 1 : -1].float()
            logits[:, 8:] = -torch.inf
            if do_sample:
                assert proposal.q is not None
                torch.testing.assert_close(proposal.q[row], (logits / 0.3).softmax(-1), rtol=1e-4, atol=1e-6)
            else:
                assert tokens == logits.argmax(-1).tolist()


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", ["llama", "mistral", "mixtral", "gemma3_text", "bloom", "mamba2"])
def test_greedy_equality(name: str, batch_size: int) -> None:
    target, inputs = families.family(name), families.inputs(name, batch_size)
    model = families.family(name, families.ARCHITECTURES[name].noise)
    drafter = specdec.MixedDrafter(
        [specdec.NgramDrafter(min_ngram=1), specdec.LookaheadDrafter(3, 3, 2), specdec.ModelDrafter(model)],
        depths=[None, None, 2],
    )
    out = generate(target, inputs, drafter)
    assert torch.equal(out.sequences, target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False))
    assert out.speculation.accepted > 0 or batch_size > 1


@pytest.mark.parametrize("count", [1, "auto"])
def test_other_numbers_of_draft_tokens_and_rows_that_leave(count: int | str) -> None:
    target, inputs = tiny("llama"), prompts(3)
    free = target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[:, -NEW_TOKENS:]
    ends: dict[str, Any] = {"eos_token_id": [int(free[0, 7]), int(free[1, 19])], "pad_token_id": 0}
    drafter = specdec.MixedDrafter([specdec.NgramDrafter(min_ngram=1), specdec.ModelDrafter(tiny("llama", noise=0.02))])
    out = generate(target, inputs, drafter, num_draft_tokens=count, **ends)
    assert torch.equal(out.sequences, target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **ends))


def test_a_single_drafter_keeps_its_distributions() -> None:
    """A mix of one is that one: the same drafts under the same coins, with q."""
    target, model = tiny("llama"), specdec.ModelDrafter(tiny("llama", noise=0.05))
    arguments: dict[str, Any] = {"do_sample": True, "top_k": 0}
    outputs = []
    for drafter in (model, specdec.MixedDrafter([model], costs=[0])):
        generator = torch.Generator().manual_seed(2)
        outputs.append(generate(target, prompts(3), drafter, generator=generator, **arguments))
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    assert outputs[0].speculation.accepted == outputs[1].speculation.accepted > 0


def test_the_same_seed_repeats() -> None:
    """Whatever the clock says."""
    target = tiny("llama")
    drafter = specdec.MixedDrafter([specdec.NgramDrafter(min_ngram=1), specdec.ModelDrafter(tiny("llama", noise=0.05))])
    few = list(range(24, VOCAB_SIZE))
    runs = []
    for wait in (0, 20_000):
        sum(range(wait))
        generator = torch.Generator().manual_seed(4)
        runs.append(generate(target, prompts(3), drafter, do_sample=True, generator=generator, suppress_tokens=few))
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    assert runs[0].speculation.draft_calls == runs[1].speculation.draft_calls


def test_sampling_keeps_the_law_where_rows_differ() -> None:
    """G-test end to end: in one round some rows take a model's samples with q, and some an n-gram."""
    target, prompt = tiny("llama"), torch.tensor([[3, 4, 3, 5, 3]])
    drafter = Watched(
        [specdec.NgramDrafter(min_ngram=1), specdec.ModelDrafter(tiny("llama", noise=0.1))], costs=[0, 0.1]
    )
    out = specdec.generate(
        target, prompt.repeat(2000, 1), drafter=drafter, num_draft_tokens=2, do_sample=True, top_k=TOP_K,
        suppress_tokens=SUPPRESSED, max_new_tokens=6, generator=torch.Generator().manual_seed(12),
    )  # fmt: skip
    certain = [float((p.q.amax(-1)[:, 0] == 1).double().mean()) for _, p in drafter.rounds if p.q is not None]
    assert any(0.05 < share < 0.95 for share in certain), "rows of both kinds in one round"
    assert p_of(target, prompt, out[:, 5:]) > 1e-6


class Drawn(specdec.Drafter):
    """Draws one token of `FEW`, all alike, as docs/drafters.md says; keeps it. It runs no model."""

    def start(self, state: DecodeState) -> specdec.DraftSession:
        drafter = self
        self.tokens: list[Tensor] = []

        class Session(specdec.DraftSession):
            def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
                weights = torch.zeros(state.batch_size, VOCAB_SIZE, dtype=torch.float64)
                weights[:, FEW] = 1 / len(FEW)
                tokens = state.coins().draft(weights, node=0)[:, None]
                drafter.tokens.append(tokens)
                return Proposal.chain(tokens, torch.tensor(limit)[:, None] > 0, weights[:, None])

        return Session()


def test_drafters_of_a_mix_draw_apart() -> None:
    """What one has drawn decides whether another's tokens are used, with their q: it must say nothing about those."""
    one, other = Drawn(), Drawn()
    prompt = torch.tensor([[3, 4, 3, 5, 3]]).repeat(400, 1)
    generate(
        tiny("llama"), {"input_ids": prompt}, specdec.MixedDrafter([one, other]), do_sample=True, max_new_tokens=3,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    alike = (one.tokens[0] == other.tokens[0]).double().mean()
    assert abs(alike - 1 / len(FEW)) < 0.1


@pytest.mark.parametrize(("costly", "family"), [(False, "mamba2"), (True, "llama")])
def test_several_sampled_proposals_lose_their_q(costly: bool, family: str) -> None:
    """Whether one is used hangs on what there is of the others: as given tokens they are right all the same.

    A recurrent target verifies no tree, so that there one of them is left out.
    """
    target, prompt = families.family(family), torch.tensor([[3, 4, 3, 5, 3]]).repeat(3, 1)
    other = specdec.ModelDrafter(tiny("llama", noise=0.1)) if costly else Drawn()
    drafter = Watched([Drawn(), other], costs=[0, 0])
    out = generate(
        target, {"input_ids": prompt}, drafter, do_sample=True, top_k=TOP_K, suppress_tokens=SUPPRESSED,
        generator=torch.Generator().manual_seed(3), max_new_tokens=12,
    )  # fmt: skip
    assert out.speculation.accepted > 0
    assert bool(out.speculation.draft_calls) == costly
    both = [proposal for (_, proposal), count in zip(drafter.rounds, drafter.spoke, strict=True) if count == 2]
    assert both
    assert all(proposal.q is None for proposal in both)


@pytest.mark.parametrize("pick", [iid, without_replacement])
@pytest.mark.parametrize("parents", [(-1, 0), (-1, -1), (-1, -1, 0, 1)])
def test_given_rows_beside_sampled_ones_keep_the_law(parents: tuple[int, ...], pick: Any) -> None:
    """By exact enumeration, both kinds in one proposal; with the sampled rows' q for given tokens it is biased."""
    if pick is without_replacement and len(set(parents)) == len(parents):
        pytest.skip("no siblings: the same as drawing independently")
    p, q = random_tables(3, vocab_size=2, depth=3)
    sampled, given = draft(q, parents, pick), draft(q, parents, top_k)
    assert sampled.proposal.q is not None
    twice = Tables(p.base, [torch.cat([level, level]) for level in p.levels])
    rows, others = len(sampled.table), len(given.table)
    order = torch.arange(rows + others)
    first = spread(sampled.proposal, order.clamp(max=rows - 1))
    second = spread(given.proposal, (order - rows).clamp(min=0))
    uses = [True] * rows + [False] * others
    table = torch.cat([sampled.table, given.table + p.num_tables])
    weight = torch.cat([sampled.weight, given.weight])
    joined = beside(first, second, uses, p.vocab_size)
    assert bias(rejection, twice, Drafted(joined, table, weight)) < 1e-12
    mislabelled = beside(first, second, [True] * len(uses), p.vocab_size)
    broken = replace(joined, q=mislabelled.q, q_index=mislabelled.q_index)
    assert bias(rejection, twice, Drafted(broken, table, weight)) > 0.01


def spread(proposal: Proposal, rows: Tensor) -> Proposal:
    parts = {n: getattr(proposal, n)[rows] for n in ("tokens", "parents", "valid")}
    if proposal.q is not None and proposal.q_index is not None:
        parts |= {"q": proposal.q[rows], "q_index": proposal.q_index[rows]}
    return replace(proposal, **parts)


def test_trees_of_different_shapes_side_by_side() -> None:
    """What is padded is not valid; laws and vocabularies of different sizes are told."""
    q = torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]])
    nodes = torch.zeros(2, 2, dtype=torch.int64)
    pair = Proposal(nodes.clone(), nodes - 1, nodes == 0, 1, 2, q, nodes, Law.IID)
    chain = Proposal.chain(torch.tensor([[0, 0, 0], [2, 1, 2]]))
    joined = beside(pair, chain, [True, False], vocab_size=3)
    joined.check(2)
    repaired, broken = joined.repaired(3)
    assert not broken.any()
    assert branches(repaired, 0) == [[0], [0]]
    assert branches(repaired, 1) == [[2], [2, 1], [2, 1, 2]]
    assert joined.q is not None
    assert joined.q_index is not None
    assert joined.q[1, joined.q_index[1]].argmax(-1).tolist() == [2, 1, 2]
    assert (joined.depth, joined.width) == (3, 2)


def test_repeats_are_found_behind_their_first_occurrence() -> None:
    text = [5, 1, 2, 3, 4, 6, 7, 8, 1, 2, 3, 4, 6, 7, 8, 1]
    repeats = Repeats()
    assert [repeats.bucket(text[:end]) for end in range(1, 17)] == [0] * 9 + [1, 1, 2, 2, 2, 2, 3]


def test_gains_follow_the_row_and_its_bucket() -> None:
    gains = Gains(2, 2)
    assert gains.expected(0, 0, 0, 4) == 2.0
    for _ in range(6):
        gains.record(0, 3, {0: 4.0, 1: 0.0})
        gains.record(1, 0, {0: 0.0, 1: 3.0})
    assert gains.expected(0, 0, 3, 4) > 3.0 > gains.expected(1, 0, 3, 4)
    assert gains.expected(0, 1, 0, 4) < 1.0 < gains.expected(1, 1, 0, 4)
    assert gains.extra(0, 0) > 2.5
    assert gains.extra(1, 0) < 0.4
    gains.select_rows([1])
    assert gains.expected(0, 0, 0, 4) < 1.0
    assert gains.expected(0, 0, 3, 2) <= 2.0


def test_costs_are_fitted_to_what_was_measured() -> None:
    costs = Costs(2, None, reads_clock=True)
    assert costs.of(1, 4) == pytest.approx(0.6)
    for width in (0, 4, 8, 2):
        costs.stepped(width, 0.010 + 0.0005 * width)
    for seconds in (9.0, 0.004, 0.004):  # the first one reads the prompt
        costs.drafted(1, 4, seconds)
    assert costs.node == pytest.approx(0.05, rel=0.01)
    assert costs.of(1, 4) == pytest.approx(0.4, rel=0.01)
    assert Costs(2, [0.0, 0.3], reads_clock=True).of(1, 4) == 0.3


def test_close_reaches_all() -> None:
    """Also where a session's own close raises, and where a later drafter cannot start."""
    target, inputs = tiny("llama"), prompts(1)
    texts = answers(target, inputs, 8)

    class Bad(Scripted):
        def start(self, state: DecodeState) -> specdec.DraftSession:
            session = super().start(state)

            def close() -> None:
                raise RuntimeError("close failed")

            session.close = close  # type: ignore[method-assign]
            return session

    class Late(Scripted):
        def start(self, state: DecodeState) -> specdec.DraftSession:
            raise RuntimeError("start failed")

    good = Scripted(texts)
    for other, message in ((Bad(texts), "close failed"), (Late(texts), "start failed")):
        order = [other, good] if isinstance(other, Bad) else [good, other]
        with pytest.raises(RuntimeError, match=message):
            generate(target, inputs, specdec.MixedDrafter(order), max_new_tokens=4)
        assert good.session.closed


def test_a_drafter_that_breaks_its_contract_is_named() -> None:
    class Deep(Scripted):
        def start(self, state: DecodeState) -> specdec.DraftSession:
            session = super().start(state)
            session.propose = lambda state, limit: Proposal.chain(torch.ones(1, max(limit) + 1, dtype=torch.int64))  # type: ignore[method-assign]
            return session

    target, inputs = tiny("llama"), prompts(1)
    with pytest.raises(specdec.DrafterError, match="ScriptedSession proposed depth"):
        generate(target, inputs, specdec.MixedDrafter([Deep([])]), max_new_tokens=4)


@pytest.mark.parametrize(
    ("drafters", "arguments", "message"),
    [
        ([], {}, "at least one"),
        ([tiny("llama")], {}, "ModelDrafter"),
        ([specdec.MixedDrafter([specdec.NgramDrafter()])], {}, "mix in a mix"),
        ([specdec.NgramDrafter()], {"costs": [0, 1]}, "costs"),
        ([specdec.NgramDrafter()], {"costs": [-1]}, "costs"),
        ([specdec.NgramDrafter()], {"depths": [0]}, "depths"),
        ([specdec.NgramDrafter()], {"depths": []}, "depths"),
    ],
)
def test_impossible_mixes_are_refused(drafters: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(specdec.OptionError, match=message):
        specdec.MixedDrafter(drafters, **arguments)


def test_each_drafter_checks_the_target() -> None:
    target = tiny("llama")
    draft = tiny("llama", vocab_size=5000)
    with pytest.raises(specdec.DraftMismatchError, match="token ids"):
        generate(target, prompts(1), specdec.MixedDrafter([specdec.NgramDrafter(), specdec.ModelDrafter(draft)]))
