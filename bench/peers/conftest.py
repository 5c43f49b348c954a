"""Options of the comparison with other engines."""

from __future__ import annotations

from typing import Any

import pytest

_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("--peer", {"action": "append", "default": [], "help": "NAME=PYTHON: a peer and its environment's interpreter"}),
    ("--peer-scratch", {"default": "", "help": "folder that keeps converted weights for the next run"}),
    ("--peer-temperatures", {"default": "0", "help": "comma-separated; 0 means greedy (default 0)"}),
]
DEFAULTS = {name: spec["default"] for name, spec in _OPTIONS}


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
