"""Profiles that take seconds."""

from __future__ import annotations

import pytest


@pytest.fixture
def few_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where times say nothing each point of the grid is run once, and short."""
    monkeypatch.setattr("specdec.profile.costing.REPEATS", 1)
    monkeypatch.setattr("specdec.profile.run.REPEATS", 1)
    monkeypatch.setattr("specdec.profile.costing.NEW_TOKENS", 4)
    monkeypatch.setattr("specdec.profile.costing._LONGER", 1)
