"""SuffixDrafter in the loop: the target's output token for token, whatever it drafts from, and what it remembers."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import families
import pytest
import torch
from models import tiny
from scipy.stats import chi2
from torch import Tensor
from transformers.generation import logits_process as hf

import specdec
from specdec.drafters.suffix import SuffixSession

NEW_TOKENS = 40
FAMILIES = ["llama", "bloom", "mistral", "mamba2", "bart"]


@cache
def expected(name: str, batch_size: int) -> Tensor:
    model, inputs = families.family(name), families.inputs(name, batch_size)
    return model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)


def write(name: str, batch_size: int, drafter: specdec.Drafter, k: int = 6) -> Any:
    model, inputs = families.family(name), families.inputs(name, batch_size)
    return specdec.generate(
        model,
        **inputs,
        drafter=drafter,
        num_draft_tokens=k,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
    )


def texts_of(name: str, batch_size: int, luck: int) -> list[list[int]]:
    """The target's own outputs, each `luck`-th token replaced: a corpus that is often right."""
    rows = expected(name, batch_size).tolist()
    return [[(t + 1) % 96 if i % luck == 0 else t for i, t in enumerate(row)] for row in rows]


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[specdec.Proposal]]:
    """Every proposal that sessions make, checked against the limits that they were given."""
    seen: list[specdec.Proposal] = []
    propose = SuffixSession.propose

    def watching(self: SuffixSession, state: specdec.DecodeState, limit: list[int]) -> specdec.Proposal:
        proposal = propose(self, state, limit)
        assert proposal.q is None
        for row, most in enumerate(limit):
            depths: list[int] = []
            for parent, valid in zip(proposal.parents[row].tolist(), proposal.valid[row].tolist(), strict=True):
                depths.append(1 if parent < 0 else depths[parent] + 1)
                assert not valid or depths[-1] <= most
        seen.append(proposal)
        return proposal

    with monkeypatch.context() as patch:
        patch.setattr(SuffixSession, "propose", watching)
        yield seen


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("tree", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_equality(name: str, tree: bool, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an index of two altered copies of the output: branches, right ones and wrong ones, in every row."""
    texts = texts_of(name, batch_size, luck=5) + texts_of(name, batch_size, luck=7)
    drafter = specdec.SuffixDrafter(specdec.SuffixIndex.build(texts), tree=tree, min_score=0.0)
    with watched(monkeypatch) as proposals:
        out = write(name, batch_size, drafter)
    assert torch.equal(out.sequences, expected(name, batch_size))
    assert out.speculation.accepted > 0
    assert out.speculation.accepted < out.speculation.drafted
    has_trees = name in ("llama", "mistral")  # the others' memory or positions allow chains only
    assert any(not p.is_chain for p in proposals) == (tree and has_trees)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_its_own_text_only(batch_size: int) -> None:
    """Output that repeats itself, and the prompt with it; no index."""
    target = tiny("llama")
    ids = torch.randint(2, 90, (batch_size, 12), generator=torch.Generator().manual_seed(1)).repeat(1, 3)
    mask = torch.ones_like(ids)
    for row in range(1, batch_size):
        mask[row, : 3 * row] = 0
    arguments = {"input_ids": ids * mask, "attention_mask": mask, "max_new_tokens": 60, "do_sample": False}
    out = specdec.generate(
        target, **arguments, drafter=specdec.SuffixDrafter(), num_draft_tokens=6, return_dict_in_generate=True
    )
    assert torch.equal(out.sequences, target.generate(**arguments))
    assert out.speculation.drafted > 0
    assert out.speculation.accepted > 0 or batch_size == 1


def test_rows_that_leave_early(monkeypatch: pytest.MonkeyPatch) -> None:
    target, inputs = families.family("llama"), families.inputs("llama", 3)
    free = expected("llama", 3)
    arguments = {**inputs, "max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    arguments["eos_token_id"] = [int(free[0, -25]), int(free[1, -12])]
    whole = target.generate(**arguments)
    ends = {int((row[-NEW_TOKENS:] == 0).sum()) for row in whole}
    assert len(ends) > 1, "rows end at different places"
    drafter = specdec.SuffixDrafter(specdec.SuffixIndex.build(texts_of("llama", 3, 6)), remember=True, tree=True)
    with watched(monkeypatch) as proposals:
        out = specdec.generate(target, **arguments, drafter=drafter, num_draft_tokens=5)
    assert torch.equal(out, whole)
    assert {p.tokens.shape[0] for p in proposals} >= {3, 1} or {p.tokens.shape[0] for p in proposals} >= {3, 2}
    assert drafter.index.num_texts == 6, "each row is remembered once"


def remembered(index: specdec.SuffixIndex) -> list[list[int]]:
    texts: list[list[int]] = []
    for array in index.arrays:
        for token in array.tokens[:-1].tolist():
            texts.append([]) if token < 0 else texts[-1].append(token)
    return texts


def test_remembering_across_calls() -> None:
    """The second call copies the first one's output; the text is what it was."""
    drafter = specdec.SuffixDrafter(remember=True)
    first = write("llama", 3, drafter)
    assert drafter.index.num_texts == 3
    assert drafter.index.vocab_size == 96
    rows = [row[mask.bool().tolist() + [True] * NEW_TOKENS] for row, mask in
            zip(first.sequences, families.inputs("llama", 3)["attention_mask"], strict=True)]  # fmt: skip
    assert sorted(remembered(drafter.index)) == sorted(row.tolist() for row in rows)
    second = write("llama", 3, drafter)
    assert torch.equal(second.sequences, first.sequences)
    assert torch.equal(second.sequences, expected("llama", 3))
    assert second.speculation.rounds <= first.speculation.rounds / 3
    assert second.speculation.acceptance_rate == 1.0
    forgetful = specdec.SuffixDrafter(drafter.index)
    write("llama", 1, forgetful)
    assert drafter.index.num_texts == 6, "nothing is remembered unless it was asked for"


def test_an_aborted_call_leaves_nothing_behind() -> None:
    drafter = specdec.SuffixDrafter(remember=True)

    def stop(part: specdec.Committed) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        specdec.generate(
            families.family("llama"), **families.inputs("llama", 1), drafter=drafter, max_new_tokens=9, on_commit=stop
        )
    assert drafter.index.num_texts == 0


def test_two_threads_share_a_drafter() -> None:
    drafter = specdec.SuffixDrafter(remember=True, tree=True)
    outputs: dict[int, list[Tensor]] = {1: [], 3: []}

    def call(batch_size: int) -> None:
        for _ in range(3):
            outputs[batch_size].append(write("llama", batch_size, drafter).sequences)

    expected("llama", 1), expected("llama", 3)
    threads = [threading.Thread(target=call, args=(n,)) for n in outputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batch_size, written in outputs.items():
        assert len(written) == 3
        assert all(torch.equal(text, expected("llama", batch_size)) for text in written)
    assert drafter.index.num_texts == 12


@pytest.mark.parametrize(("own", "other", "drafted"), [(2, 3, 60), (3, 2, 50), (2, 2, 50)])
def test_the_longer_match_drafts_ties_to_the_own_text(own: int, other: int, drafted: int) -> None:
    """The row says 50 behind its last `own` tokens, the index 60 behind its last `other` ones."""
    context = [11, 12, 13]
    text = [1, *context[3 - own :], 50, 2, *context]
    index = specdec.SuffixIndex.build([[7, *context[3 - other :], 60]])
    state = ScriptedState(text)
    proposal = specdec.SuffixDrafter(index).start(state).propose(state, [1])
    assert proposal.tokens.tolist() == [[drafted]]


class ScriptedState:
    """A stand-in for DecodeState where only tokens matter."""

    def __init__(self, *rows: list[int]) -> None:
        self.host_tokens = [list(row) for row in rows]
        self.device, self.target = torch.device("cpu"), None

    @property
    def batch_size(self) -> int:
        return len(self.host_tokens)


def test_length_follows_the_match() -> None:
    """alpha tokens for each that matched, max_nodes and the limit at most, nothing below min_match."""
    text = [*range(1, 30), 40, 5, 6, 7]
    state = ScriptedState(text)

    def size(limit: int = 16, **options: Any) -> int:
        return specdec.SuffixDrafter(**options).start(state).propose(state, [limit]).num_nodes

    assert size(alpha=1.0) == 3
    assert size(alpha=1.5) == 5
    assert size(alpha=4.0) == 12
    assert size(alpha=4.0, max_nodes=7) == 7
    assert size(limit=2) == 2
    assert size(min_match=3, alpha=1.0) == 3
    assert size(min_match=4) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"index": 3}, "index must be a SuffixIndex or the path"),
        ({"tree": "yes"}, "tree must be"),
        ({"max_nodes": 0}, "positive integer as max_nodes"),
        ({"min_match": 0}, "positive integer as min_match"),
        ({"alpha": 0}, "alpha"),
        ({"min_score": 1.5}, "min_score"),
    ],
)
def test_impossible_settings(options: dict[str, Any], words: str) -> None:
    with pytest.raises(specdec.OptionError, match=words):
        specdec.SuffixDrafter(**options)


def test_a_saved_index_drafts(tmp_path: pathlib.Path) -> None:
    specdec.SuffixIndex.build(texts_of("llama", 1, 9)).save(tmp_path / "index.npz")
    out = write("llama", 1, specdec.SuffixDrafter(tmp_path / "index.npz"))
    assert torch.equal(out.sequences, expected("llama", 1))
    assert out.speculation.rounds < 0.5 * NEW_TOKENS


@torch.no_grad()
def law(prompt: list[int], depth: int) -> dict[tuple[int, ...], float]:
    """The exact law of the target's next tokens, by enumeration."""
    target, law = tiny("llama"), {(): 1.0}
    for _ in range(depth):
        longer: dict[tuple[int, ...], float] = {}
        for outcome, probability in law.items():
            ids = torch.tensor([[*prompt, *outcome]])
            scores = hf.TopKLogitsWarper(3)(ids, target(ids).logits[:, -1].float())
            for token, p in enumerate(scores.softmax(-1)[0].tolist()):
                if p > 0:
                    longer[(*outcome, token)] = probability * p
        law = longer
    return law


@pytest.mark.parametrize("tree", [True, False])
def test_sampled_law(tree: bool) -> None:
    """G-test: 2,000 rows of one prompt against exact enumeration, with an index that knows many continuations."""
    prompt = [7, 8, 9, 7, 8]
    exact = law(prompt, 2)
    likely = sorted(exact, key=exact.__getitem__)[-5:]
    index = specdec.SuffixIndex.build([[*prompt, *outcome] for outcome in likely])
    out = specdec.generate(
        tiny("llama"),
        torch.tensor([prompt] * 1_200),
        drafter=specdec.SuffixDrafter(index, tree=tree, min_score=0.0),
        num_draft_tokens=2,
        do_sample=True,
        top_k=3,
        max_new_tokens=3,
        generator=torch.Generator().manual_seed(3),
        return_dict_in_generate=True,
    )
    assert 0.1 < out.speculation.acceptance_rate < 1
    observed: dict[tuple[int, ...], int] = {}
    for row in out.sequences[:, 5:7].tolist():
        observed[tuple(row)] = observed.get(tuple(row), 0) + 1
    assert set(observed) <= set(exact)
    cells = [(observed.get(o, 0), 1_200 * p) for o, p in exact.items() if 1_200 * p >= 5]
    cells.append((1_200 - sum(o for o, _ in cells), 1_200 - sum(e for _, e in cells)))
    statistic = sum(2 * o * torch.tensor(o / e).log().item() for o, e in cells if o and e > 0)
    assert len(cells) > 5
    assert chi2.sf(statistic, len(cells) - 1) > 1e-6
