"""The few prompts that the loop itself is run on, and the batches and settings that it is run with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt, as the texts' file has it."""

    index: int
    key: str
    name: str
    domain: str
    tokens: list[int]


def chosen_prompts(domains: Iterable[tuple[int, str]], count: int) -> list[int]:
    """Indices of `count` prompts: the domains in turn, and within one spread evenly over the file.

    Args:
        domains: (index, domain) of each prompt.

    Example:
        >>> chosen_prompts([(0, "a"), (1, "a"), (2, "a"), (3, "b")], 3)
        [0, 1, 3]
    """
    by_domain: dict[str, list[int]] = defaultdict(list)
    for index, domain in domains:
        by_domain[domain].append(index)
    taken = dict.fromkeys(by_domain, 0)
    left = min(count, sum(map(len, by_domain.values())))
    while left:
        for domain, indices in by_domain.items():
            if left and taken[domain] < len(indices):
                taken[domain], left = taken[domain] + 1, left - 1
    chosen = [
        indices[i * len(indices) // taken[domain]]
        for domain, indices in by_domain.items()
        for i in range(taken[domain])
    ]
    return sorted(chosen)


def items_of(texts: Iterable[dict[str, Any]], indices: Sequence[int]) -> list[Item]:
    """The chosen prompts, in the file's order."""
    wanted = set(indices)
    found = {
        t["index"]: Item(t["index"], t["key"], t["name"], t["domain"], t["prompt"])
        for t in texts
        if t["index"] in wanted and "prompt" in t
    }
    return [found[i] for i in sorted(found)]


def batches_of(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Batches of `size`, in order; the last one is filled up from the first items."""
    padded = [items[i % len(items)] for i in range(-(-len(items) // size) * size)]
    return [padded[i : i + size] for i in range(0, len(padded), size)]


def sampled_counts(counts: Sequence[int], most: int = 4) -> list[int]:
    """The numbers of draft tokens that are run: all of them where they are few, else powers of two and both ends.

    Example:
        >>> sampled_counts(range(1, 9))
        [1, 2, 4, 8]
    """
    if len(counts) <= most:
        return list(counts)
    return sorted({k for k in counts if k & (k - 1) == 0} | {min(counts), max(counts)})
