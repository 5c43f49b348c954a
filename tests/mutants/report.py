"""docs/mutants.md, as a run found it."""

from __future__ import annotations

import json
import pathlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version

from tests.mutants.mutant import Mutant
from tests.mutants.worker import Result

_WORDS = {"failed": "killed", "passed": "survived", "timed out": "timed out", "broken": "broken"}


class Kept:
    """Results in a file, so that a run that was cut off can be gone on with.

    Args:
        path: None keeps nothing.
    """

    def __init__(self, path: pathlib.Path | None, mutants: Sequence[Mutant]) -> None:
        self._path = path
        self._digests = {mutant.name: mutant.digest for mutant in mutants}
        self._every = json.loads(path.read_text()) if path is not None and path.exists() else {}

    def killed(self) -> dict[str, Result]:
        """Of these mutants, those that are known to be killed by the tests that they name now."""
        known = {name: self._every.get(f"{name} {digest}") for name, digest in self._digests.items()}
        return {name: Result(**r) for name, r in known.items() if r is not None and r["verdict"] == "failed"}

    def add(self, name: str, result: Result) -> None:
        """Writes a result down."""
        self._every[f"{name} {self._digests[name]}"] = asdict(result)
        if self._path is not None:
            self._path.write_text(json.dumps(self._every, indent=1))


def write_page(path: pathlib.Path, mutants: Sequence[Mutant], found: Mapping[str, Result]) -> None:
    """One row a mutant: where it is, what became of it, and the test that noticed first."""
    killed = sum(result.verdict == "failed" for result in found.values())
    minutes = sum(result.seconds for result in found.values()) / 60
    machine = f"torch {version('torch')}, transformers {version('transformers')}, Python {platform.python_version()}"
    left = len(mutants) - len(found)
    lines = [
        "# Mutants",
        "",
        "Bugs that somebody might write, each put into a copy of specdec/ by itself; the tests must notice every one.",
        "Written by `python -m tests.mutants --page`; the bugs are in `tests/mutants/`, and a test of the default",
        "suite checks that each still fits the code.",
        "",
        f"**{killed} of {len(found)} killed**{f', {left} not run yet' if left else ''}; {minutes:.0f} minutes in all "
        f"on a shared core ({machine}).",
        "",
        "Not all of it was run on one state of the code: a result is kept while the mutant's place, its change and the",
        "names of its tests stay the same, though other code and the tests' own text may have changed since. A run",
        "without `--keep` runs everything anew.",
        "",
        "| file | bug | | noticed by | s |",
        "|---|---|---|---|---:|",
    ]
    for mutant in mutants:
        result, name = found.get(mutant.name), mutant.name.replace("|", "\\|")
        if result is None:
            lines.append(f"| {mutant.file} | {name} | not run yet | | |")
            continue
        test = (result.test.removeprefix("tests/") or result.why).replace("|", "\\|")
        lines.append(f"| {mutant.file} | {name} | {_WORDS[result.verdict]} | `{test}` | {result.seconds:.0f} |")
    path.write_text("\n".join(lines) + "\n")
