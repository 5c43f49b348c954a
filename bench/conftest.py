"""Options and the settings that every benchmark shares."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch
import transformers


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asked for."""

    prompts: int
    new_tokens: int
    draft_tokens: int
    rounds: int
    threads: int

    def info(self) -> dict[str, Any]:
        """For `benchmark.extra_info`: a number without its circumstances says nothing."""
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        return asdict(self) | versions | {"cpus": len(os.sched_getaffinity(0))}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("specdec", "specdec benchmarks")
    group.addoption("--prompts", type=int, default=0, help="bundled prompts to use; 0 means all")
    group.addoption("--new-tokens", type=int, default=128, help="tokens to generate per prompt (default 128)")
    group.addoption("--draft-tokens", type=int, default=4, help="drafted tokens a round, where fixed (default 4)")
    group.addoption("--rounds", type=int, default=3, help="passes over all prompts by every side (default 3)")
    group.addoption("--threads", type=int, default=2, help="torch threads (default 2)")
    group.addoption("--weights-size", default="170M", help="target of test_weights.py: small, 170M or 300M")
    group.addoption("--dtypes", default="bfloat16,float32", help="comma-separated (default bfloat16,float32)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "dtype" in metafunc.fixturenames:
        names = metafunc.config.getoption("--dtypes").split(",")
        metafunc.parametrize("dtype", [getattr(torch, name) for name in names], ids=names)


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    option = request.config.getoption
    return Settings(
        option("--prompts"), option("--new-tokens"), option("--draft-tokens"), option("--rounds"), option("--threads")
    )


@pytest.fixture(autouse=True, scope="session")
def _machine(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
