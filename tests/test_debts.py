"""A decoder remembers what its calls under "auto" lost, for the calls that are like them."""

from __future__ import annotations

from typing import Any

import pytest
from models import prompts, tiny

import specdec
from specdec import decode
from specdec.controller import AutoLength

ARGUMENTS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The debts that calls began with; each leaves one of its own, without a clock."""

    class Scripted(AutoLength):
        def __init__(self, debt: float) -> None:
            found.append(debt)
            super().__init__(debt=debt)

        @property
        def debt(self) -> float:
            return float(len(found))

    found: list[float] = []
    monkeypatch.setattr(decode, "AutoLength", Scripted)
    return found


def test_calls_that_are_alike(begun: list[float]) -> None:
    """Of one target, batch size, kind of drafter, and of text: greedy or sampled."""
    target, other = tiny("llama"), tiny("llama", noise=0.02)
    decoder = specdec.SpeculativeDecoder(specdec.NgramDrafter(min_ngram=1))
    for _ in range(3):
        decoder.generate(target, **prompts(2), **ARGUMENTS)
    assert begun == [0.0, 1.0, 2.0]
    decoder.generate(target, **prompts(1), **ARGUMENTS)
    decoder.generate(target, **prompts(2), max_new_tokens=6, do_sample=True)
    decoder.generate(other, **prompts(2), **ARGUMENTS)
    specdec.SpeculativeDecoder(specdec.NgramDrafter(min_ngram=1)).generate(target, **prompts(2), **ARGUMENTS)
    assert begun[3:] == [0.0] * 4
    target.generate(**prompts(2), custom_generate=decoder, **ARGUMENTS)
    assert begun[7:] == [3.0], "left by the last one that was like it"


def test_fixed_numbers_and_errors_leave_nothing(begun: list[float]) -> None:
    target = tiny("llama")

    def fail(_: Any) -> None:
        raise ValueError("mine")

    decoder = specdec.SpeculativeDecoder(specdec.NgramDrafter(min_ngram=1))
    with pytest.raises(ValueError, match="mine"):
        decoder.generate(target, **prompts(2), on_commit=fail, **ARGUMENTS)
    decoder.num_draft_tokens = 3
    decoder.generate(target, **prompts(2), **ARGUMENTS)
    decoder.num_draft_tokens = "auto"
    decoder.generate(target, **prompts(2), **ARGUMENTS)
    assert begun == [0.0, 0.0]
