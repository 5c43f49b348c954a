"""The rollback state machine on full attention, mixtures of experts and encoder-decoders."""

from __future__ import annotations

import families
import pytest
from cache.machine import run_programs

QUICK = "llama bloom mixtral deepseek_v3 t5 bart whisper".split()


@pytest.mark.parametrize("name", QUICK)
def test_any_program_leaves_the_memory_of_the_text(name: str) -> None:
    run_programs(name, examples=7)


@pytest.mark.long
@pytest.mark.parametrize("name", families.names("attention", "moe", "encoder-decoder"))
def test_many_programs(name: str) -> None:
    run_programs(name, examples=300)
