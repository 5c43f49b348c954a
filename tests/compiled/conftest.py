"""Each test of this directory has a folder of packages of its own, and models that nothing is known of."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest
import traced
from stand_in import StandIn

from specdec.compiled import build, choose, sampled, support


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Where compiled packages are kept; made by the first one."""
    return tmp_path / "packages"


@pytest.fixture(autouse=True)
def _nothing_is_known(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever lies in the user's own folder has no effect, nor what earlier tests found out."""
    monkeypatch.setenv("SPECDEC_CACHE", str(folder))
    monkeypatch.delenv("SPECDEC_CACHE_BYTES", raising=False)
    monkeypatch.setattr(sampled, "_run_of", traced.chance)  # test_chance.py has the rest
    choose._known.clear()
    choose._warned.clear()
    yield
    choose._known.clear()
    choose._warned.clear()


@pytest.fixture
def compiler_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing depends on what is installed."""
    monkeypatch.setattr(support, "get_cpp_compiler", lambda: "g++")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    compiler = StandIn()
    monkeypatch.setattr(build, "build", compiler.build)
    monkeypatch.setattr(build, "load", compiler.load)
    return compiler
