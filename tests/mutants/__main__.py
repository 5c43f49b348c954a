"""`python -m tests.mutants`: bugs, one at a time, in a copy of specdec/; the tests must find all that are hand-made."""

from __future__ import annotations

import argparse
import multiprocessing
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.mutants import automatic
from tests.mutants.mutant import ROOT, Mutant
from tests.mutants.report import Kept, write_page
from tests.mutants.table import MUTANTS
from tests.mutants.worker import Result, run_task, settle

SECONDS = 240.0  # of a mutant's tests, at most


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    mutants: list[Mutant]
    jobs: int
    seconds: float
    page: pathlib.Path | None
    unmutated: bool
    kept: pathlib.Path | None


def read_options(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names or of files; all mutants if none is given")
    parser.add_argument("--automatic", type=int, metavar="N", help="N of the mutants that are made by rule instead")
    parser.add_argument("--seed", type=int, default=0, help="which N (0)")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time, each on a core (1)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"most seconds a mutant ({SECONDS:.0f})")
    parser.add_argument("--list", action="store_true", help="name them, run nothing")
    parser.add_argument("--skip-unmutated", action="store_true", help="do not run the tests without a mutant first")
    parser.add_argument("--keep", type=pathlib.Path, help="write results to a file, and do not run what it has killed")
    parser.add_argument("--page", action="store_true", help="write docs/mutants.md; needs all mutants")
    parser.add_argument("--run-nothing", action="store_true", help="with --keep and --page: write down what is known")
    asked = parser.parse_args(arguments)
    names = [name.lower() for name in asked.names]
    table = MUTANTS if asked.automatic is None else automatic.some(asked.automatic, asked.seed)
    chosen = [m for m in table if not names or any(n in m.name.lower() or n in m.file for n in names)]
    if not chosen:
        parser.error(f"no mutant has {' or '.join(asked.names)} in its name or file; --list names them all")
    if asked.page and chosen != MUTANTS:
        parser.error("--page writes down a whole run of the hand-made ones: name no mutants")
    if asked.run_nothing and not (asked.page and asked.keep):
        parser.error("--run-nothing writes a page from what --keep has: give both")
    if asked.list:
        for mutant in chosen:
            print(f"{mutant.file:32} {mutant.name}")
        sys.exit(0)
    page = ROOT / "docs" / "mutants.md" if asked.page else None
    if asked.run_nothing:
        assert page is not None
        write_page(page, chosen, Kept(asked.keep, chosen).killed())
        sys.exit(0)
    return Options(chosen, max(1, asked.jobs), asked.seconds, page, not asked.skip_unmutated, asked.keep)


def union(mutants: Sequence[Mutant]) -> list[str]:
    """All their tests, each once; a whole file stands for what is in it."""
    every = sorted({test for mutant in mutants for test in mutant.tests})
    return [test for test in every if not any(test != other and test.startswith(f"{other}::") for other in every)]


def results(options: Options, mutants: Sequence[Mutant], folder: str) -> Iterator[tuple[Mutant | None, Result]]:
    """Of the tests without a mutant, then of each mutant, as they come."""
    with multiprocessing.get_context("spawn").Pool(options.jobs, settle, (folder,)) as pool:
        if options.unmutated and mutants:
            yield pool.apply(run_task, ((None, union(mutants), 20 * options.seconds),))
        yield from pool.imap_unordered(run_task, [(m, m.tests, options.seconds) for m in mutants])


def main(arguments: Sequence[str]) -> int:
    options = read_options(arguments)
    kept = Kept(options.kept, options.mutants)
    begun, found = time.monotonic(), kept.killed()
    left = [mutant for mutant in options.mutants if mutant.name not in found]
    words = {"failed": "killed", "passed": "SURVIVED", "timed out": "TIMED OUT", "broken": "BROKEN"}
    with tempfile.TemporaryDirectory(prefix="specdec-mutants-") as folder:
        for mutant, result in results(options, left, folder):
            if mutant is None:
                print(
                    f"without a mutant: {result.verdict} in {result.seconds:.0f} s  {result.test} {result.why}",
                    flush=True,
                )
                if result.verdict != "passed":
                    return 1
                continue
            found[mutant.name] = result
            kept.add(mutant.name, result)
            count = f"{len(found)}/{len(options.mutants)}"
            print(f"{count:>7}  {words[result.verdict]:9} {result.seconds:5.1f} s  {mutant.name}", flush=True)
            print(f"{'':27}{result.test or result.why or 'no test noticed'}", flush=True)
    alive = [name for name, result in found.items() if result.verdict != "failed"]
    minutes = (time.monotonic() - begun) / 60
    print(f"\n{len(found) - len(alive)} of {len(found)} mutants killed in {minutes:.1f} minutes.")
    for name in alive:
        print(f"  {words[found[name].verdict]}: {name}")
    if options.page is not None:
        write_page(options.page, options.mutants, found)
        print(f"Written to {options.page.relative_to(ROOT)}.")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
