"""Asks a tiny random model of every architecture what its memory allows; prints the table of docs/models.md.

python docs/models_table.py
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))

import families

import specdec
from specdec.probe import agrees

HEAD = (
    "architecture", "memory", "one token", "several", "left padding", "4D masks", "row positions", "trees", "drafts",
    "batches",
)  # fmt: skip


def answer(found: specdec.Capabilities, error: float | str | None) -> str:
    """yes or no, and the relative error that says so."""
    if error is None:
        return "-"
    if isinstance(error, str):
        return "no (raises)"
    word = "yes" if agrees(error, found.limit) else "no"
    return f"{word} ({error:.0e})"


def row(name: str) -> list[str]:
    """One architecture's line."""
    found = specdec.capabilities(families.family(name))
    errors = (
        found.one_token, found.several_tokens, found.left_padding, found.masks_4d, found.per_row_positions,
        found.tree_masks,
    )  # fmt: skip
    memory = ", ".join(f"{count} x {kind}" for kind, count in found.memory.items()) or "its own"
    memory += "; state outside the cache" * found.state_outside_cache
    return [name, memory, *(answer(found, e) for e in errors), found.drafts, found.batches]


if __name__ == "__main__":
    lines = [HEAD, ["---"] * len(HEAD), *(row(name) for name in families.ARCHITECTURES)]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
