"""Settings of the whole suite: one thread, so that a core stays free for whatever else runs."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # tests import `models` from any subdirectory
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _global_rng_is_put_back() -> Iterator[None]:
    """Tests neither depend on each other's draws nor disturb them."""
    before = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(before)
