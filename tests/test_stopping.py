"""Where rows end: every criterion sees every committed token once, whatever the blocks' sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import StoppingCriteria

from specdec.errors import OptionError
from specdec.stopping import Limits, Stopping

ROWS, LENGTH = 3, 12


class Recording(StoppingCriteria):
    """Answers as told, and notes what it was shown."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.seen: list[list[list[int]]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        self.seen.append(input_ids.tolist())
        return self.answer(input_ids)


def by_hand(texts: list[list[int]], eos: set[int], ends: Any, runs_on: bool, pad: int) -> list[list[int]]:
    """transformers' loop, one column at a time."""
    done = [False] * len(texts)
    out: list[list[int]] = [[] for _ in texts]
    for column in range(LENGTH):
        for row, text in enumerate(texts):
            out[row].append(pad if done[row] and not runs_on else text[column])
        finished = ends(torch.tensor(out)).tolist()
        done = [
            d or f or out[row][-1] in eos or column == LENGTH - 1
            for row, (d, f) in enumerate(zip(done, finished, strict=True))
        ]
        if all(done):
            break
    return out


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_blocks_of_any_size_end_where_single_tokens_do(data: st.DataObject) -> None:
    """The same text, cut into random blocks per row, stops where transformers' column by column loop stops."""
    texts = [data.draw(st.lists(st.integers(1, 4), min_size=LENGTH, max_size=LENGTH)) for _ in range(ROWS)]
    eos = data.draw(st.sampled_from([set(), {4}]))
    word = data.draw(st.integers(1, 3))
    runs_on = not eos

    def ends(ids: torch.Tensor) -> torch.Tensor:
        return (ids[:, -1] == word) & (ids[:, -2:-1] == word).any(1)

    criterion = Recording(ends)
    limits = Limits(LENGTH, eos, pad_token_id=0, columns=[criterion], runs_on=runs_on)
    stopping = Stopping(limits, torch.zeros(ROWS, 0, dtype=torch.int64))
    fed = [0] * ROWS
    published: list[list[int]] = [[] for _ in range(ROWS)]
    while not all(stopping.is_done(r) for r in range(ROWS)):
        for row in range(ROWS):
            if not stopping.is_done(row):
                assert fed[row] < LENGTH, "a row that has all it may have does not go on"
                size = data.draw(st.sampled_from([1, 2, 4, LENGTH]))
                stopping.add(row, texts[row][fed[row] : fed[row] + size])
                fed[row] += size
        stopping.close_round()
        for row in range(ROWS):
            settled = stopping.outputs[row][: stopping.settled(row)]
            assert settled[: len(published[row])] == published[row], "what was published is final"
            published[row] = settled
    expected = by_hand(texts, eos, ends, runs_on, pad=0)
    longest = max(map(len, stopping.outputs))
    assert [o + [0] * (longest - len(o)) for o in stopping.outputs] == expected
    assert published == stopping.outputs
    assert all(stopping.is_finished(r) for r in range(ROWS))
    # Each column was shown once, in order, to all rows at once.
    assert [len(shown[0]) for shown in criterion.seen] == list(range(1, len(criterion.seen) + 1))
    assert all(len(shown) == ROWS for shown in criterion.seen)


def test_one_answer_for_all_rows_ends_all() -> None:
    criterion = Recording(lambda ids: bool(ids.shape[1] == 4 + 2))
    limits = Limits(9, {1}, columns=[criterion])
    stopping = Stopping(limits, torch.full((2, 4), 7))
    stopping.add(0, [5, 5, 5])
    stopping.add(1, [5, 5])
    stopping.close_round()
    assert stopping.outputs == [[5, 5], [5, 5]]
    assert stopping.is_done(0)
    assert stopping.is_done(1)


def test_a_row_that_is_ahead_waits() -> None:
    """With criteria that see the whole batch nothing is published before every row has it."""
    stopping = Stopping(Limits(9, {1}, columns=[Recording(lambda _: False)]), torch.zeros(2, 1, dtype=torch.int64))
    stopping.add(0, [5, 5, 5])
    stopping.add(1, [5])
    stopping.close_round()
    assert [stopping.settled(r) for r in (0, 1)] == [1, 1]


def test_an_answer_of_the_wrong_size_is_refused() -> None:
    stopping = Stopping(
        Limits(9, {1}, columns=[Recording(lambda _: torch.tensor([True, False]))]), torch.zeros(3, 1, dtype=torch.int64)
    )
    for row in range(3):
        stopping.add(row, [5])
    with pytest.raises(OptionError, match="Recording answered with 2 values"):
        stopping.close_round()


def test_without_a_length_limit_nothing_would_end() -> None:
    with pytest.raises(OptionError, match="max_new_tokens"):
        Limits.read([], 3, None)
