"""Processors on nodes equal processors on one prefix at a time, as transformers calls them."""

from __future__ import annotations

import pytest
import torch
from models import PENALTY_KNOWS_PADDING
from transformers import LogitsProcessor
from transformers.generation import logits_process as hf

from specdec.errors import UnsupportedOptionError
from specdec.processors import IGNORE_PREFIX
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
