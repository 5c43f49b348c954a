"""SuffixArray and Corpus against brute force."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.drafters.suffix_array import MAX_MATCH, Corpus, SuffixArray

TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=25), max_size=5)
CONTEXT = st.lists(st.integers(0, 3), max_size=12)


def followers(texts: list[list[int]], context: list[int]) -> Counter[int]:
    size = len(context)
    return Counter(t[i + size] for t in texts for i in range(len(t) - size) if t[i : i + size] == context)


def check_tree(corpus: Corpus, texts: list[list[int]], places: list[tuple[int, int]], path: list[int]) -> None:
    expected = followers(texts, path)
    found = corpus.followers(places)
    assert {token: count for token, count, _, _ in found} == expected
    if len(path) < 12:
        for token, _, _, to in found:
            check_tree(corpus, texts, to, [*path, token])


@settings(max_examples=120, deadline=None, derandomize=True)
@given(groups=st.lists(TEXTS, max_size=3), context=CONTEXT)
def test_find_and_continuations(groups: list[list[list[int]]], context: list[int]) -> None:
    """The longest suffix that anything follows, in any of several arrays, and all that followed."""
    texts = [text for group in groups for text in group]
    corpus = Corpus([SuffixArray.build(group) for group in groups])
    length, places = corpus.find(context)
    assert length == max((n for n in range(1, len(context) + 1) if followers(texts, context[-n:])), default=0)
    if length:
        check_tree(corpus, texts, places, context[-length:])
        assert corpus.find(context, longer_than=length) == (0, [])
        assert corpus.find(context, longer_than=length - 1) == (length, places)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(groups=st.lists(TEXTS, min_size=1, max_size=3))
def test_joined_equals_built_at_once(groups: list[list[list[int]]]) -> None:
    joined = SuffixArray.join([SuffixArray.build(group) for group in groups])
    whole = SuffixArray.build([text for group in groups for text in group])
    assert np.array_equal(joined.tokens, whole.tokens)
    assert np.array_equal(joined.order, whole.order)
    assert joined.num_texts == sum(1 for group in groups for text in group if text)
    assert joined.num_tokens == sum(len(text) for group in groups for text in group)
    joined.check()


def test_sorted_by_as_many_tokens_as_are_matched() -> None:
    """Places that agree in their last 1, 2, ..., 80 tokens, and differ before."""
    texts = [[random.Random(i).randrange(2) for _ in range(7)] + list(range(10 + i, 90)) for i in range(0, 80, 3)]
    array = SuffixArray.build([[*text, 5] for text in texts + texts[::-1]])

    def key(place: int) -> list[int]:
        return array.tokens[max(0, place - MAX_MATCH + 1) : place + 1][::-1].tolist()

    keys = [key(place) for place in array.order.tolist() if array.tokens[place] == 89]
    assert len(keys) == 2 * len(texts)
    # What stands in front of a text decides nothing.
    keys = [k[: k.index(-1) + 1] if -1 in k else k for k in keys]
    assert keys == sorted(keys)


def test_matches_end_at_what_is_sorted() -> None:
    """Longer repeats than MAX_MATCH, which neither slow the build nor confuse the search."""
    text = [1, 2, 3] * 200
    array = SuffixArray.build([text, [*text, 4]])
    length, begin, end = array.find(text)
    assert length == MAX_MATCH
    assert all(array.tokens[p - MAX_MATCH + 1 : p + 1].tolist() == text[-MAX_MATCH:] for p in array.order[begin:end])


@pytest.mark.parametrize("num_texts", [2, 5])
def test_without_the_oldest(num_texts: int) -> None:
    texts = [[i, i + 1, i + 2] for i in range(num_texts)]
    array = SuffixArray.build(texts)
    left = array.without_oldest(num_bytes=1)
    assert np.array_equal(left.order, SuffixArray.build(texts[1:]).order)
    assert array.without_oldest(array.num_bytes).num_texts == 1, "the last one stays"


def test_many_places_are_sampled_evenly() -> None:
    array = SuffixArray.build([[1, 2] * 500 + [1, 3] * 500])
    corpus = Corpus([array])
    _, places = corpus.find([1])
    assert len(places) == Corpus.MOST_PLACES
    counts = {token: count for token, count, _, _ in corpus.followers(places)}
    assert abs(counts[2] - counts[3]) <= 2
