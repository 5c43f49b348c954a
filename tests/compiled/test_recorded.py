"""Recordings: when a call is recorded, what is copied, and when the function is called as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stand_in import remade
from torch import Tensor

from specdec.compiled import recorded
from specdec.compiled.recorded import Recordings


def add(x: Tensor, y: Tensor, memory: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Writes x + y to the memory; returns it, and what the memory holds."""
    memory[0].copy_(x + y)
    return x + y, memory[0] + 0


@pytest.fixture
def recordings() -> Recordings:
    return Recordings(add, fresh=(0,), capture=remade)


def ones(value: float, size: int = 3) -> Tensor:
    return torch.full((size,), float(value))


def test_a_call_is_recorded_when_it_comes_again(recordings: Recordings) -> None:
    memory, y = [ones(0)], ones(1)
    for count, x in enumerate((1.0, 2.0, 3.0)):
        total, _ = recordings([ones(x), y], memory)
        assert total.tolist() == memory[0].tolist() == [x + 1] * 3
        assert len(recordings.recorded) == min(count, 1)


def test_outputs_outlive_the_next_replay(recordings: Recordings) -> None:
    memory, y = [ones(0)], ones(1)
    outs = [recordings([ones(x), y], memory)[0] for x in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert [out[0].item() for out in outs] == [2, 3, 4, 5, 6]


def test_what_is_fresh_may_be_written_to_and_what_is_not_may_be_another(recordings: Recordings) -> None:
    memory, x, y = [ones(0)], ones(0), ones(1)
    for step in range(5):
        x.fill_(step)
        assert recordings([x, y], memory)[0][0] == step + 1
    for other in (ones(7), ones(8)):
        assert recordings([x, other], memory)[0][0] == 4 + other[0]


def test_a_recording_is_of_one_memory_and_shape(recordings: Recordings) -> None:
    memories = [[ones(0)], [ones(0)]]
    for step in range(3):
        for memory in memories:
            recordings([ones(step), ones(1)], memory)
            assert memory[0][0] == step + 1
        recordings([ones(step, 2), ones(1, 2)], [memories[0][0][:2]])
        assert memories[0][0].tolist() == [step + 1] * 3
    assert len(recordings.recorded) == 3


def test_no_more_are_kept_than_so_many() -> None:
    recordings, memory = Recordings(add, (0,), remade, most=2), [ones(0, 9)]
    for size in (2, 2, 3, 3, 2, 4, 4, 2):
        recordings([ones(1, size), ones(1, size)], [memory[0][:size]])
    assert len(recordings.recorded) == 2
    assert [key[0][0][0][0] for key in recordings.recorded] == [4, 2], "the one that waited longest made room"  # type: ignore[index]


def test_what_cannot_be_recorded_is_called_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of that function is tried again: a capture that fails costs torch memory."""

    def fails(*_: Any) -> Any:
        memory[0].fill_(9.0)  # as far as it came
        raise RuntimeError("operation not permitted when stream is capturing")

    recordings, memory = Recordings(add, (0,), fails), [ones(0)]
    for step in range(4):
        assert recordings([ones(step), ones(1)], memory)[0][0] == memory[0][0] == step + 1
        recordings([ones(step, 2), ones(1, 2)], [memory[0][:2]])
    assert not recordings.recorded
    assert len([r for r in caplog.records if "not permitted" in r.getMessage()]) == 1


def test_want_of_memory_may_pass() -> None:
    def fails_first(*call: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("none left")
        return remade(*call)

    tries: list[int] = []
    recordings, memory = Recordings(add, (0,), fails_first), [ones(0)]
    for step in range(4):
        assert recordings([ones(step), ones(1)], memory)[0][0] == step + 1
    assert recordings.recorded


def spoiled(by: Any) -> Any:
    """A capture whose replay does something more."""

    def capture(function: Any, places: Any, memory: Any) -> Any:
        outputs, replay = remade(function, places, memory)
        return outputs, lambda: (replay(), by(outputs, memory))

    return capture


@pytest.mark.parametrize(
    "by",
    [
        lambda outputs, memory: outputs[0].mul_(2),
        lambda outputs, memory: (outputs[0].mul_(2), memory[0].fill_(7.0)),
        lambda outputs, memory: memory[0].add_(1),
        lambda outputs, memory: memory[0].zero_(),
    ],
    ids=["outputs", "outputs and memory", "memory", "nothing is written"],
)
def test_a_replay_that_does_something_else_is_not_kept(caplog: Any, by: Any) -> None:
    """And what it has written is written again, as it should be."""
    recordings, memory = Recordings(add, (0,), spoiled(by)), [ones(0)]
    for step in range(3):
        assert recordings([ones(step), ones(1)], memory)[0][0] == memory[0][0] == step + 1
    assert not recordings.recorded and "other numbers" in caplog.text


def test_same_but_for_rounding() -> None:
    logits = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    tie = torch.tensor([1, 2])
    assert recorded.same([tie, logits], [tie + 1, logits * (1 + 1e-5)])
    assert recorded.same([logits.bfloat16()], [(logits * 1.01).bfloat16()])
    assert not recorded.same([logits], [logits * 1.01])
    assert not recorded.same([logits.bfloat16()], [logits.roll(1, -1).bfloat16()])
    assert not recorded.same([tie], [tie[:1]])
