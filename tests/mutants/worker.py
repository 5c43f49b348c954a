"""Runs tests against a changed copy of the repository, in a process forked when the slow imports are done.

torch and transformers take six seconds to import and know nothing of specdec, so one process imports them once, and
each run is a fork of it: a mutant costs its own tests and little more.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.mutants.mutant import ROOT, Mutant

# What tests and specdec import on their way; whatever is missing is imported by the run that needs it.
_SLOW = (
    "torch torch._dynamo torch.export numpy scipy.stats hypothesis hypothesis.stateful pytest transformers "
    "transformers.generation.utils transformers.modeling_utils transformers.models.auto.modeling_auto "
    "transformers.models.llama.modeling_llama transformers.models.gpt2.modeling_gpt2 "
    "transformers.models.qwen3.modeling_qwen3 transformers.models.opt.modeling_opt "
    "transformers.models.phi3.modeling_phi3 transformers.models.mistral.modeling_mistral accelerate.hooks typer rich "
    "transformers.integrations.fsdp transformers.integrations.deepspeed torch._inductor.cpp_builder "
    "torch._inductor.cpu_vec_isa torch._inductor.exc"
).split()
# hypothesis is imported already, and pytest would warn that it cannot rewrite its assertions.
_OPTIONS = "-x -q -p no:cacheprovider -W ignore::pytest.PytestAssertRewriteWarning".split()
_COPIED, _LINKED = ("specdec", "tests"), ("drafts", "docs", "bench", "README.md")


@dataclass(frozen=True)
class Result:
    """What came of one run.

    Args:
        verdict: "passed", "failed", "timed out", or "broken": no test ran to its end, so that nothing was shown.
        test: the first test that failed.
        why: the last line of its error.
    """

    verdict: str
    seconds: float
    test: str = ""
    why: str = ""


class _FirstFailure:
    """A plugin of pytest: what failed, and how many tests ran."""

    def __init__(self) -> None:
        self.test = self.why = ""
        self.ran = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.ran += report.when == "call"
        if report.failed and not self.test:
            self.test = report.nodeid
            crash = getattr(report.longrepr, "reprcrash", None)
            self.why = str(getattr(crash, "message", "")).partition("\n")[0]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.test:
            self.why = f"{report.nodeid} could not be collected: {str(report.longrepr).strip().splitlines()[-1]}"


def warm_up() -> None:
    """Imports what is slow, once for all forks. One thread: a pool of threads does not survive a fork."""
    for name in _SLOW:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    importlib.import_module("torch").set_num_threads(1)
    gc.collect()
    gc.freeze()  # a fork need not look through all that
    sys.dont_write_bytecode = False  # the copy's own: else each run would compile all tests anew


def copy_repository(folder: pathlib.Path) -> pathlib.Path:
    """A copy that may be changed; what no mutant changes is linked."""
    folder.mkdir(parents=True)
    for name in _COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in _LINKED:
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


class Workplace:
    """One copy of the repository, in which one run after another takes place."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.root = copy_repository(folder)
        self._clock = int(time.time())

    def run(self, tests: Sequence[str], seconds: float, mutant: Mutant | None = None) -> Result:
        """Runs the tests, with the mutant if one is given, for so many seconds at most."""
        if mutant is None:
            return self._fork(tests, seconds)
        path = self.root / "specdec" / mutant.file
        before = path.read_text()
        try:
            self._write(path, mutant.applied(self.root))
            return self._fork(tests, seconds)
        finally:
            self._write(path, before)

    def _write(self, path: pathlib.Path, text: str) -> None:
        """Under a time of its own: Python compares a file's second and size with those of its compiled form."""
        path.write_text(text)
        self._clock += 2
        os.utime(path, (self._clock, self._clock))

    def _fork(self, tests: Sequence[str], seconds: float) -> Result:
        told = self.root / "told.json"
        told.unlink(missing_ok=True)
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(self.root, tests, told)
        status = _wait(child, seconds)
        taken = time.monotonic() - begun
        if status is None:
            return Result("timed out", taken)
        if not told.exists():
            return Result("failed", taken, why=f"the process died ({os.waitstatus_to_exitcode(status)})")
        say = json.loads(told.read_text())
        if say["code"] == 0:
            return Result("passed", taken)
        if say["code"] == 1 and say["test"]:
            return Result("failed", taken, say["test"], say["why"])
        return Result("broken", taken, why=say["why"] or f"pytest ended with {say['code']}, {say['ran']} tests ran")


def _wait(child: int, seconds: float) -> int | None:
    """Its status; None where it had to be killed, with all that it started."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.02)
    for kill in (os.killpg, os.kill):  # its group, and itself if it has not come as far as to have one
        with suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _end_with_parent() -> None:
    """On Linux a run that is cut off leaves no test running."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _child(root: pathlib.Path, tests: Sequence[str], told: pathlib.Path) -> None:
    """The forked process: it belongs to the copy, and never returns."""
    code, plugin = 3, _FirstFailure()
    try:
        os.setpgid(0, 0)
        _end_with_parent()
        os.chdir(root)
        with open(root / "output.txt", "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        for name in [n for n in sys.modules if n.split(".")[0] in ("specdec", "tests")]:
            del sys.modules[name]
        sys.path[:] = [str(root), *(p for p in sys.path if p not in ("", str(ROOT)))]
        import pytest
        from hypothesis import Phase, settings

        # The first example that fails is enough: to find a smaller one would take minutes.
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", phases=phases, database=None, report_multiple_bugs=False, deadline=None)
        settings.load_profile("mutants")
        code = int(pytest.main([*_OPTIONS, *tests], plugins=[plugin]))
    except BaseException as error:
        plugin.why = f"{type(error).__name__}: {error}"
    finally:
        sys.stdout.flush()
        told.write_text(json.dumps({"code": code, "test": plugin.test, "why": plugin.why, "ran": plugin.ran}))
        os._exit(0)


_place: Workplace | None = None  # of a process of the pool


def settle(folder: str) -> None:
    """Makes this process, a pool's, ready for `run_task`."""
    global _place
    warm_up()
    _place = Workplace(pathlib.Path(folder) / multiprocessing.current_process().name)


def run_task(task: tuple[Mutant | None, Sequence[str], float]) -> tuple[Mutant | None, Result]:
    """One run: a mutant or none, its tests, and the seconds that they may take."""
    mutant, tests, seconds = task
    assert _place is not None
    return mutant, _place.run(tests, seconds, mutant)
