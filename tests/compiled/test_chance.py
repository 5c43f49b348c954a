"""What chance decides, as a graph: the tokens that the uncompiled rule commits, and who gets the graph."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import traced
from models import prompts, tiny
from torch import Tensor
from transformers.generation import logits_process as hf

import specdec
from specdec.compiled import Store, sampled
from specdec.compiled import build as building
from specdec.compiled.chance import Recipe
from specdec.compiled.sampled import Chance
from specdec.compiled.store import describe
from specdec.drafters import Drafter, DraftSession
from specdec.errors import DrafterError
from specdec.sampling import Sampler
from specdec.stats import GraphUse
from specdec.types import Proposal
from specdec.verify import KeyedCoins, rejection

VOCAB = 96
RUN_OF = sampled._run_of  # the real one; conftest puts another in its place
WARPERS: dict[str, list[Any]] = {
    "temperature": [hf.TemperatureLogitsWarper(0.7)],
    "top-k, top-p, min-p": [hf.TopKLogitsWarper(30), hf.TopPLogitsWarper(0.9), hf.MinPLogitsWarper(0.05)],
}


def chance_of(processors: list[Any]) -> Chance:
    recipe = Recipe.of(processors)
    assert isinstance(recipe, Recipe)
    return Chance(traced.chance(recipe, True), recipe, GraphUse(), torch.device("cpu"))


def case(seed: int, batch_size: int, num_nodes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, q that resembles them, tokens drawn from q, and how many of them count."""
    draws = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(batch_size, num_nodes + 1, VOCAB, generator=draws).double()
    q = (logits[:, :-1] + torch.randn(batch_size, num_nodes, VOCAB, generator=draws)).softmax(-1).float()
    tokens = torch.zeros(batch_size, 0, dtype=torch.int64)
    if num_nodes:
        tokens = torch.multinomial(q.flatten(0, 1), 1, generator=draws).view(batch_size, num_nodes)
    return logits, q, tokens, torch.randint(0, num_nodes + 1, (batch_size,), generator=draws)


@pytest.mark.parametrize("is_given", [False, True])
@pytest.mark.parametrize("name", WARPERS)
def test_commits_what_the_rule_does(name: str, is_given: bool) -> None:
    """The rule itself is proven in tests/lossless; the graph must agree with it, coin by coin."""
    processors = WARPERS[name]
    graph, sampler = chance_of(processors), Sampler(processors, do_sample=True)
    accepted = 0
    for seed, (batch_size, num_nodes) in enumerate([(1, 0), (3, 0), (1, 1), (3, 1), (1, 4), (3, 4), (2, 7)] * 6):
        logits, q, tokens, count = case(seed, batch_size, num_nodes)
        requests, lengths = torch.arange(batch_size), 10 + seed + torch.arange(batch_size)
        drafted = torch.cat([torch.zeros(batch_size, 1, dtype=torch.int64), tokens], dim=1)
        names = (torch.tensor([seed]), requests, lengths)
        given_q = None if is_given or not num_nodes else q
        outcome, ends = graph.judge(logits, drafted, count, given_q, names, lengths)
        proposal = Proposal.chain(tokens, torch.arange(num_nodes) < count[:, None], given_q)
        coins = KeyedCoins(seed, requests, lengths)
        rule = rejection(sampler.scores(logits, None).softmax(-1), proposal, coins)
        assert torch.equal(outcome[:, 1], rule.num_accepted)
        assert torch.equal(outcome[:, 0], count) and not outcome[:, 2].any()
        assert torch.equal(ends, lengths + rule.num_accepted + 1)
        for row, num in enumerate(rule.num_accepted.tolist()):
            assert torch.equal(outcome[row, 3 : 4 + num], rule.tokens(proposal)[row, : num + 1])
            accepted += num
    assert accepted > 10


@pytest.mark.parametrize("name", WARPERS)
def test_draws_what_a_draft_would(name: str) -> None:
    processors = WARPERS[name]
    graph, sampler = chance_of(processors), Sampler(processors, do_sample=True)
    for seed in range(20):
        logits = case(seed, 3, 0)[0]
        requests, lengths = torch.arange(3), torch.tensor([5, 9, 7]) + seed
        for node in (0, 3):
            token, q = graph.draw(logits[:, 0], (torch.tensor([seed]), requests, lengths), node)
            probs = sampler.scores(logits, None).softmax(-1)[:, 0]
            assert torch.equal(token, KeyedCoins(seed, requests, lengths).draft(probs, node))
            torch.testing.assert_close(q, probs)


def broken(tokens: list[int], q: Tensor | None) -> Tensor:
    logits, _, _, _ = case(1, 1, 2)
    names = (torch.tensor([3]), torch.tensor([0]), torch.tensor([4]))
    drafted = torch.tensor([[0, *tokens]])
    graph, two = chance_of(WARPERS["temperature"]), torch.tensor([2])
    return graph.judge(logits, drafted, two, q, names, torch.tensor([4]))[0][0]


def test_a_broken_drafter_is_told() -> None:
    fair = torch.full((1, 2, VOCAB), 1 / VOCAB)
    assert broken([5, 6], fair)[2] == 0
    assert broken([5, 6], None)[2] == 0
    for tokens in ([VOCAB, 6], [5, -1]):
        assert broken(tokens, fair)[2] == 1 and broken(tokens, None)[2] == 1
    assert broken([5, 6], 2 * fair)[2] == 1
    assert broken([5, 6], fair * torch.nan)[2] == 1


class Chain(Drafter, DraftSession):
    """Says the same whatever was written."""

    def __init__(self, tokens: list[int], q: Tensor | None = None) -> None:
        self.proposal = Proposal.chain(torch.tensor([tokens]), q=q)

    def start(self, state: Any) -> DraftSession:
        return self

    def propose(self, state: Any, limit: Any) -> Proposal:
        return self.proposal if min(limit) >= 2 else Proposal.empty(state.batch_size, state.device)


def sample(drafter: Any, **arguments: Any) -> Any:
    target = tiny("llama")
    assert traced.why_not_captured(target) is None
    arguments = {
        "do_sample": True,
        "temperature": 0.9,
        "top_k": 0,
        "num_draft_tokens": 2,
        "max_new_tokens": 12,
        **arguments,
    }
    return specdec.generate(
        target, **prompts(1), drafter=drafter, compile=True, return_dict_in_generate=True, **arguments
    )


def test_a_round_is_two_graphs() -> None:
    out = sample(Chain([5, 6]))
    use = out.speculation.graphs
    assert use.roles == {"target": "compiled", "sampling": "compiled"}
    assert use.calls == 1 + 2 * out.speculation.rounds  # prefill is one
    assert out.speculation.host_syncs == out.speculation.rounds + 1


def test_a_draft_token_is_two_graphs() -> None:
    draft = tiny("llama", noise=0.02)
    assert traced.why_not_captured(draft) is None
    out = sample(draft)
    stats = out.speculation
    assert stats.accepted > 0
    # The first proposal feeds the prompt in a call more or less; what follows is two calls a token.
    assert stats.graphs.calls == 1 + 2 * stats.rounds + stats.draft_calls + stats.drafted


@pytest.mark.long
def test_a_draft_of_another_dtype() -> None:
    """Read as another dtype its logits would be noise."""
    draft = copy.deepcopy(tiny("llama", noise=0.02)).to(torch.float32)
    assert traced.why_not_captured(draft) is None
    asked = {**prompts(1), "do_sample": True, "temperature": 0.9, "top_k": 0, "max_new_tokens": 24}
    out = sample(draft, max_new_tokens=24, generator=torch.Generator().manual_seed(1))
    plain = specdec.generate(
        tiny("llama"), **asked, drafter=draft, num_draft_tokens=2, generator=torch.Generator().manual_seed(1)
    )
    assert torch.equal(out.sequences, plain)
    stats = out.speculation
    assert stats.accepted > 0
    assert stats.graphs.calls == 1 + 2 * stats.rounds + stats.draft_calls + stats.drafted


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_q_of_any_dtype(dtype: torch.dtype) -> None:
    q = torch.linspace(0, 9, VOCAB).softmax(0).expand(1, 2, -1).to(dtype)  # in bfloat16 its sum is off by 0.003
    tokens = [VOCAB - 1, VOCAB - 2]
    out = sample(Chain(tokens, q), generator=torch.Generator().manual_seed(1))
    plain = specdec.generate(
        tiny("llama"),
        **prompts(1),
        drafter=Chain(tokens, q),
        num_draft_tokens=2,
        do_sample=True,
        temperature=0.9,
        top_k=0,
        max_new_tokens=12,
        generator=torch.Generator().manual_seed(1),
    )
    assert torch.equal(out.sequences, plain)
    if dtype is torch.float64:
        assert out.speculation.graphs.calls == 1 + 2 * out.speculation.rounds


class Told(Drafter, DraftSession):
    """Half of each proposal is padding, which may be any number; keeps what it is told."""

    observes = "choices"

    def __init__(self) -> None:
        self.paths: list[tuple[int, ...]] = []
        self.choices: list[Tensor] = []

    def start(self, state: Any) -> DraftSession:
        return self

    def propose(self, state: Any, limit: Any) -> Proposal:
        if min(limit) < 2:
            return Proposal.empty(state.batch_size, state.device)
        return Proposal.chain(torch.tensor([[5, -1]]), torch.tensor([[True, False]]))

    def observe_choices(self, proposal: Proposal, acceptance: Any, num_accepted: Any, choices: Tensor) -> None:
        self.paths.append(tuple(acceptance.path.shape))
        self.choices.append(choices)


@pytest.mark.parametrize("do_sample", [False, True])
def test_padding_of_a_chain_and_what_drafters_are_told(do_sample: bool) -> None:
    """As uncompiled: padding is no breach, a path has a place a node, and nothing is said of what was not verified."""
    told, plain = Told(), Told()
    options = {"do_sample": do_sample, "temperature": 0.9, "top_k": 0} if do_sample else {"do_sample": False}
    asked = {**prompts(1), "num_draft_tokens": 2, "max_new_tokens": 12, **options}
    target = tiny("llama")
    assert traced.why_not_captured(target) is None
    outs = [
        specdec.generate(target, **asked, drafter=who, compile=compile, generator=torch.Generator().manual_seed(2))
        for who, compile in ((told, True), (plain, False))
    ]
    assert torch.equal(*outs)
    assert told.paths == plain.paths and set(told.paths) == {(1, 2)}
    for ours, theirs in zip(told.choices, plain.choices, strict=True):
        assert torch.equal(ours, theirs)
        assert ours[0, 2] == -1


@pytest.mark.parametrize("rows", [1, 3])
def test_another_default_dtype(rows: int) -> None:
    """torch.set_default_dtype() changes nothing of what the graph is given."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        logits, q, tokens, count = case(4, rows, 2)
        names = (torch.tensor([3]), torch.arange(rows), torch.arange(rows))
        drafted = torch.cat([torch.zeros(rows, 1, dtype=torch.int64), tokens], dim=1)
        for given in (q, None):
            outcome, _ = chance_of(WARPERS["temperature"]).judge(logits, drafted, count, given, names, names[2])
            assert not outcome[:, 2].any()
    finally:
        torch.set_default_dtype(before)


def test_errors_are_the_same() -> None:
    with pytest.raises(DrafterError, match="outside 0"):
        sample(Chain([5, VOCAB]))
    with pytest.raises(DrafterError, match="no distribution"):
        sample(Chain([5, 6], torch.full((1, 2, VOCAB), 0.5)))
    nan, row = torch.full((1, 1, VOCAB), torch.nan, dtype=torch.float64), torch.tensor([0])
    outcome, _ = chance_of(WARPERS["temperature"]).judge(nan, row[None], row, None, (row, row, row), row)
    assert outcome[0, 3] == -1  # which the loop reports as a NumericalError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"typical_p": 0.5}, "TypicalLogitsWarper is not part of the graph"),
        ({"repetition_penalty": 1.5}, "RepetitionPenaltyLogitsProcessor is not part of the graph"),
        ({"top_k": VOCAB}, "smaller than top_k"),
    ],
)
def test_who_has_no_graph(arguments: dict[str, Any], words: str) -> None:
    out = sample(Chain([5, 6]), **arguments)
    assert words in out.speculation.graphs.roles["sampling"]
    assert out.speculation.graphs.calls == 1 + out.speculation.rounds


def test_a_large_vocabulary_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled, "_MOST_VOCAB", VOCAB - 1)
    out = sample(Chain([5, 6]))
    assert "its vocabulary is so large" in out.speculation.graphs.roles["sampling"]


def test_block_verification_and_greedy_calls_ask_for_none() -> None:
    assert "sampling" not in sample(None, do_sample=False, num_draft_tokens="auto").speculation.graphs.roles
    draft = tiny("llama", noise=0.02)
    assert traced.why_not_captured(draft) is None
    out = sample(draft, rule="block")
    assert out.speculation.accepted > 0
    stats = (
        out.speculation
    )  # a graph for each forward and each drafted token; a second one in rounds without drafts only
    drafting = stats.drafted_per_depth[0]
    assert stats.graphs.calls == 1 + stats.draft_calls + stats.drafted + stats.rounds + (stats.rounds - drafting)


# Packages


class Builder:
    """In place of the compiler."""

    def __init__(self) -> None:
        self.builds = 0
        self.fails = self.lies = False

    def build(self, recipe: Recipe, store: Store, key: str) -> tuple[Any, pathlib.Path]:
        self.builds += 1
        if self.fails:
            raise RuntimeError("no compiler")
        file = store.temporary(key)
        file.write_text("a graph")
        self.run = traced.chance(recipe, True)
        return describe(key, "sampling", file, 1.0, []), file

    def load(self, file: pathlib.Path) -> Any:
        if not self.lies:
            return self.run

        def lying(inputs: list[Tensor]) -> Any:
            outcome, ends, probs = self.run(inputs)
            return (outcome + torch.tensor([0, 0, 0] + [1] * (outcome.shape[1] - 3))) % VOCAB, ends, probs

        return lying


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Builder]:
    builder = Builder()
    monkeypatch.setattr(sampled, "_run_of", RUN_OF)
    monkeypatch.setattr(building, "build_chance", builder.build)
    monkeypatch.setattr(building, "load", builder.load)
    sampled._known.clear()
    yield builder
    sampled._known.clear()


def role(**arguments: Any) -> str:
    words: str = sample(Chain([5, 6]), **arguments).speculation.graphs.roles["sampling"]
    return words


def test_built_once_for_all_temperatures(builder: Builder) -> None:
    assert role(temperature=0.5) == role(temperature=0.9) == "compiled"
    assert builder.builds == 1
    sampled._known.clear()  # as another process
    assert role(temperature=0.7) == "compiled"
    assert builder.builds == 1
    assert role(top_k=12, top_p=0.9) == "compiled"  # as in test_rounds.py, which has traced it
    assert builder.builds == 2


def test_a_failure_is_told_and_remembered(builder: Builder) -> None:
    builder.fails = True
    assert "no compiler" in role(temperature=0.5)
    assert "no compiler" in role(temperature=0.5)
    assert builder.builds == 1


def test_a_graph_that_gives_other_tokens_is_not_used(builder: Builder) -> None:
    builder.lies = True
    assert "other tokens" in role(temperature=0.5)
    assert Store().packages() == []


def test_auto_builds_none(builder: Builder) -> None:
    target = tiny("llama")
    runner = specdec.target.ModelRunner(target)
    sampler, use = Sampler([hf.TemperatureLogitsWarper(0.7)], do_sample=True), GraphUse()
    assert sampled.chance(sampler, runner, "auto", use, 1) is None
    assert "builds none" in use.roles["sampling"] and builder.builds == 0
    assert sampled.chance(sampler, runner, True, use, 1) is not None
    sampled._known.clear()
    assert sampled.chance(sampler, runner, "auto", use, 1) is not None


@pytest.mark.long
def test_a_real_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """What inductor makes of it commits the same tokens."""
    monkeypatch.setattr(sampled, "_run_of", RUN_OF)
    sampled._known.clear()
    draft, seeds = tiny("llama", noise=0.02), [torch.Generator().manual_seed(3) for _ in range(2)]
    asked: dict[str, Any] = {"temperature": 0.8, "top_k": 12, "max_new_tokens": 40}
    compiled = sample(draft, **asked, generator=seeds[0])
    assert compiled.speculation.graphs.roles["sampling"] == "compiled"
    plain = specdec.generate(
        tiny("llama"), **prompts(1), drafter=draft, num_draft_tokens=2, do_sample=True, **asked, generator=seeds[1]
    )
    assert torch.equal(compiled.sequences, plain)
