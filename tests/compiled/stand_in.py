"""A package that is not compiled: the uncompiled step stands in for it, and a file with a number for its file."""

from __future__ import annotations

import ctypes
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from models import prompts
from torch import Tensor

import specdec
from specdec.compiled import Store, choose
from specdec.compiled.fingerprint import environment, survey
from specdec.compiled.graph import StepGraph
from specdec.compiled.runner import Graph
from specdec.compiled.shapes import Compiler
from specdec.compiled.store import describe
from specdec.probe import probe
from specdec.target import ModelRunner

Outputs = tuple[Tensor, Tensor, Tensor]
NEW = 8


@dataclass
class StandIn:
    """In place of the compiler: a package is a file with a number, and runs the uncompiled step."""

    builds: int = 0
    loads: int = 0
    runs: int = 0
    fails: Exception | None = None  # what building raises
    spoil: Callable[..., Any] = lambda *outputs: outputs  # what the graph gives instead
    steps: dict[str, StepGraph] = field(default_factory=dict)

    def build(self, runner: Any, shapes: Any, store: Store, key: str) -> tuple[Any, pathlib.Path]:
        self.builds += 1
        if self.fails is not None:
            raise self.fails
        file = store.temporary(key)
        file.write_text(str(self.builds))
        self.steps[file.read_text()] = StepGraph(runner)
        return describe(key, type(runner.model).__name__, file, 1.0, list(shapes)), file

    def load(self, file: pathlib.Path) -> Any:
        self.loads += 1
        step = self.steps[file.read_text()]

        def run(inputs: list[Tensor]) -> Outputs:
            self.runs += 1
            with torch.no_grad():
                return self.spoil(*step(*inputs[:6], inputs[6:]))

        return run


def decode(model: Any, compile: Any = True, batch_size: int = 1, num_new: int = NEW, **arguments: Any) -> Any:
    """A greedy call whose output is the model's own."""
    inputs = {**prompts(batch_size), "max_new_tokens": num_new}
    out = specdec.generate(model, **inputs, **arguments, compile=compile, return_dict_in_generate=True)
    assert torch.equal(out.sequences, model.generate(**inputs, do_sample=False))
    return out


def reason(model: Any, compile: Any = True, **arguments: Any) -> str:
    """How the call ran its target: "compiled", or why not."""
    words: str = decode(model, compile, **arguments).speculation.graphs.roles["target"]
    return words


def remade(function: Callable[..., Any], places: list[Tensor], memory: list[Tensor]) -> Any:
    """In place of a CUDA graph: what makes the recorded call again, and writes its outputs where the first one did.

    Like one it knows the memory by its addresses, and does not keep it.
    """
    wheres = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in memory]

    def call() -> Any:
        there = [_at(*where) for where in wheres]
        return function(*places, *([there] if there else []))

    outputs = tuple(output.clone() for output in call())

    def replay() -> None:
        for place, output in zip(outputs, call(), strict=True):
            place.copy_(output)

    return outputs, replay


def _at(address: int, shape: Any, stride: Any, dtype: torch.dtype) -> Tensor:
    """What lies there."""
    size = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    raw = (ctypes.c_byte * (size * dtype.itemsize)).from_address(address)
    return torch.frombuffer(raw, dtype=dtype).as_strided(shape, stride)


def recorded(model: Any, compiler: Compiler | None = None) -> Any:
    """The model decodes by shapes from now on, as on a GPU; returns what holds the recordings."""
    runner = ModelRunner(model)
    probe(runner)
    graph = choose.by_shapes(runner, compiler, remade)
    assert isinstance(graph, Graph), graph
    known = choose._known.setdefault(model, choose._Known())
    known.graphs[environment()] = (survey(model).stamp(), graph)
    return graph.run
