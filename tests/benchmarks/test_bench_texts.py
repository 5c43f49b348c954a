"""Texts that should be equal: each pair is arbitrated once, and only a near-tie excuses a difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bench import texts
from bench.texts import Judge, UnequalWorkError, fail_if_others
from specdec.arbitrate import Divergence

TIE, BUG = Divergence(1, 4, 5, gap=0.1, noise=0.1), Divergence(1, 4, 6, gap=1.0, noise=0.1)


def test_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def arbiter(model: Any, prompt: Sequence[int], new: Sequence[int], other: Sequence[int]) -> Divergence | None:
        asked.append(tuple(new))
        return {(3, 5): TIE, (3, 6): BUG}.get(tuple(new))

    monkeypatch.setattr(texts, "first_divergence", arbiter)
    judge: Any = Judge(None)  # type: ignore[arg-type]
    written = [[3, 4], [3, 5], [3, 6], [3], [3, 4], [3, 6]]
    counts = judge.count(([1], text, [3, 4]) for text in written)
    assert counts == {"texts": 6, "equal": 2, "near_ties": 1, "others": 3}
    assert len(asked) == 4


def test_others_are_a_fault() -> None:
    fail_if_others("ours", {"texts": 2, "equal": 1, "near_ties": 1, "others": 0})
    with pytest.raises(UnequalWorkError, match=r"ours wrote other texts than .* in 1 of 2 rows"):
        fail_if_others("ours", {"texts": 2, "equal": 1, "near_ties": 0, "others": 1})
