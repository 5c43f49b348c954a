"""Nothing is left out of the matrix: whatever specdec exports or keeps in a cache stands in its registry."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import get_args

import families
import pytest
from families import ARCHITECTURES, family
from lossless.registry import (
    EACH_CHANGE,
    FAMILIES,
    MEMORIES,
    MEMORY_BASES,
    RULES,
    STEPWISE,
    STRATEGIES,
    WITHOUT_A_FAMILY,
    WORKING,
)

import specdec
import specdec.cache
from specdec.cache.recurrent import HybridSlidingLayer
from specdec.loop import Rule
from specdec.target import ModelRunner


def exported_drafters() -> set[type[specdec.Drafter]]:
    every = (getattr(specdec, name) for name in specdec.__all__)
    return {e for e in every if isinstance(e, type) and issubclass(e, specdec.Drafter) and e is not specdec.Drafter}


def kinds_of_memory() -> set[type]:
    """The layers that specdec's own cache modules define."""
    modules = [importlib.import_module(f"specdec.cache.{m.name}") for m in pkgutil.iter_modules(specdec.cache.__path__)]
    own = {c for m in modules for _, c in inspect.getmembers(m, inspect.isclass) if c.__module__ == m.__name__}
    return {c for c in own if issubclass(c, MEMORY_BASES)}


def test_every_drafter_is_a_strategy() -> None:
    missing = exported_drafters() - {strategy.kind for strategy in STRATEGIES.values()}
    assert not missing, f"{missing} in specdec.__all__: give each a line in STRATEGIES of lossless/registry.py"


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_is_what_it_says(name: str) -> None:
    assert type(STRATEGIES[name].make("gpt2")) is STRATEGIES[name].kind


def test_every_rule_has_a_plain_reading() -> None:
    assert set(RULES) == set(get_args(Rule)), "a rule needs a scalar form in verify/scalar.py, and a line in RULES"


def test_every_memory_is_in_the_matrix() -> None:
    assert set(WITHOUT_A_FAMILY) == {HybridSlidingLayer}, "no other kind of memory is excused"
    assert not set(MEMORIES) & set(WITHOUT_A_FAMILY)
    every = {*MEMORIES, *WITHOUT_A_FAMILY}
    assert every == kinds_of_memory(), "a kind of memory needs a family of models, and a line in MEMORIES"
    for kind, name in MEMORIES.items():
        assert name in WORKING
        cache = ModelRunner(family(name)).new_cache(1, 1)
        assert kind in {type(layer) for layer in cache.layers}


@pytest.mark.parametrize("name", WORKING)
def test_the_excused_memory_has_no_family(name: str) -> None:
    """Where one has it, it belongs in MEMORIES."""
    cache = ModelRunner(family(name)).new_cache(1, 1)
    assert not {type(layer) for layer in cache.layers} & set(WITHOUT_A_FAMILY)


def test_every_family_that_works_is_a_row() -> None:
    rows = {row if isinstance(row, str) else row.values[0] for row in FAMILIES}
    assert rows | set(STEPWISE) == set(WORKING)
    of_each_change = {ARCHITECTURES[name].kind for name in EACH_CHANGE}
    assert of_each_change == {ARCHITECTURES[name].kind for name in families.names()} - {"refused"}
