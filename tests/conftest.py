"""Settings of the whole suite: one thread, so that a core stays free for whatever else runs."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator

import pytest
import torch
from transformers.utils import logging

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # tests import `models` from any subdirectory
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_packages_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the suite compiles is not kept, and what the user has compiled does not speed it up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECDEC_CACHE", str(tmp_path_factory.mktemp("cache") / "packages"))
        yield


@pytest.fixture(autouse=True)
def _global_rng_is_put_back() -> Iterator[None]:
    """Tests neither depend on each other's draws nor disturb them."""
    before = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(before)


@pytest.fixture(autouse=True)
def _transformers_speaks_as_before() -> Iterator[None]:
    """The command line quietens transformers for its process, which is the suite's here."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield
    logging.set_verbosity(before)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
