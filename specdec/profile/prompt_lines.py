"""`prompts.jsonl` beside a profile: what was measured of each prompt, one line a prompt and setting.

Two kinds of lines: rounds of a setting (plain decoding included), and the agreement of target and draft. A batch is one
line under its first prompt. `key` is the hash of the prompt's token ids, by which two profiles know the same prompt.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from specdec.errors import InputError

NAME = "prompts.jsonl"
_LONGEST = 2**16  # bytes of a line


@dataclass(frozen=True, slots=True)
class Run:
    """One prompt (or batch) decoded in one setting.

    Attributes:
        index: in that profile's prompts.
        rounds: of all its rows together, so that tokens / rounds is the acceptance length.
    """

    index: int
    key: str
    draft: str
    temperature: float
    batch: int
    num_draft_tokens: int
    tokens: float
    rounds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Agreed:
    """One prompt's agreement: alpha and greedy are sums over its tokens."""

    index: int
    key: str
    draft: str
    temperature: float
    tokens: float
    alpha: float
    greedy: float


def records(directory: str | os.PathLike[str]) -> Iterator[Run | Agreed]:
    """The lines of a profile's records, one at a time. A line that was cut off at the file's end is left out.

    Raises:
        InputError: there are none, or a line is not what it should be, by its number.
    """
    path = pathlib.Path(directory) / NAME
    try:
        with open(path, "rb") as lines:
            number = 0
            while line := lines.readline(_LONGEST):
                number += 1
                if line.strip():
                    found = _record(line, f"{path}, line {number}")
                    if found is not None:
                        yield found
    except OSError as error:
        raise InputError(
            f"no records at {path}: {error.strerror}. Give the directories that `specdec profile --out` wrote."
        ) from None


def _record(line: bytes, where: str) -> Run | Agreed | None:
    is_whole = line.endswith(b"\n")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        if not is_whole and len(line) < _LONGEST:
            return None  # the profile was interrupted while it wrote
        raise InputError(f"{where} is no JSON. Run `specdec profile` again.") from None
    if not isinstance(value, dict):
        raise InputError(f"{where} is no object. Run `specdec profile` again.")
    index = int(_number(value, "index", where))
    key, draft = _text(value, "key", where), _text(value, "draft", where)
    temperature, tokens = _number(value, "temperature", where), _number(value, "tokens", where)
    if "alpha" in value:
        alpha, greedy = _number(value, "alpha", where), _number(value, "greedy", where)
        return Agreed(index, key, draft, temperature, tokens, alpha, greedy)
    return Run(
        index,
        key,
        draft,
        temperature,
        int(_number(value, "batch", where)),
        int(_number(value, "num_draft_tokens", where)),
        tokens,
        _number(value, "rounds", where),
        _number(value, "seconds", where),
    )


def _text(value: dict[str, Any], name: str, where: str) -> str:
    found = value.get(name)
    if not isinstance(found, str) or (name == "key" and not _is_hexadecimal(found)):
        wanted = "hexadecimal digits" if name == "key" else "text"
        raise InputError(f"{where}: {name!r} must be {wanted}, got {str(found)[:40]!r}. Run `specdec profile` again.")
    return found


def _number(value: dict[str, Any], name: str, where: str) -> float:
    found: Any = value.get(name)
    if type(found) not in (int, float) or not math.isfinite(found) or found < 0:
        raise InputError(
            f"{where}: {name!r} must be a number from 0, got {str(found)[:40]!r}. Run `specdec profile` again."
        )
    return float(found)


def _is_hexadecimal(text: str) -> bool:
    return 0 < len(text) <= 64 and all(c in "0123456789abcdef" for c in text)
