"""Did two sides of a benchmark write the same text, but for near-ties? Otherwise their times do not compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from transformers import PreTrainedModel

from specdec.arbitrate import first_divergence

Verdict = Literal["equal", "near_ties", "others"]
Triple = tuple[Sequence[int], Sequence[int], Sequence[int]]  # a prompt, what a side wrote, what it should be


class UnequalWorkError(AssertionError):
    """Sides that should have written the same text did not, so that their times do not compare."""


class Judge:
    """Compares greedy texts, each pair once: rounds repeat them.

    Args:
        model: in whose dtype they were written; differences are arbitrated in a wider one.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._known: dict[tuple[tuple[int, ...], ...], Verdict] = {}

    def __call__(self, prompt: Sequence[int], text: Sequence[int], other: Sequence[int]) -> Verdict:
        key = (tuple(prompt), tuple(text), tuple(other))
        if key not in self._known:
            found = first_divergence(self._model, prompt, text, other)
            # One that ends early has no differing token, and is no tie.
            same: Verdict = "equal" if len(text) == len(other) else "others"
            self._known[key] = same if found is None else "near_ties" if found.is_near_tie else "others"
        return self._known[key]

    def count(self, triples: Iterable[Triple]) -> dict[str, int]:
        """How many texts there are, and how many of each verdict."""
        counts = {"texts": 0, "equal": 0, "near_ties": 0, "others": 0}
        for triple in triples:
            counts["texts"] += 1
            counts[self(*triple)] += 1
        return counts


def fail_if_others(side: str, counts: Mapping[str, int]) -> None:
    """Raises UnequalWorkError if texts of a side of ours are others than the target's, and not by a near-tie."""
    if counts["others"]:
        raise UnequalWorkError(
            f"{side} wrote other texts than target.generate() in {counts['others']} of {counts['texts']} rows, and not "
            "by a near-tie: its time is that of other work, and the output is wrong."
        )
