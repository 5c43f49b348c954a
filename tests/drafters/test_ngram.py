"""NgramDrafter: the longest suffix match, the most recent one first, by hand and by brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import prompts, tiny

import specdec
from specdec.drafters.ngram import NgramIndex


def brute_force(tokens: list[int], limit: int, min_ngram: int, max_ngram: int) -> list[int]:
    for size in range(max_ngram, min_ngram - 1, -1):
        for start in range(len(tokens) - size - 1, -1, -1):
            if size < len(tokens) and tokens[start : start + size] == tokens[-size:]:
                text = list(tokens)
                for i in range(limit):
                    text.append(text[start + size + i])
                return text[len(tokens) :]
    return []


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=30),
    limit=st.integers(1, 6),
    sizes=st.tuples(st.integers(1, 3), st.integers(0, 3)),
    chunks=st.lists(st.integers(1, 5), max_size=6),
)
def test_equals_brute_force_as_the_text_grows(
    tokens: list[int], limit: int, sizes: tuple[int, int], chunks: list[int]
) -> None:
    low, high = sizes[0], sizes[0] + sizes[1]
    index = NgramIndex(low, high)
    for end in [*[sum(chunks[: i + 1]) for i in range(len(chunks))], len(tokens)]:
        if 0 < end <= len(tokens):
            assert index.propose(tokens[:end], limit) == brute_force(tokens[:end], limit, low, high)


def test_a_loop_goes_on_for_as_long_as_asked() -> None:
    assert NgramIndex(2, 4).propose([1, 2, 3, 1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]


def test_rows_match_on_their_own() -> None:
    """Rows with and without a match, and rows that leave, keep their own index."""
    target, inputs = tiny("llama"), prompts(3)
    ids = inputs["input_ids"].clone()
    ids[0, -6:] = torch.tensor([4, 5, 6, 4, 5, 6])
    eos = int(target.generate(ids[1:2], attention_mask=inputs["attention_mask"][1:2], max_new_tokens=9)[0, -1])
    arguments = {
        "attention_mask": inputs["attention_mask"],
        "max_new_tokens": 60,
        "eos_token_id": eos,
        "pad_token_id": 0,
    }
    out = specdec.generate(
        target, ids, **arguments, drafter=specdec.NgramDrafter(3, 1), num_draft_tokens=4, return_dict_in_generate=True
    )
    assert torch.equal(out.sequences, target.generate(ids, **arguments))
    assert out.speculation.drafted > 0
    assert out.speculation.draft_calls == 0


@pytest.mark.parametrize(("max_ngram", "min_ngram"), [(0, 0), (2, 3), (3, 0)])
def test_impossible_sizes_are_refused(max_ngram: int, min_ngram: int) -> None:
    with pytest.raises(specdec.OptionError, match="min_ngram"):
        specdec.NgramDrafter(max_ngram, min_ngram)
