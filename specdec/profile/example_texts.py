"""Example texts of the loop: each piece with who wrote it, and what both models thought of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase

from specdec.pieces import Pieces
from specdec.profile.engine import LETTERS
from specdec.profile.schema import PLAIN, Example, ExampleToken

_NAMES = {letter: source.value for source, letter in LETTERS.items()}
MOST_TOKENS = 400


def examples_of(
    records: Iterable[dict[str, Any]],
    names: dict[int, str],
    tokenizer: PreTrainedTokenizerBase,
    wanted: Collection[tuple[str, float, int]],
) -> list[Example]:
    """The first batch of one of each wanted setting.

    Args:
        records: of the loop.
        names: of the prompts, by index.
        wanted: (draft, temperature, num_draft_tokens).
    """
    found: dict[tuple[str, float, int], Example] = {}
    for record in records:
        setting = record["draft"], record["temperature"], record["num_draft_tokens"]
        if record["draft"] == PLAIN or record["batch"] != 1 or "rows" not in record:
            continue
        if setting in wanted and setting not in found:
            row = record["rows"][0]
            name = names.get(row["index"], str(row["index"]))
            found[setting] = Example(name, row["domain"], *setting, _pieces(row, tokenizer))
    return list(found.values())


def _pieces(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[ExampleToken]:
    """A piece a token, or several tokens where only they together are text; figures are the last one's."""
    pieces, out = Pieces(tokenizer), []
    tokens = row["tokens"][:MOST_TOKENS]
    for i, token in enumerate(tokens):
        text = pieces.add(token)
        if text is None and i + 1 == len(tokens):
            text = pieces.flush()
        if text is not None:
            figures = {name: row[name][i] for name in ("p", "q", "alpha") if name in row}
            out.append(ExampleToken(text, _NAMES[row["sources"][i]], **figures))
    return out
