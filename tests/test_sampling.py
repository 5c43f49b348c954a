"""Processors on nodes equal processors on one prefix at a time, as transformers calls them."""

from __future__ import annotations

import pytest
import torch
from models import PENALTY_KNOWS_PADDING, tiny
from transformers import LogitsProcessor
from transformers.generation import logits_process as hf

import specdec
from specdec.errors import UnsupportedOptionError
from specdec.processors import IGNORE_PREFIX, check_own
from specdec.sampling import Prefixes, Sampler

VOCAB_SIZE = 40
EXAMPLES: dict[type, LogitsProcessor] = {
    hf.TemperatureLogitsWarper: hf.TemperatureLogitsWarper(0.7),
    hf.TopKLogitsWarper: hf.TopKLogitsWarper(5),
    hf.TopPLogitsWarper: hf.TopPLogitsWarper(0.8),
    hf.TopHLogitsWarper: hf.TopHLogitsWarper(0.5),
    hf.MinPLogitsWarper: hf.MinPLogitsWarper(0.1),
    hf.TypicalLogitsWarper: hf.TypicalLogitsWarper(0.8),
    hf.EpsilonLogitsWarper: hf.EpsilonLogitsWarper(0.02),
    hf.EtaLogitsWarper: hf.EtaLogitsWarper(0.02),
    hf.InfNanRemoveLogitsProcessor: hf.InfNanRemoveLogitsProcessor(),
    hf.LogitNormalization: hf.LogitNormalization(),
    hf.SuppressTokensLogitsProcessor: hf.SuppressTokensLogitsProcessor([3, 4]),
    hf.RepetitionPenaltyLogitsProcessor: hf.RepetitionPenaltyLogitsProcessor(1.5),
    hf.NoRepeatNGramLogitsProcessor: hf.NoRepeatNGramLogitsProcessor(2),
    hf.NoBadWordsLogitsProcessor: hf.NoBadWordsLogitsProcessor([[7, 8], [9]]),
    hf.SequenceBiasLogitsProcessor: hf.SequenceBiasLogitsProcessor({(1, 2): 4.0, (5,): -2.0}),
    hf.MinLengthLogitsProcessor: hf.MinLengthLogitsProcessor(7, 2),
    hf.MinNewTokensLengthLogitsProcessor: hf.MinNewTokensLengthLogitsProcessor(3, 4, 2),
    hf.ForcedEOSTokenLogitsProcessor: hf.ForcedEOSTokenLogitsProcessor(7, 2),
    hf.ForcedBOSTokenLogitsProcessor: hf.ForcedBOSTokenLogitsProcessor(2),
    hf.ExponentialDecayLengthPenalty: hf.ExponentialDecayLengthPenalty((2, 1.3), 2, 3),
    hf.SuppressTokensAtBeginLogitsProcessor: hf.SuppressTokensAtBeginLogitsProcessor([1, 2], 6),
}


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda k: k.__name__)
def test_one_call_over_all_nodes_equals_one_call_each(kind: type) -> None:
    generator = torch.Generator().manual_seed(0)
    processor = EXAMPLES[kind]
    logits = 3 * torch.randn(2, 4, VOCAB_SIZE, generator=generator)
    paths = [[torch.randint(0, 10, (5 + b + n,), generator=generator) for n in range(4)] for b in range(2)]
    sampler = Sampler([processor], do_sample=True)
    got = sampler.scores(logits, Prefixes(paths, [0, 1]) if sampler.needs_prefix else None)
    for b in range(2):
        for n in range(4):
            expected = processor(paths[b][n][None], logits[b, n][None].clone())
            torch.testing.assert_close(got[b, n][None], expected)


def test_every_prefix_independent_processor_has_an_example() -> None:
    assert set(EXAMPLES) >= IGNORE_PREFIX


def test_the_logits_are_left_alone() -> None:
    """Processors that write in place must not reach the model's output."""
    logits = torch.randn(1, 2, VOCAB_SIZE)
    before = logits.clone()
    Sampler([hf.TopKLogitsWarper(3), hf.NoRepeatNGramLogitsProcessor(2)], True).scores(
        logits, Prefixes([[torch.tensor([1, 2, 1]), torch.tensor([1, 2, 1, 2])]], [0])
    )
    assert torch.equal(logits, before)


@pytest.mark.skipif(not PENALTY_KNOWS_PADDING, reason="this transformers counts padding as text")
def test_padding_that_a_penalty_must_not_count() -> None:
    """HF's repetition penalty ignores each row's left padding; a node keeps its own row's count."""
    processor = hf.RepetitionPenaltyLogitsProcessor(2.0, prompt_ignore_length=torch.tensor([0, 2]))
    paths = [
        [torch.tensor([0, 0, 5]), torch.tensor([0, 0, 5, 6])],
        [torch.tensor([0, 0, 5]), torch.tensor([0, 0, 5, 6])],
    ]
    scores = Sampler([processor], False).scores(torch.ones(2, 2, 8), Prefixes(paths, [0, 1]))
    assert scores[0, 0].tolist() == [0.5, 1, 1, 1, 1, 0.5, 1, 1]
    assert scores[1, 0].tolist() == [1, 1, 1, 1, 1, 0.5, 1, 1]
    assert scores[1, 1].tolist() == [1, 1, 1, 1, 1, 0.5, 0.5, 1]


def test_processors_with_a_memory_are_refused() -> None:
    stateful = hf.SynthIDTextWatermarkLogitsProcessor(
        ngram_len=2, keys=[1], sampling_table_size=4, sampling_table_seed=0, context_history_size=8, device="cpu"
    )
    with pytest.raises(UnsupportedOptionError, match="SynthID"):
        Sampler([stateful], do_sample=True)


class Grammar(LogitsProcessor):
    """Knows only texts that it allows, and only those whose beginning it was asked about: like a parser's memo."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, ...], int] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        out = torch.full_like(scores, float("-inf"))
        for row, ids in enumerate(input_ids.tolist()):
            state = self.known[tuple(ids[:-1])] if self.known else 0
            if self.known and ids[-1] % 3 != state % 3:
                raise KeyError(f"no such text: {ids}")
            self.known[tuple(ids)] = state + 1
            out[row, (state + 1) % 3 :: 3] = scores[row, (state + 1) % 3 :: 3]
        return out


def test_a_constraint_is_not_asked_about_what_it_forbids() -> None:
    """Depth by depth, parents first; behind a forbidden token and at padding nothing is asked."""
    #      root -> 0 (allowed) -> 2 (forbidden) -> 4; root -> 1 (forbidden) -> 3; 5 is padding below 0
    parents = [[-1, -1, 0, 1, 2, 0]]
    tokens = [4, 5, 4, 5, 6, 5]  # after the root: 1, 4, 7, ... ; after those 2, 5, 8, ...
    paths = [torch.tensor([9])]
    for node, token in enumerate(tokens):
        paths.append(torch.cat([paths[parents[0][node] + 1], torch.tensor([token])]))
    logits = torch.randn(1, 7, VOCAB_SIZE)
    grammar = Grammar()
    valid = [[True] * 5 + [False]]
    scores = Sampler([grammar, hf.TemperatureLogitsWarper(0.5)], True).scores(
        logits, Prefixes([paths], [0], parents, valid)
    )
    assert set(grammar.known) == {(9,), (9, 4)}
    for node, rest in ((0, 1), (1, 2)):
        allowed = scores[0, node, rest::3]
        torch.testing.assert_close(allowed, logits[0, node, rest::3] / 0.5)
        assert scores[0, node].isfinite().sum() == len(allowed)
    assert torch.equal(scores[0, 2:], logits[0, 2:]), "what nobody asked about stays as it was"


@pytest.mark.parametrize("floor", [float("-inf"), torch.finfo(torch.float32).min])
@pytest.mark.parametrize("do_sample", [False, True])
def test_what_cannot_be_accepted_is_not_asked_about(do_sample: bool, floor: float) -> None:
    """Greedy, only the best token goes on; drawn, those with a probability, however a processor forbids the others."""
    asked = []

    class Floor(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            asked.extend(ids[1:] for ids in input_ids.tolist())
            out = torch.full_like(scores, floor)
            out[:, 1:3] = scores[:, 1:3]
            return out

    tokens = [1, 2, 3]  # the best, possible, forbidden
    paths = [torch.tensor([9]), *(torch.tensor([9, t]) for t in tokens)]
    logits = torch.zeros(1, 4, VOCAB_SIZE)
    logits[..., 1], logits[..., 2] = 5.0, 4.0
    Sampler([Floor()], do_sample).scores(logits, Prefixes([paths], [0], [[-1, -1, -1]]))
    assert asked == ([[], [1], [2]] if do_sample else [[], [1]])


def test_where_everything_is_forbidden_greedy_goes_on_as_transformers() -> None:
    """The first of equal scores wins, there and here; a draft that guessed it is processed as any other."""
    target, draft = tiny("llama"), tiny("llama", noise=0.02)
    prompt = torch.tensor([[5, 6, 7]])

    class Nothing(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores + (float("-inf") if input_ids.shape[1] % 3 == 0 else 0.0)

    arguments = {"max_new_tokens": 16, "logits_processor": [Nothing()]}
    out = specdec.generate(target, prompt, **arguments, drafter=draft, num_draft_tokens=4)
    assert torch.equal(out, target.generate(prompt, **arguments))


def test_own_processors_are_asked_twice() -> None:
    """A processor that counts its calls, or that looks at the row's index, is refused by name."""

    class Counting(LogitsProcessor):
        calls = 0

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return scores + self.calls

    class PerRow(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores * torch.arange(1, 1 + len(scores))[:, None]

    class WholeBatch(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores + torch.ones(3, 1)[: len(scores) if len(scores) != 1 else 3]

    ids = torch.tensor([[1, 2], [1, 2], [1, 2]])
    with pytest.raises(UnsupportedOptionError, match="Counting gives two answers"):
        check_own([Counting()], ids[:1], VOCAB_SIZE)
    for kind in (PerRow, WholeBatch):
        with pytest.raises(UnsupportedOptionError, match=f"{kind.__name__} treats rows"):
            check_own([kind()], ids, VOCAB_SIZE)
    check_own([PerRow()], ids[:1], VOCAB_SIZE)  # one row has one index
    check_own([hf.TopKLogitsWarper(2), hf.RepetitionPenaltyLogitsProcessor(2.0)], ids, VOCAB_SIZE)


def test_processors_that_hold_something_per_row() -> None:
    """transformers' own row-indexed processors treat a node as they treat its request's row."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, 10, (2, 6), generator=generator)
    logits = torch.randn(4, 2, VOCAB_SIZE, generator=generator)  # two prompts, two sequences of each
    paths = [[torch.randint(0, 10, (7 + r + n,), generator=generator) for n in range(2)] for r in range(4)]
    one_row = {
        "repetition": lambda r: hf.EncoderRepetitionPenaltyLogitsProcessor(3.0, prompt[r // 2, None]),
        "ngrams": lambda r: hf.EncoderNoRepeatNGramLogitsProcessor(2, prompt[r // 2, None]),
        "prefix": lambda r: hf.PrefixConstrainedLogitsProcessor(lambda _, ids: [r, int(ids[-1])], 1),
    }
    whole = {
        "repetition": hf.EncoderRepetitionPenaltyLogitsProcessor(3.0, prompt),
        "ngrams": hf.EncoderNoRepeatNGramLogitsProcessor(2, prompt),
        "prefix": hf.PrefixConstrainedLogitsProcessor(lambda row, ids: [row, int(ids[-1])], 1),
    }
    for name, processor in whole.items():
        order = [3, 1, 0]  # rows leave; the others keep their request
        sampler = Sampler([processor], True, batch_size=4)
        # No node hangs on another here, so that each is asked.
        parents = [[-1]] * 3
        given = [[p[0], torch.cat([p[0], p[0][-1:]])] for p in (paths[r] for r in order)]
        got = sampler.scores(logits[order], Prefixes(given, order, parents))
        for row, request in enumerate(order):
            for node in range(2):
                alone = one_row[name](request)(given[row][node][None], logits[request, node][None].clone())
                torch.testing.assert_close(got[row, node][None], alone)
