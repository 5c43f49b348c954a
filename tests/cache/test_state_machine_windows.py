"""The rollback state machine on sliding windows and recurrent states."""

from __future__ import annotations

import families
import pytest
from cache.machine import run_programs

QUICK = "mistral gemma2 gpt_oss mamba mamba2 falcon_h1 qwen3_next lfm2".split()


@pytest.mark.parametrize("name", QUICK)
def test_any_program_leaves_the_memory_of_the_text(name: str) -> None:
    run_programs(name, examples=7)


@pytest.mark.long
@pytest.mark.parametrize("name", families.names("sliding", "recurrent"))
def test_many_programs(name: str) -> None:
    run_programs(name, examples=300)
