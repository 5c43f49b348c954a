"""What a call may ask for beside greedy chains, through a graph: the same output as uncompiled, and transformers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import traced
from models import prompts, tiny
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec.drafters import Drafter, DraftSession
from specdec.types import Proposal

NEW_TOKENS = 40


@pytest.fixture
def target() -> PreTrainedModel:
    model = tiny("llama")
    assert traced.why_not_captured(model) is None
    return model


@pytest.fixture
def draft() -> PreTrainedModel:
    model = tiny("llama", noise=0.02)
    assert traced.why_not_captured(model) is None
    return model


def both(target: PreTrainedModel, drafter: Any, batch_size: int = 3, **kwargs: Any) -> tuple[Any, Any]:
    """The same call compiled and not."""
    outputs = []
    for compile in (True, False):
        torch.manual_seed(5)
        arguments = {"num_draft_tokens": 4, "max_new_tokens": NEW_TOKENS, "do_sample": False, **kwargs}
        outputs.append(
            specdec.generate(
                target,
                **prompts(batch_size),
                drafter=drafter,
                compile=compile,
                return_dict_in_generate=True,
                **arguments,
            )
        )
    compiled, plain = outputs
    assert compiled.speculation.graphs.roles["target"] == "compiled"
    assert compiled.speculation.graphs.calls >= compiled.speculation.rounds
    assert plain.speculation.graphs.calls == 0
    return compiled, plain


@pytest.mark.parametrize("rule", ["rejection", "block"])
@pytest.mark.parametrize("warpers", [{}, {"top_k": 12, "top_p": 0.9}, {"repetition_penalty": 1.3}])
def test_sampling(target: PreTrainedModel, draft: PreTrainedModel, rule: Any, warpers: dict[str, Any]) -> None:
    """The same coins give the same text: the graph gives logits, the rule is the one that is proven."""
    arguments = {"do_sample": True, "temperature": 0.8, "top_k": 0, **warpers}
    compiled, plain = both(target, draft, rule=rule, **arguments)
    assert torch.equal(compiled.sequences, plain.sequences)
    assert 0 < compiled.speculation.accepted == plain.speculation.accepted


@pytest.mark.parametrize("drafter", [None, specdec.NgramDrafter(min_ngram=1)])
@pytest.mark.parametrize("processors", [{"repetition_penalty": 1.5}, {"suppress_tokens": [3, 4, 5]}])
def test_greedy_with_processors(target: PreTrainedModel, drafter: Any, processors: dict[str, Any]) -> None:
    compiled, plain = both(target, drafter, **processors)
    assert torch.equal(compiled.sequences, plain.sequences)


class Padded(Drafter):
    """Right tokens for every row, of which row b says so of the first b only: the others are padding."""

    def __init__(self, texts: list[list[int]]) -> None:
        self.texts = texts

    def start(self, state: specdec.DecodeState) -> DraftSession:
        texts = self.texts

        class Session(DraftSession):
            def propose(self, state: specdec.DecodeState, limit: Any) -> Proposal:
                depth = min(3, max(limit))
                rows = [
                    (texts[request][len(text) :] + [0] * depth)[:depth]
                    for request, text in zip(state.host_requests, state.host_tokens, strict=True)
                ]
                most = [min(n, request) for n, request in zip(limit, state.host_requests, strict=True)]
                return Proposal.chain(torch.tensor(rows), torch.arange(depth) < torch.tensor(most)[:, None])

        return Session()


def test_padding_is_not_accepted_though_it_would_be_right(target: PreTrainedModel) -> None:
    inputs = prompts(3)
    whole = target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    texts = [
        [*ids[mask.bool()].tolist(), *new.tolist()]
        for ids, mask, new in zip(
            inputs["input_ids"], inputs["attention_mask"], whole[:, inputs["input_ids"].shape[1] :], strict=True
        )
    ]
    compiled, plain = both(target, Padded(texts))
    assert torch.equal(compiled.sequences, whole)
    assert compiled.speculation.drafted == compiled.speculation.accepted == plain.speculation.accepted > 0


def test_scores_and_logits(target: PreTrainedModel, draft: PreTrainedModel) -> None:
    compiled, plain = both(target, draft, output_scores=True, output_logits=True)
    assert torch.equal(compiled.sequences, plain.sequences)
    for name in ("scores", "logits"):
        for ours, theirs in zip(getattr(compiled, name), getattr(plain, name), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


class Forest(Drafter, DraftSession):
    """Two branches at the root, one of which says what the target will."""

    def __init__(self, answer: Tensor) -> None:
        self.answer = answer

    def start(self, state: Any) -> DraftSession:
        return self

    def propose(self, state: Any, limit: Any) -> Proposal:
        rows = []
        for request, tokens in zip(state.host_requests, state.host_tokens, strict=True):
            new = len(tokens) - state.prompt_lengths[state.host_requests.index(request)]
            wanted = self.answer[request, new : new + 2].tolist()
            right, after = [*wanted, 7, 7][:2]
            rows.append([(right + 1) % 96, right, after, (after + 1) % 96])
        tokens = torch.tensor(rows)
        parents = torch.tensor([-1, -1, 1, 1]).expand(len(rows), -1)
        return Proposal(tokens, parents, torch.ones_like(tokens, dtype=torch.bool), depth=2, width=2)


def test_trees(target: PreTrainedModel) -> None:
    """The window's own mask and positions are the graph's inputs, so that a tree is one call as well."""
    reference = target.generate(**prompts(3), max_new_tokens=NEW_TOKENS, do_sample=False)
    drafter = Forest(reference[:, -NEW_TOKENS:])
    compiled, _ = both(target, drafter, num_draft_tokens=2)
    assert torch.equal(compiled.sequences, reference)
    assert compiled.speculation.acceptance_rate == 1.0 or compiled.speculation.acceptance_length > 2.5


def test_rows_leave_one_by_one(target: PreTrainedModel, draft: PreTrainedModel) -> None:
    free = target.generate(**prompts(3), max_new_tokens=NEW_TOKENS, do_sample=False)[:, -NEW_TOKENS:]
    eos = [int(free[0, 7]), int(free[1, 19])]
    expected = target.generate(
        **prompts(3), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=eos, pad_token_id=0
    )
    compiled, _ = both(target, draft, eos_token_id=eos, pad_token_id=0)
    assert torch.equal(compiled.sequences, expected)


@pytest.mark.parametrize("chunk", [None, 4])
def test_a_cache_that_is_returned_goes_on_compiled_or_not(target: PreTrainedModel, chunk: int | None) -> None:
    """One cache under both: what one wrote the other reads."""
    arguments: dict[str, Any] = {"do_sample": False, "prefill_chunk_size": chunk}
    inputs = prompts(3)
    whole = target.generate(**inputs, max_new_tokens=24, do_sample=False)
    out = specdec.generate(target, **inputs, max_new_tokens=12, compile=True, return_dict_in_generate=True, **arguments)
    for compile in (False, True):
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, out.sequences.shape[1] - 11), value=1)
        out = specdec.generate(
            target,
            out.sequences,
            attention_mask=mask,
            past_key_values=out.past_key_values,
            max_new_tokens=6,
            compile=compile,
            return_dict_in_generate=True,
            **arguments,
        )
        assert out.speculation.prompt_tokens == 3, "only each row's last token is read again"
    assert torch.equal(out.sequences, whole)


def test_auto_and_fixed_numbers_of_draft_tokens(target: PreTrainedModel, draft: PreTrainedModel) -> None:
    """Rounds without drafts leave the draft behind by more than its two tokens; it catches up."""
    reference = target.generate(**prompts(3), max_new_tokens=NEW_TOKENS, do_sample=False)
    for count in (1, 7, "auto"):
        compiled, _ = both(target, draft, num_draft_tokens=count)
        assert torch.equal(compiled.sequences, reference)


def test_wide_windows_may_be_left_to_the_model(target: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its own products are faster: the prompt is read uncompiled, into the same cache."""
    before = traced._graphs[target]
    monkeypatch.setitem(traced._graphs, target, type(before)(before.run, before.memory, widest=8))
    traced.why_not_captured(target)
    calls = traced.calls
    compiled, plain = both(target, None, batch_size=1)
    assert torch.equal(compiled.sequences, plain.sequences)
    assert traced.calls - calls == NEW_TOKENS - 1, "the prompt of 11 tokens was not among them"


def test_a_broken_draft_is_told(target: PreTrainedModel) -> None:
    """Ids outside the vocabulary are seen in the graph, which reads others in their place."""

    class Broken(Drafter, DraftSession):
        def start(self, state: Any) -> DraftSession:
            return self

        def propose(self, state: Any, limit: Any) -> Proposal:
            return Proposal.chain(torch.full((state.batch_size, 2), 96))

    with pytest.raises(specdec.DrafterError, match=r"outside 0\.\.95"):
        specdec.generate(target, **prompts(1), drafter=Broken(), num_draft_tokens=2, max_new_tokens=8, compile=True)
    out = specdec.generate(target, **prompts(1), max_new_tokens=8, do_sample=False, compile=True)
    assert torch.equal(out, target.generate(**prompts(1), max_new_tokens=8, do_sample=False))


def test_a_prompt_longer_than_a_window_is_fed_in_parts(
    target: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specdec.compiled.runner._CHUNK", 4)
    reference = target.generate(**prompts(3), max_new_tokens=8, do_sample=False)
    compiled, _ = both(target, None, max_new_tokens=8)
    assert torch.equal(compiled.sequences, reference)
