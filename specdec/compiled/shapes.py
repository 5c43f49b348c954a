"""Graphs where no packages are: torch compiles each shape of the step that recurs, on a GPU into a CUDA graph.

The same step as in a package, at the same addresses: the cache's buffers stay where they are, capacities are powers of
two, and windows are as wide as the number of drafted tokens, so that there are few shapes. Each is traced to a program
of its own, since Dynamo gives up on a function that it has compiled eight times.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from specdec.compiled.build import undisturbed
from specdec.compiled.graph import StepGraph
from specdec.target import ModelRunner

logger = logging.getLogger("specdec")
WIDEST = 17  # windows of more tokens than that (prompts) are run by the model itself
_PATIENCE = 3  # a shape is compiled when it comes the fourth time
_MOST_SHAPES = 64
Compiler = Callable[[nn.Module], Callable[..., Sequence[Tensor]]]


def cuda_graph(program: nn.Module) -> Callable[..., Sequence[Tensor]]:
    """inductor's kernels, recorded once and replayed with one launch."""
    compiled: Any = torch.compile(program, fullgraph=True, dynamic=False, mode="reduce-overhead")
    return compiled


class ShapeGraphs:
    """A `Run` whose graphs are made as shapes come.

    Args:
        runner: the model, uncompiled.
        compiler: turns a program of fixed shapes into something faster.
    """

    def __init__(self, runner: ModelRunner, compiler: Compiler = cuda_graph) -> None:
        self._step = StepGraph(runner)
        self._compiler = compiler
        self._met: Counter[object] = Counter()
        self.graphs: dict[object, Callable[..., Sequence[Tensor]]] = {}

    def __call__(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        """Flat inputs of `StepGraph.forward` -> its outputs."""
        first, memory = inputs[:6], inputs[6:]
        shape = (tuple(inputs[0].shape), len(inputs[5]), tuple(memory[0].shape))
        graph = self.graphs.get(shape)
        if graph is None:
            self._met[shape] += 1
            if self._met[shape] <= _PATIENCE or len(self.graphs) >= _MOST_SHAPES:
                outputs: Sequence[Tensor] = self._step(*first, memory)
                return outputs
            return self._first_run(shape, inputs)
        # A replay writes its outputs where the last one did, and the loop still holds those.
        torch.compiler.cudagraph_mark_step_begin()
        return tuple(output.clone() for output in graph(*first, memory))

    def _first_run(self, shape: object, inputs: list[Tensor]) -> Sequence[Tensor]:
        """Compiles a shape; one that cannot be stays as it is. What was written before an error is written again."""
        first, memory = inputs[:6], inputs[6:]
        try:
            graph = self._compiler(self._program(inputs))
            outputs = tuple(output.clone() for output in graph(*first, memory))
        except Exception as error:  # whatever torch's compiler raises
            logger.warning("a shape of a compiled step runs uncompiled: %s: %s", type(error).__name__, error)
            self.graphs[shape] = self._step
            return self._step(*first, memory)
        self.graphs[shape] = graph
        return outputs

    def _program(self, inputs: list[Tensor]) -> nn.Module:
        """The step at these shapes."""
        with torch.inference_mode(False), undisturbed():
            like = [torch.zeros_like(i) for i in inputs]
            program = torch.export.export(self._step, (*like[:6], like[6:]), strict=False)
            return program.module(check_guards=False)
