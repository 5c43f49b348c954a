"""Graphs without a compiler: the exported program, run node by node.

What is compiled is exactly this program, so that what it computes (masks, cache writes, positions, acceptance) is
tested on every architecture in seconds; that inductor computes the same is tested on a few, with a real package.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.compiled import build, choose
from specdec.compiled.chance import Recipe, example
from specdec.compiled.fingerprint import environment, survey
from specdec.compiled.graph import MemoryShape
from specdec.compiled.runner import Graph
from specdec.compiled.support import why_not
from specdec.probe import probe
from specdec.target import ModelRunner

_graphs: weakref.WeakKeyDictionary[PreTrainedModel, Graph] = weakref.WeakKeyDictionary()
calls = 0  # of all graphs


def why_not_captured(model: PreTrainedModel) -> str | None:
    """The reason that a user would be given; None if the model decodes through a graph from now on."""
    runner = ModelRunner(model)
    probe(runner)
    seen = survey(model)
    reason = why_not(runner, seen)
    if reason is None:
        if model not in _graphs:
            _graphs[model] = _graph(runner)
        known = choose._known.setdefault(model, choose._Known())
        known.graphs[environment()] = (seen.stamp(), _graphs[model])
    return reason


def _graph(runner: ModelRunner) -> Graph:
    shapes: Sequence[MemoryShape] = choose.memory_shapes(runner)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: Any = build.trace(runner, shapes).module(check_guards=False)

    def run(inputs: list[Tensor]) -> Sequence[Tensor]:
        global calls
        calls += 1
        return tuple(module(*inputs[:6], inputs[6:]))

    return Graph(run, shapes)


@cache
def _chance(recipe: str) -> Any:
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build.trace_chance(_recipes[recipe]).module(check_guards=False)


_recipes: dict[str, Recipe] = {}


def chance(recipe: Recipe, want: Any, *_: Any) -> Any:
    """In place of `sampled._run_of`; as strict about dtypes as compiled code, which reads one for another."""
    _recipes.setdefault(recipe.name, recipe)
    module = _chance(recipe.name)
    wanted = [tensor.dtype for tensor in example(recipe)]

    def run(inputs: list[Tensor]) -> Sequence[Tensor]:
        assert [tensor.dtype for tensor in inputs] == wanted
        return tuple(module(*inputs))

    return run
