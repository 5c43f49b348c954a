"""SuffixAutomaton against brute force: matches, counts, continuation trees, and a linear number of steps."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.drafters.suffix_automaton import SuffixAutomaton

TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def longest_repeated_suffix(text: list[int]) -> int:
    """Of the suffixes that also end further in front."""
    ends = range(1, len(text))
    return max(n for n in range(len(text)) if n == 0 or any(n <= e and text[e - n : e] == text[-n:] for e in ends))


def followers(text: list[int], context: list[int]) -> Counter[int]:
    size = len(context)
    return Counter(text[i + size] for i in range(len(text) - size) if text[i : i + size] == context)


def built(text: list[int], max_count_length: int = 32) -> SuffixAutomaton:
    automaton = SuffixAutomaton(max_count_length)
    automaton.extend(text)
    return automaton


def check_tree(automaton: SuffixAutomaton, text: list[int], state: int, path: list[int], depth: int) -> None:
    """Everything that followed the path, as often as it did and as late; nothing else."""
    expected = followers(text, path)
    if not expected or depth == 0:
        return
    found = automaton.followers(state)
    exact = len(path) < automaton.max_count_length
    assert {token for token, *_ in found} == set(expected)
    for token, count, latest, to in found:
        longer = [*path, token]
        assert count == expected[token] if exact else 1 <= count <= expected[token]
        ends = [e for e in range(len(longer), len(text) + 1) if text[e - len(longer) : e] == longer]
        assert latest == max(ends) if exact else latest in ends
        check_tree(automaton, text, to, longer, depth - 1)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(text=TEXTS, most=st.sampled_from([1, 2, 3, 5, 32]))
def test_match_counts_and_continuations(text: list[int], most: int) -> None:
    automaton = built(text, most)
    length = longest_repeated_suffix(text)
    assert automaton.match_length == length
    if length:
        check_tree(automaton, text, automaton.match, text[-length:], depth=4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_every_context(text: list[int]) -> None:
    """Not only the match: all substrings, walked to from the empty one."""
    automaton = built(text, 4)
    to = 0
    for i in range(len(text)):
        to = 0
        for j in range(i, min(len(text), i + 6)):
            to = automaton._next[to][text[j]]
            check_tree(automaton, text, to, text[i : j + 1], depth=1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 40), max_size=5))
def test_incremental_equals_rebuilt(text: list[int], cuts: list[int]) -> None:
    """Token by token, in pieces or at once; and at every stage what a new automaton says."""
    automaton = SuffixAutomaton(4)
    bounds = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    for begin, end in itertools.pairwise(bounds):
        automaton.extend(text[begin:end])
        fresh = built(text[:end], 4)
        assert (automaton.match, automaton.match_length) == (fresh.match, fresh.match_length)
        assert automaton.followers(automaton.match) == fresh.followers(fresh.match)
    assert automaton._next == fresh._next
    assert automaton._count == fresh._count


@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_a_loop_has_no_end(period: int) -> None:
    text = [*range(period)] * 2 + [0]
    automaton = built(text)
    state, written = automaton.match, []
    for _ in range(5 * period):
        [(token, _, _, state)] = automaton.followers(state)
        written.append(token)
    assert written == [(1 + i) % period for i in range(5 * period)]


def _fibonacci(size: int) -> list[int]:
    a, b = [0], [0, 1]
    while len(b) < size:
        a, b = b, b + a
    return b[:size]


def _texts(size: int) -> dict[str, list[int]]:
    draw = random.Random(0)
    return {
        "one token": [0] * size,
        "a loop": [i % 7 for i in range(size)],
        "Fibonacci": _fibonacci(size),
        "two tokens": [draw.randrange(2) for _ in range(size)],
        "random": [draw.randrange(1000) for _ in range(size)],
        "all different": list(range(size)),
        "worst splits": [0] * (size // 2) + [1] + [0] * (size // 2),
    }


@pytest.mark.parametrize("kind", _texts(1))
def test_steps_grow_linearly(kind: str) -> None:
    """Steps a token do not grow with the text; counted substrings cost max_count_length at most, and less in most."""
    sizes = (1_000, 2_000, 4_000, 8_000)
    rates = [built(_texts(size)[kind], 8).steps / size for size in sizes]
    assert max(rates) <= 8 + 8
    assert rates[-1] <= rates[0] + 1
    automaton = built(_texts(8_000)[kind], 8)
    assert len(automaton._link) <= 2 * automaton.size
    assert sum(map(len, automaton._next)) <= 3 * automaton.size
