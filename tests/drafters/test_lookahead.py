"""Lookahead decoding: the bookkeeping against the paper's algorithm, and the output against the target's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import families
import pytest
import torch
from lossless.enumerated import SUPPRESSED, TOP_K, p_of
from models import VOCAB_SIZE, prompts, tiny
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec import decode
from specdec.controller import FixedLength
from specdec.drafters.jacobi import JacobiWindow, Pool
from specdec.drafters.lookahead import LookaheadSession
from specdec.drafters.trie import Trie
from specdec.state import DecodeState
from specdec.types import Proposal

NEW_TOKENS = 30
FAMILIES = ["llama", "gpt2", "mistral", "gemma3_text", "mixtral", "bloom", "mamba2"]


def next_token(context: Sequence[int]) -> int:
    """A toy model: greedy, depends on the last three tokens, and repeats itself sooner or later."""
    value = 7
    for token in context[-3:]:
        value = (value * 31 + token * token + 3) % 1009
    return value % 11


class Paper:
    """Algorithm 2 of arXiv:2402.02057 as in the authors' code after its warm-up; N >= 3, no limits, no trees.

    levels[0] is the oldest iteration, of the W - 1 tokens behind the current one; columns as in the paper's figure: a
    query at level l of column i sees the text, levels[0] up to its own column, and its own column's levels 1 to l.
    """

    def __init__(self, text: list[int], window: int, ngram: int, model: Callable[[Sequence[int]], int]) -> None:
        guesses = [text[i % len(text)] for i in range(window + ngram)]
        self.window, self.ngram, self.model, self.round = window, ngram, model, 0
        self.levels = [guesses[: window - 1], *[guesses[level - 1 :][:window] for level in range(1, ngram - 1)]]
        self.ngrams: list[tuple[int, ...]] = []  # in the order in which they were found

    def step(self, text: list[int]) -> None:
        results = []
        for column in range(self.window):
            below = [level[column] for level in self.levels[1:]]
            results.append(self.model([*text, *self.levels[0][:column], *below]))
        keys = [text[-1], *self.levels[0]]
        if self.round >= self.ngram - 2:
            for column in range(self.window):
                below = [level[column] for level in self.levels[1:]]
                self.ngrams.append((keys[column], *below, results[column]))
        self.round += 1
        self.levels = [self.levels[1][1:], *self.levels[2:], results]


def path(tree: Trie, node: int) -> list[int]:
    tokens: list[int] = []
    while node >= 0:
        tokens.insert(0, tree.tokens[node])
        node = tree.parents[node]
    return tokens


@pytest.mark.parametrize(("window", "ngram"), [(2, 3), (5, 3), (3, 4), (7, 5), (4, 6)])
def test_window_and_ngrams_are_the_papers(window: int, ngram: int) -> None:
    """Twelve rounds of any number of committed tokens: the same guesses, and the same n-grams in the same order."""
    text = [3, 1, 4, 1, 5]
    paper, ours = Paper(text, window, ngram, next_token), JacobiWindow(text, window, ngram)
    pool = Recorder()
    for step in range(12):
        tree = Trie()
        tree.add([9, 9, 2], limit=16)  # something else in the tree changes nothing
        ends = ours.place(tree, limit=16)
        assert len(ends) == window
        ours.advance(text[-1], [next_token([*text, *path(tree, end)]) for end in ends], pool)
        paper.step(text)
        assert ours.levels == paper.levels
        assert pool.ngrams == paper.ngrams
        for _ in range(1 + step % 3):
            text.append(next_token(text))
    assert len(pool.ngrams) == window * (12 - (ngram - 2))


class Recorder(Pool):
    def __init__(self) -> None:
        super().__init__(10, 1000)
        self.ngrams: list[tuple[int, ...]] = []

    def add(self, first: int, rest: tuple[int, ...]) -> None:
        self.ngrams.append((first, *rest))


@pytest.mark.parametrize(("limit", "columns"), [(0, 0), (1, 0), (2, 1), (4, 3), (6, 5), (16, 5)])
def test_columns_beyond_the_limit_are_not_run_and_keep_their_guesses(limit: int, columns: int) -> None:
    window = JacobiWindow(range(100, 120), window=5, ngram=4)
    tree = Trie()
    ends = window.place(tree, limit)
    assert len(ends) == columns
    assert max(tree.depths, default=0) <= limit
    pool = Recorder()
    window.advance(99, [7] * columns, pool)
    # The newest guesses were of the tokens 2 to 6 ahead; one further on there is none for the last column.
    assert window.levels[-1] == [7] * columns + [102, 103, 104, 105, 105][columns:]
    assert pool.ngrams == []


def test_an_ngram_needs_answers_at_all_its_levels() -> None:
    """A round without an answer begins the count anew for its column only."""
    window, pool = JacobiWindow(range(10), window=3, ngram=4), Recorder()
    for missing in (None, None, 0, None, None, None):
        answers: list[int | None] = [50, 51, 52]
        if missing is not None:
            answers[missing] = None
        window.advance(1, answers, pool)
    found = len(pool.ngrams)
    # Rounds 3 to 6 of columns 1 and 2; of column 0, which began anew in round 3, round 6.
    assert found == 2 * 4 + 1


def test_bigrams_have_no_levels_but_the_trunk() -> None:
    window, pool = JacobiWindow([4, 5, 6], window=3, ngram=2), Recorder()
    tree = Trie()
    assert window.place(tree, limit=2) == [-1, 0, 1]
    assert tree.tokens == [4, 5]
    window.advance(6, [1, 2, 3], pool)
    assert pool.ngrams == [(6, 1), (4, 2), (5, 3)]
    assert window.levels == [[2, 3]]


def test_pool_keeps_the_latest() -> None:
    pool = Pool(max_candidates=2, max_ngrams=4)
    for rest in ((1,), (2,), (1,), (3,)):
        pool.add(9, rest)
    assert pool.candidates(9) == [(3,), (1,)]
    pool.add(8, (1,))
    pool.add(8, (2,))
    assert len(pool) == 4
    pool.add(7, (1,))  # token 9 is the least recently added to
    assert len(pool) == 3
    assert pool.candidates(9) == []
    assert pool.candidates(8) == [(2,), (1,)]


def generate(target: PreTrainedModel, inputs: dict[str, Tensor], drafter: specdec.Drafter, **kwargs: Any) -> Any:
    arguments: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "num_draft_tokens": 6, **kwargs}
    return specdec.generate(target, **inputs, drafter=drafter, return_dict_in_generate=True, **arguments)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_equality(name: str, batch_size: int) -> None:
    """Also where no trees are verified: then the text's own n-grams are drafted as chains."""
    target, inputs = families.family(name), families.inputs(name, batch_size)
    out = generate(target, inputs, specdec.LookaheadDrafter(window=5, ngram=4, max_candidates=4))
    expected = target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    assert torch.equal(out.sequences, expected)
    assert out.speculation.drafted > 0
    assert out.speculation.draft_calls == 0


def test_rounds_without_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As "auto" has them where drafts do not pay: the windows stay as they were, and the text is the target's."""

    class Now(FixedLength):
        def __init__(self, depth: int, debt: float) -> None:
            super().__init__(depth)

        def choose(self) -> int:
            calls.append(next(asked))
            return calls[-1]

    calls: list[int] = []
    monkeypatch.setattr(decode, "AutoSwitch", Now)
    target, inputs = tiny("llama"), prompts(3)
    asked = itertools.cycle([0, 6, 0, 0, 6, 6])
    out = generate(target, inputs, specdec.LookaheadDrafter(4, 4, 3), num_draft_tokens="auto")
    assert torch.equal(out.sequences, target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False))
    assert out.speculation.drafted > 0
    assert calls.count(0) > 2, "it is asked each round whether to draft"


@pytest.mark.parametrize(
    ("window", "ngram", "count"), [(2, 2, 1), (2, 2, 3), (12, 5, 2), (12, 5, 16), (12, 5, "auto"), (4, 8, 5), (4, 8, 9)]
)
def test_any_limit_will_do(window: int, ngram: int, count: int | str) -> None:
    """Fewer levels than the window has, more than there are, and numbers that change from round to round."""
    target, inputs = tiny("llama"), prompts(3)
    out = generate(target, inputs, specdec.LookaheadDrafter(window, ngram, 3), num_draft_tokens=count)
    assert torch.equal(out.sequences, target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False))


def test_rows_leave_with_their_windows() -> None:
    target, inputs = tiny("llama"), prompts(3)
    free = target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[:, -NEW_TOKENS:]
    arguments: dict[str, Any] = {"eos_token_id": [int(free[0, 7]), int(free[1, 19])], "pad_token_id": 0}
    expected = target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **arguments)
    out = generate(target, inputs, specdec.LookaheadDrafter(), **arguments)
    assert torch.equal(out.sequences, expected)


@pytest.mark.parametrize("reads_text", [True, False])
def test_repetitive_output_is_accepted(reads_text: bool) -> None:
    """More than one drafted token a round, also from the Jacobi iteration alone."""
    target, inputs = tiny("llama"), prompts(1)
    arguments: dict[str, Any] = {"suppress_tokens": list(range(6, VOCAB_SIZE)), "max_new_tokens": 90}
    out = generate(target, inputs, specdec.LookaheadDrafter(reads_text=reads_text), **arguments)
    assert torch.equal(out.sequences, target.generate(**inputs, do_sample=False, **arguments))
    assert out.speculation.acceptance_length > 2.0


def test_nothing_of_its_own_where_no_trees_are_verified() -> None:
    """Chains of the text's n-grams; and nothing at all where those are not wanted."""
    target, inputs = families.family("bloom"), families.inputs("bloom", 1)
    for reads_text in (True, False):
        out = generate(target, inputs, specdec.LookaheadDrafter(reads_text=reads_text), max_new_tokens=40)
        assert (out.speculation.drafted > 0) == reads_text


class Spy(specdec.Drafter):
    """Keeps what a drafter proposed."""

    def __init__(self, drafter: specdec.Drafter) -> None:
        self.drafter = drafter
        self.proposals: list[Proposal] = []

    def start(self, state: DecodeState) -> specdec.DraftSession:
        session: Any = self.drafter.start(state)
        propose, spy = session.propose, self

        def kept(state: DecodeState, limit: Sequence[int]) -> Proposal:
            spy.proposals.append(propose(state, limit))
            return spy.proposals[-1]

        session.propose = kept
        return session


def test_siblings_differ_and_rows_share_no_pool() -> None:
    target, inputs = tiny("llama"), prompts(3)
    spy = Spy(specdec.LookaheadDrafter(4, 4, 4))
    generate(target, inputs, spy, suppress_tokens=list(range(9, VOCAB_SIZE)))
    assert any(not p.is_chain for p in spy.proposals)
    for proposal in spy.proposals:
        for row in range(proposal.tokens.shape[0]):
            nodes = proposal.valid[row].nonzero()[:, 0].tolist()
            pairs = [(int(proposal.parents[row, n]), int(proposal.tokens[row, n])) for n in nodes]
            assert len(set(pairs)) == len(pairs)
    alone = Spy(specdec.LookaheadDrafter(4, 4, 4))
    generate(target, {"input_ids": inputs["input_ids"][:1]}, alone, suppress_tokens=list(range(9, VOCAB_SIZE)))
    for together, single in zip(spy.proposals, alone.proposals, strict=False):
        nodes = int(together.valid[0].sum())
        assert together.tokens[0, :nodes].tolist() == single.tokens[0].tolist()
        assert together.parents[0, :nodes].tolist() == single.parents[0].tolist()


def test_the_second_window_is_the_models_answers() -> None:
    """In a call as in the algorithm: what was proposed behind the second round's root is Jacobi's next iterate."""
    target: Any = tiny("llama")
    inputs = prompts(1)
    text = inputs["input_ids"][0].tolist()
    seen: list[tuple[list[int], list[list[int]]]] = []

    class Watching(LookaheadSession):
        def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
            seen.append((list(state.host_tokens[0]), [list(level) for level in self._rows[0].window.levels]))
            return super().propose(state, limit)

    class Watcher(specdec.LookaheadDrafter):
        def start(self, state: DecodeState) -> LookaheadSession:
            return Watching(self, state)

    generate(target, inputs, Watcher(window=3, ngram=4, max_candidates=2), max_new_tokens=14)

    def answer(context: Sequence[int]) -> int:
        return int(target(torch.tensor([list(context)])).logits[0, -1].argmax())

    paper = Paper(text, 3, 4, answer)
    assert len(seen) > 5
    for tokens, levels in seen:
        assert levels == paper.levels
        paper.step(tokens)


def test_sampling_keeps_the_law() -> None:
    """G-test of five new tokens against the target's own law; the drafts are trees."""
    target, prompt = tiny("llama"), torch.tensor([[3, 4, 3, 5, 3]])
    spy = Spy(specdec.LookaheadDrafter(window=3, ngram=3, max_candidates=3))
    out = specdec.generate(
        target, prompt.repeat(2000, 1), drafter=spy, num_draft_tokens=3, do_sample=True, top_k=TOP_K,
        suppress_tokens=SUPPRESSED, max_new_tokens=5, generator=torch.Generator().manual_seed(11),
    )  # fmt: skip
    assert all(not p.is_chain for p in spy.proposals[:2])
    assert p_of(target, prompt, out[:, 5:]) > 1e-6


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("window", {"window": 1}),
        ("window", {"window": True}),
        ("ngram", {"ngram": 1}),
        ("ngram", {"ngram": 2.5}),
        ("max_candidates", {"max_candidates": 0}),
        ("max_ngrams", {"max_ngrams": 3}),
    ],
)
def test_impossible_sizes_are_refused(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(specdec.OptionError, match=name):
        specdec.LookaheadDrafter(**arguments)
