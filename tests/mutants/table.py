"""All mutants."""

from __future__ import annotations

from tests.mutants import (
    of_coins,
    of_drafters,
    of_graphs,
    of_guards,
    of_large,
    of_loop,
    of_memory,
    of_rules,
    of_windows,
)
from tests.mutants.mutant import Mutant

MUTANTS: list[Mutant] = [
    *of_rules.MUTANTS,
    *of_coins.MUTANTS,
    *of_memory.MUTANTS,
    *of_windows.MUTANTS,
    *of_loop.MUTANTS,
    *of_drafters.MUTANTS,
    *of_graphs.MUTANTS,
    *of_large.MUTANTS,
    *of_guards.MUTANTS,
]
