"""Options of the comparison with other engines, and its table at the end of the run."""

from __future__ import annotations

from typing import Any

import pytest

from bench.peers.table import report

_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("--peer", {"action": "append", "default": [], "help": "NAME=PYTHON: a peer and its environment's interpreter"}),
    ("--peer-prompts", {"default": "", "help": 'JSONL file with a "prompt" a line, instead of the bundled prompts'}),
    ("--peer-scratch", {"default": "", "help": "folder that keeps converted weights for the next run"}),
    ("--peer-temperatures", {"default": "0", "help": "comma-separated; 0 means greedy (default 0)"}),
]
DEFAULTS = {name: spec["default"] for name, spec in _OPTIONS}
_RECORDS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("specdec peers", "comparison with other engines")
    for name, spec in _OPTIONS:
        group.addoption(name, **spec)


def option(config: pytest.Config, name: str) -> Any:
    """An option's value; its default where this file was read too late to add it (`pytest bench`)."""
    return config.getoption(name, default=DEFAULTS[name])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "temperature" in metafunc.fixturenames:
        metafunc.parametrize(
            "temperature", [float(t) for t in option(metafunc.config, "--peer-temperatures").split(",")]
        )


@pytest.fixture(scope="session")
def records(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What the summary at the end prints."""
    return request.config.stash.setdefault(_RECORDS, [])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    records: list[dict[str, Any]] = config.stash.get(_RECORDS, [])
    text = report(records)
    if text:
        terminalreporter.section("peers")
        terminalreporter.write_line(text)
