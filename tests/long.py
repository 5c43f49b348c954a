"""`python -m tests.long`: all long proofs one after the other, and a table of what came of each at the end."""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[1]
_LAW = ("tests/lossless/test_exact_law_long.py",)
_MATRIX = (
    "tests/lossless/test_strategy_matrix.py",
    "tests/lossless/test_matrix_sampled.py",
    "tests/compiled/test_matrix_compiled.py",
)
_PROGRAMS = ("tests/cache/test_state_machine.py", "tests/cache/test_state_machine_windows.py")
_GTESTS = ("tests/lossless/test_gtests_many.py",)


@dataclass(frozen=True)
class Part:
    """One proof: its name, and the arguments of `python -m`."""

    name: str
    command: Sequence[str]


def parts(jobs: int) -> list[Part]:
    """The parts, in the order of what they cost; pytest's on `jobs` processes."""
    pytest = ["pytest", "-q", "-m", "long", "-p", "no:cacheprovider", "-n", str(jobs), "--dist"]
    elsewhere = [f"--ignore={path}" for path in (*_LAW, *_MATRIX, *_PROGRAMS, *_GTESTS)]
    return [
        Part("exact law", [*pytest, "load", *_LAW]),
        Part("G-tests", [*pytest, "load", *_GTESTS]),
        Part("everything else", [*pytest, "loadfile", *elsewhere, "tests"]),
        Part("matrix", [*pytest, "load", *_MATRIX]),
        Part("rollback programs", [*pytest, "load", *_PROGRAMS]),
        Part("mutants", ["tests.mutants", "--jobs", str(jobs)]),
    ]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long", description=__doc__)
    every = [part.name for part in parts(1)]
    parser.add_argument("names", nargs="*", help=f"some of: {every}; all if none is given")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (2)")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - set(every):
        parser.error(f"no part is called {sorted(unknown)}: {every}")
    table, status = [], 0
    for part in parts(asked.jobs):
        if asked.names and part.name not in asked.names:
            continue
        print(f"== {part.name}: python -m {' '.join(part.command)}", flush=True)
        begun = time.monotonic()
        code, said = run([sys.executable, "-m", *part.command])
        minutes = (time.monotonic() - begun) / 60
        status |= code != 0
        table.append(f"| {part.name} | {'passed' if code == 0 else f'FAILED ({code})'} | {minutes:.1f} | {said} |")
    print("\n| part | | minutes | its summary |\n|---|---|---:|---|")
    print("\n".join(table))
    return status


def run(command: Sequence[str]) -> tuple[int, str]:
    """Runs a command in the repository, its output shown as it comes; exit code, and the line that sums it up."""
    said = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if " passed" in line or " failed" in line or " killed in " in line or " error" in line:
                said = line.strip(" =\n")
    return process.returncode, said


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
