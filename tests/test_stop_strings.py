"""Stop strings end a row at the token that completes one, whatever the blocks that tokens come in."""

from __future__ import annotations

from functools import cache

import torch
from equality.letters import letters
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.stopping_criteria import StopStringCriteria

from specdec.stopping import Limits, Stopping

LENGTH, PROMPT = 10, 5
IDS = st.integers(2, 60)


@cache
def criterion(words: tuple[str, ...]) -> StopStringCriteria:
    return StopStringCriteria(letters(), list(words))


def spelled(tokens: list[int]) -> str:
    return letters().decode(tokens)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_blocks_of_any_size_end_where_single_tokens_do(data: st.DataObject) -> None:
    """Strings are cut out of the text itself: across tokens, across blocks, and across the prompt's end."""
    prompt = data.draw(st.lists(IDS, min_size=PROMPT, max_size=PROMPT))
    text = data.draw(st.lists(IDS, min_size=LENGTH, max_size=LENGTH))
    words = []
    for _ in range(data.draw(st.integers(1, 2))):
        begin = data.draw(st.integers(0, PROMPT + LENGTH - 2))
        piece = spelled((prompt + text)[begin : begin + data.draw(st.integers(1, 4))])
        words.append(piece[data.draw(st.integers(0, 1)) :] or piece)
    stop = criterion(tuple(words))
    lengths = (n for n in range(1, LENGTH + 1) if stop(torch.tensor([prompt + text[:n]]), None))
    expected = next(lengths, LENGTH)
    stopping = Stopping(Limits(LENGTH, strings=[stop]), torch.tensor([prompt]))
    while not stopping.is_done(0):
        done = len(stopping.outputs[0])
        stopping.add(0, text[done : done + data.draw(st.sampled_from([1, 2, 3, LENGTH]))])
        stopping.close_round()
    assert stopping.outputs == [text[:expected]]


def test_the_first_of_two_in_one_block() -> None:
    """The block also reaches the length limit, which the string comes before."""
    text = [5, 9, 14, 20, 27, 33]
    early, late = spelled(text[1:3]), spelled(text[3:5])
    for strings in ([criterion((early, late))], [criterion((late,)), criterion((early,))]):
        stopping = Stopping(Limits(len(text), strings=strings), torch.zeros(1, 0, dtype=torch.int64))
        assert stopping.add(0, text) == 3
        assert stopping.outputs == [text[:3]]


def test_one_that_begins_in_the_prompt() -> None:
    prompt, text = [5, 9, 14], [20, 27]
    stopping = Stopping(Limits(4, strings=[criterion((spelled([14, 20]),))]), torch.tensor([prompt]))
    assert stopping.add(0, text) == 1


def test_a_block_longer_than_what_is_left() -> None:
    stopping = Stopping(Limits(3), torch.zeros(1, 0, dtype=torch.int64))
    assert stopping.add(0, [5, 9]) == 2
    assert stopping.add(0, [14, 20, 27]) == 1
    assert stopping.outputs == [[5, 9, 14]]
    assert stopping.is_finished(0)
