"""Small profiles of the bundled pair, and what they leave in their directory."""

from __future__ import annotations

import pathlib
from dataclasses import replace
from typing import Any

from specdec.profile.options import Options
from specdec.profile.records import read_records
from specdec.profile.run import Profiling
from specdec.profile.schema import Profile

SMALL = Options(
    max_prompts=3, loop_prompts=2, new_tokens=12, temperatures=(0.0, 1.0), num_draft_tokens=(1, 2), dtype="float32"
)
TINY = replace(SMALL, max_prompts=2, loop_prompts=1, new_tokens=8, temperatures=(1.0,), num_draft_tokens=(2,))


def profile(out: pathlib.Path, options: Options = SMALL, **settings: Any) -> Profile:
    """Runs it; see `Profiling`."""
    found = Profiling(options, out, **settings).run()
    assert found is not None
    return found


def records(out: pathlib.Path, part: str) -> list[dict[str, Any]]:
    """All records of a part."""
    return list(read_records(*sorted((out / "parts").glob(f"{part}.*.jsonl"))))


def texts(out: pathlib.Path) -> dict[tuple[int, float], list[int]]:
    """What the target wrote, by prompt and temperature."""
    return {(t["index"], t["temperature"]): t["text"] for t in records(out, "texts")}
