"""Predicted rounds against every possible outcome, and replayed rounds against the loop."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import specdec
from specdec.errors import OptionError
from specdec.probe import probe
from specdec.profile.replay import replayed_rounds
from specdec.profile.rounds import Rounds, expected_rounds
from specdec.target import ModelRunner


def by_enumeration(share: list[float], k: int, most: int) -> tuple[float, ...]:
    """Every pattern of which of the text's tokens a draft would have had accepted, weighted."""
    total = [0.0] * 4
    for pattern in itertools.product((0, 1), repeat=len(share)):
        weight = math.prod(s if hit else 1 - s for s, hit in zip(share, pattern, strict=True))
        start = 1
        while start < len(share):
            room = min(k, most - start - 1)
            accepted = 0
            while accepted < room and start + accepted < len(share) and pattern[start + accepted]:
                accepted += 1
            for i, value in enumerate((1, room, accepted, room > 0)):
                total[i] += weight * value
            start += accepted + 1
    return tuple(total)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize(("length", "most"), [(1, 4), (2, 2), (7, 7), (7, 12), (10, 10)])
def test_expected_rounds_is_the_mean_over_all_outcomes(k: int, length: int, most: int) -> None:
    share = [random.Random(10 * length + i).random() for i in range(length)]
    share[length // 2] = 1.0
    found = expected_rounds(share, k, most)
    wanted = by_enumeration(share, k, most)
    assert (found.rounds, found.drafted, found.accepted, found.drafting) == pytest.approx(wanted, abs=1e-12)


def test_a_draft_that_is_always_right_or_always_wrong() -> None:
    for k in range(1, 9):
        right = expected_rounds([1.0] * (1 + 4 * (k + 1)), k, 1 + 4 * (k + 1))
        assert (right.rounds, right.accepted) == (4, 4 * k)
        assert expected_rounds([0.0] * 9, k, 9).rounds == 8


def test_rounds_begin_more_often_where_drafts_fail() -> None:
    """So the mean acceptance over the text would promise fewer rounds than there are."""
    share = ([0.95] * 6 + [0.05] * 4) * 40
    rng, starts = random.Random(0), []
    for _ in range(100):
        start = 1
        while start < len(share):
            starts.append(start)
            room = min(4, len(share) - start - 1)
            start += 1 + next((i for i in range(room) if rng.random() >= share[start + i]), room)
    rounds = expected_rounds(share, 4, len(share)).rounds
    assert len(starts) / 100 == pytest.approx(rounds, rel=0.01)
    assert sum(share[s] < 0.5 for s in starts) / len(starts) > 1.2 * 0.4  # of the text 0.4 is hard
    mean = sum(share) / len(share)
    assert expected_rounds([mean] * len(share), 4, len(share)).rounds < 0.95 * rounds


@pytest.fixture(scope="module")
def pair() -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedTokenizerBase]:
    return specdec.bundled_pair(torch.float32)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["ngram", "suffix"])
def test_replayed_rounds_are_the_loops(
    pair: tuple[PreTrainedModel, PreTrainedModel, PreTrainedTokenizerBase], name: str, temperature: float
) -> None:
    """Drafts that were not drawn leave nothing to chance once the text is known."""
    target, _, tokenizer = pair
    runner = ModelRunner(target)
    probe(runner)
    drafted = 0
    for number, k in ((0, 3), (3, 8)):
        prompt = tokenizer(specdec.bundled_prompts()[number]["prompt"], return_tensors="pt")
        decoder = specdec.SpeculativeDecoder(name, k)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        out = decoder.generate(target, **prompt, max_new_tokens=48, return_dict_in_generate=True, **sampling,
                               generator=torch.Generator().manual_seed(number) if temperature else None)  # fmt: skip
        stats = out.speculation
        text = stats.trace.tokens[0]
        found = replayed_rounds(
            decoder.drafter, runner, prompt["input_ids"][0].tolist(), text, k, 48, do_sample=temperature > 0
        )
        assert found == Rounds(stats.rounds, stats.drafted, stats.accepted, sum(stats.drafted_per_depth[:1]))
        drafted += stats.drafted
    assert drafted > 5


def test_drafts_that_follow_from_more_than_the_text_are_refused(
    pair: tuple[PreTrainedModel, PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    target, draft, _ = pair
    runner = ModelRunner(target)
    probe(runner)
    with pytest.raises(OptionError, match="can only be measured"):
        replayed_rounds(specdec.ModelDrafter(draft), runner, [1, 2], [3, 4, 5], 2, 3)
