"""Options, the settings that every benchmark shares, and what stands at the end of a run."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

import specdec
from bench import axes
from bench.outcome import Collected, finish
from bench.settings import BUNDLED, Models, Settings

__all__ = ["Settings"]

_OF_ANY_PAIR = ("test_axes.py", "test_compiled.py", "test_generate.py", "test_strategies.py")
_ON_ANY_DEVICE = ("test_weights.py",)  # models of their own
_COLLECTED: pytest.StashKey[Collected] = pytest.StashKey()
_SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("specdec", "specdec benchmarks")
    group.addoption("--target", help="directory or hub id of the target (default: the bundled pair)")
    group.addoption("--draft", help="directory or hub id of its draft")
    group.addoption("--device", default="cpu", help="where both run (default cpu)")
    group.addoption(
        "--prompts-file",
        action="append",
        default=[],
        help="prompts to use (JSONL of Spec-Bench, HumanEval, GSM8K, ShareGPT, messages or texts; or a prompt a line); "
        "may be given several times (default: the bundled ones)",
    )
    group.addoption("--prompts", type=int, default=0, help="prompts of each file to use, by kind in turn; 0 means all")
    group.addoption("--new-tokens", type=int, default=128, help="tokens to generate per prompt (default 128)")
    group.addoption("--draft-tokens", type=int, default=4, help="drafted tokens a round, where fixed (default 4)")
    group.addoption("--rounds", type=int, default=3, help="passes over all prompts by every side (default 3)")
    group.addoption("--threads", type=int, default=2, help="torch threads (default 2)")
    group.addoption("--weights-size", default="170M", help="target of test_weights.py: small, 170M or 300M")
    group.addoption("--weights-dtype", default="bfloat16", help="of its compiled sides (default bfloat16)")
    group.addoption("--dtypes", default="bfloat16,float32", help="comma-separated (default bfloat16,float32)")
    group.addoption("--axes", default=",".join(axes.AXES), help=f"of test_axes.py (default {','.join(axes.AXES)})")
    group.addoption("--report-dir", help="writes report.md, report.json and report.png there")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_COLLECTED] = Collected()
    for name in config.getoption("--dtypes").split(","):
        if not isinstance(getattr(torch, name, None), torch.dtype):
            raise pytest.UsageError(f"--dtypes {name}: torch has no such dtype; name float32, bfloat16 or float16.")
    try:
        axes.points(config.getoption("--axes"))
        config.stash[_SETTINGS] = _settings(config)
    except specdec.SpecdecError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "dtype" in metafunc.fixturenames:
        names = metafunc.config.getoption("--dtypes").split(",")
        metafunc.parametrize("dtype", [getattr(torch, name) for name in names], ids=names)
    if "point" in metafunc.fixturenames:
        points = axes.points(metafunc.config.getoption("--axes"))
        metafunc.parametrize("point", points, ids=[point.name for point in points])


def _settings(config: pytest.Config) -> Settings:
    option = config.getoption
    return Settings(
        option("--prompts"),
        option("--new-tokens"),
        option("--draft-tokens"),
        option("--rounds"),
        option("--threads"),
        Models(option("--target"), option("--draft"), option("--device")),
        tuple(option("--prompts-file")),
    )


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    return request.config.stash[_SETTINGS]


@pytest.fixture(autouse=True, scope="session")
def _machine(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def _record(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keeps what each benchmark found for the end of the run, also where it failed for it."""
    if "benchmark" not in request.fixturenames:
        yield
        return
    models = request.getfixturevalue("settings").models
    is_elsewhere = models.target is None and request.path.name in _ON_ANY_DEVICE
    if models != BUNDLED and request.path.name not in _OF_ANY_PAIR and not is_elsewhere:
        pytest.skip(
            "measures the bundled pair or models of its own, on a CPU: leave out --target, --draft and --device"
        )
    if not request.config.getoption("--benchmark-enable"):
        pytest.skip("the project's settings switch timing off: pass --benchmark-enable")
    benchmark: Any = request.getfixturevalue("benchmark")
    yield
    if benchmark.extra_info:
        request.config.stash[_COLLECTED].add(request.node.name, benchmark.extra_info)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    collected = config.stash[_COLLECTED]
    if collected.benchmarks:
        machine = config.hook.pytest_benchmark_generate_machine_info(config=config)
        folder = config.getoption("--report-dir")
        terminalreporter.section("benchmarks")
        for line in finish(collected, machine, pathlib.Path(folder) if folder else None):
            terminalreporter.write_line(line)
