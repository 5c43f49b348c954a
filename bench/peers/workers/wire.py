"""The worker's half of the protocol: JSON lines on stdin and stdout. Standard library only.

A worker runs in its peer's own environment and imports nothing of this project. It reads one request a line and
answers each with one line:

    {"do": "load", "mode": "draft", ...}                      -> {"ok": true, "engine": ..., "dtype": ..., "note": ...}
    {"do": "generate", "ids": [...], "new_tokens": n, ...}    -> {"ok": true, "tokens": [...], "seconds": s, ...}
    {"do": "batch", "rows": [[...], ...], "new_tokens": n}    -> {"ok": true, "rows": [[...], ...], "seconds": s}
    {"do": "quit"}                                            -> {"ok": true, "bye": true}

Only engines that decode several prompts together answer to "batch".

A failure answers {"ok": false, "error": ...}. Whatever the engine itself prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Load:
    """What to load, once."""

    mode: str  # "plain", "draft" or "ngram"
    target: str  # a folder as save_pretrained writes it, with a tokenizer
    draft: str  # the same without one; same vocabulary
    dtype: str  # "float32" or "bfloat16": asked for; the answer says what came of it
    threads: int
    draft_tokens: int
    min_ngram: int
    max_ngram: int
    context: int  # most tokens of a text, prompt included
    scratch: str  # an existing folder for converted weights, which the three modes share
    rows: int = 1  # most prompts at a time


@dataclass(frozen=True)
class Loaded:
    """What was loaded."""

    engine: str  # name and version
    dtype: str  # of weights, products and memory
    note: str = ""  # what else differs from what was asked


@dataclass(frozen=True)
class Ask:
    """One greedy or sampled text."""

    ids: list[int]
    new_tokens: int
    temperature: float  # 0 means greedy
    seed: int


@dataclass(frozen=True)
class Text:
    """What came of it; None where the engine does not say."""

    tokens: list[int]  # new ones; the end of text may be left out
    seconds: float  # of the call alone
    target_calls: int | None  # forwards of the target, the prompt's included
    drafted: int | None
    accepted: int | None


@dataclass(frozen=True)
class Batch:
    """Prompts for greedy texts, at the same time."""

    rows: list[list[int]]
    new_tokens: int


@dataclass(frozen=True)
class Texts:
    """What came of a batch."""

    rows: list[list[int]]  # new tokens
    seconds: float  # of the call alone


class Engine(Protocol):
    """What a worker script provides."""

    def load(self, asked: Load) -> Loaded: ...
    def generate(self, asked: Ask) -> Text: ...


def serve(engine: Engine) -> None:
    """Answers requests until stdin ends."""
    # Engines print to stdout, from C++ too: the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = {"ok": True} | _answer(engine, json.loads(line))
        except Exception as error:  # whatever it is, the parent shall hear it
            traceback.print_exc()
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if answer.get("bye"):
            break
    answers.close()
    # Some engines' threads never end by themselves.
    sys.stderr.flush()
    os._exit(0)


def _answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    do = request.pop("do")
    if do == "quit":
        return {"bye": True}
    if do == "load":
        return asdict(engine.load(Load(**_known(Load, request))))
    if do == "generate":
        return asdict(engine.generate(Ask(**_known(Ask, request))))
    if do == "batch" and hasattr(engine, "batch"):
        return asdict(engine.batch(Batch(**_known(Batch, request))))
    raise ValueError(f"unknown request {do!r}")


def _known(kind: Any, request: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    if names != set(request):
        raise ValueError(f"{kind.__name__} has {sorted(names)}, the request {sorted(request)}")
    return request


def finished(folder: Path) -> bool:
    """Converted weights are there as a whole: the mark is written last."""
    return (folder / "finished").is_file()


def finish(folder: Path) -> None:
    """Marks converted weights as whole."""
    (folder / "finished").touch()
