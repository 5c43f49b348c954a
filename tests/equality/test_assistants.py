"""transformers' own names of speculation: what specdec makes of them shows in its counters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from equality.letters import letters
from equality.own import five_letters
from models import prompts, tiny
from transformers import PreTrainedTokenizerFast

import specdec

TARGET, DRAFT = tiny("llama"), tiny("llama", noise=0.02)


def counters(batch_size: int = 3, **asked: Any) -> specdec.SpeculationStats:
    out = specdec.generate(
        TARGET, **prompts(batch_size), **{"max_new_tokens": 40, **asked}, return_dict_in_generate=True
    )
    return out.speculation


@pytest.mark.parametrize("count", [1, 3])
def test_a_constant_number_of_tokens(count: int) -> None:
    stats = counters(assistant_model=DRAFT, num_assistant_tokens=count, num_assistant_tokens_schedule="constant")
    assert stats.draft_calls > 0
    assert len(stats.drafted_per_depth) == count
    assert stats.drafted > 0.9 * count * stats.row_rounds  # less only before the length limit


def test_the_assistants_own_config_counts() -> None:
    """As in transformers, where the draft's generation_config sets the number."""
    draft = copy.deepcopy(DRAFT)
    draft.generation_config.num_assistant_tokens = 3
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    assert len(counters(assistant_model=draft).drafted_per_depth) == 3
    assert len(counters(assistant_model=draft, num_assistant_tokens=2).drafted_per_depth) == 2


def test_what_is_given_to_specdec_goes_first() -> None:
    stats = counters(assistant_model=DRAFT, num_assistant_tokens=3, num_draft_tokens=2)
    assert len(stats.drafted_per_depth) == 2


def test_more_than_sixteen_are_sixteen() -> None:
    asked = {"num_assistant_tokens": 20, "num_assistant_tokens_schedule": "constant"}
    assert len(counters(assistant_model=TARGET, **asked).drafted_per_depth) == 16


@pytest.mark.parametrize("count", [2, 5])
def test_prompt_lookup(count: int) -> None:
    stats = counters(prompt_lookup_num_tokens=count, prefix_allowed_tokens_fn=five_letters)
    assert stats.draft_calls == 0
    assert len(stats.drafted_per_depth) == count
    assert stats.accepted > 0


def test_longest_ngram_of_prompt_lookup() -> None:
    """Longer matches go first where they are allowed: other drafts."""
    asked = {"prompt_lookup_num_tokens": 4, "prefix_allowed_tokens_fn": five_letters}
    assert (
        counters(**asked, max_matching_ngram_size=1).accepted != counters(**asked, max_matching_ngram_size=3).accepted
    )


def test_two_tokenizers() -> None:
    """Compared before any forward: equal vocabularies draft, others are translated, one that is too large refused."""
    stats = counters(assistant_model=DRAFT, tokenizer=letters(), assistant_tokenizer=letters())
    assert stats.accepted > 0
    other = PreTrainedTokenizerFast(tokenizer_object=letters().backend_tokenizer)
    other.add_tokens(["another"])
    with pytest.raises(specdec.DraftMismatchError, match="draft_tokenizer has ids up to 96"):
        counters(assistant_model=DRAFT, tokenizer=letters(), assistant_tokenizer=other)
    arguments = {**prompts(2), "max_new_tokens": 16, "do_sample": False}
    stats: list[specdec.SpeculationStats] = []
    out = specdec.generate(
        TARGET,
        **arguments,
        assistant_model=tiny("llama", vocab_size=97),
        tokenizer=letters(),
        assistant_tokenizer=other,
        on_finish=stats.append,
    )
    assert torch.equal(out, TARGET.generate(**arguments))
    assert stats[0].drafted > 0
    with pytest.raises(specdec.OptionError, match="tokenizer="):
        counters(assistant_model=DRAFT, assistant_tokenizer=letters())
