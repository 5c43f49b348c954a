"""docs/mutants.md, as a run found it."""

from __future__ import annotations

import pathlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from tests.mutants.mutant import Mutant
from tests.mutants.worker import Result

_WORDS = {"failed": "killed", "passed": "survived", "timed out": "timed out", "broken": "broken"}


def write_page(path: pathlib.Path, mutants: Sequence[Mutant], found: Mapping[str, Result], minutes: float) -> None:
    """One row a mutant: where it is, what became of it, and the test that noticed first."""
    killed = sum(result.verdict == "failed" for result in found.values())
    machine = f"torch {version('torch')}, transformers {version('transformers')}, Python {platform.python_version()}"
    lines = [
        "# Mutants",
        "",
        "Bugs that somebody might write, each put into a copy of specdec/ by itself; the tests must notice every one.",
        "Written by `python -m tests.mutants --page`; the bugs are in `tests/mutants/`, and a test of the default suite",
        "checks that each still fits the code.",
        "",
        f"**{killed} of {len(found)} killed**, {minutes:.0f} minutes ({machine}).",
        "",
        "| file | bug | | noticed by | s |",
        "|---|---|---|---|---:|",
    ]
    for mutant in mutants:
        result = found[mutant.name]
        test = result.test.removeprefix("tests/") or result.why
        shown = test.replace("|", "\\|")
        lines.append(f"| {mutant.file} | {mutant.name} | {_WORDS[result.verdict]} | `{shown}` | {result.seconds:.0f} |")
    path.write_text("\n".join(lines) + "\n")
