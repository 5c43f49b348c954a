"""Steps on a GPU: recorded as CUDA graphs, one for each shape that recurs, with their own kernels or better ones.

Nothing is kept on disk: a recording takes some 30 milliseconds. Better kernels are inductor's, which takes half a
minute for windows of one token and as much again for wider ones; its own cache makes that less in the next process.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from specdec.compiled.build import building_kernels
from specdec.compiled.graph import StepGraph
from specdec.compiled.recorded import Capture, Function, Recordings, same
from specdec.target import ModelRunner

logger = logging.getLogger("specdec")
WIDEST = 17  # windows of more tokens than that (prompts) are run by the model itself
_FREE = ((0, 1), (0, 1), (0, 1, 2), (0,), (0,), (0,))  # sizes that change, of the small inputs of `StepGraph.forward`
_FREE_MEMORY = (0, 2)
_FRESH = (0, 3, 4)  # tokens, starts and counts; what chains of one shape have in common is never written to
_MAKING = threading.Lock()  # torch's settings, which are changed meanwhile, are the process'
Compiler = Callable[[nn.Module], Function]


def inductor(program: nn.Module) -> Function:
    """torch.compile, for a program that is to be one graph."""
    compiled: Function = torch.compile(program, fullgraph=True)
    return compiled


class ShapeGraphs:
    """A `Run` that is recorded as shapes come.

    Args:
        runner: the model, uncompiled.
        compiler: makes the step's kernels; None leaves them as they are.
        capture: see `Recordings`.

    Attributes:
        step: what is recorded.
    """

    def __init__(self, runner: ModelRunner, compiler: Compiler | None = None, capture: Capture | None = None) -> None:
        self.step: Function = StepGraph(runner)
        if compiler is not None:
            self.step = Kernels(StepGraph(runner), compiler, [*_FREE, _FREE_MEMORY])
        self.recordings = Recordings(self.step, _FRESH, capture)

    def __call__(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        """Flat inputs of `StepGraph.forward` -> its outputs."""
        return self.recordings(inputs[:6], inputs[6:])


class Kernels:
    """A program with kernels made for it, where they can be made and give what it gives.

    Sizes are free but for those of 1, of which compilers make constants: one row or several, one token or several are
    kernels of their own.

    Args:
        program: what it is.
        compiler: makes them.
        free: by argument, which sizes change; the last ones also for what lists hold.
    """

    def __init__(self, program: nn.Module, compiler: Compiler, free: Sequence[tuple[int, ...]]) -> None:
        self._program, self._free = program, free
        self._compiled: Function | None = compiler(program)
        self._made: set[object] = set()

    def __call__(self, *arguments: Any) -> Sequence[Tensor]:
        kind = self._mark(arguments)
        if self._compiled is not None and kind in self._made:
            try:
                return self._compiled(*arguments)
            except Exception as error:  # a kind that this has not told from the others
                self._leave(f"{type(error).__name__}: {error}")
        outputs: Sequence[Tensor] = self._program(*arguments)
        if self._compiled is not None and not self._make(kind, arguments, outputs):
            outputs = self._program(*arguments)  # what was written is not to be trusted
        return outputs

    def _make(self, kind: object, arguments: Sequence[Any], outputs: Sequence[Tensor]) -> bool:
        """Calls what is compiled for the first time with such arguments; does without it if something is wrong."""
        assert self._compiled is not None
        name, device = type(getattr(self._program, "model", self._program)).__name__, arguments[0].device
        try:
            with _MAKING, building_kernels(name, device), _free_sizes():
                is_right = same(outputs, self._compiled(*arguments))
        except Exception as error:  # whatever torch's compiler raises
            return self._leave(f"{type(error).__name__}: {error}")
        if not is_right:
            return self._leave("those made for it gave other numbers")
        self._made.add(kind)
        return True

    def _leave(self, problem: str) -> bool:
        logger.warning("a step keeps the kernels that it has: %s", problem)
        self._compiled = None
        return False

    def _mark(self, arguments: Sequence[Any]) -> object:
        """Says which sizes are free; returns which of them are 1."""
        ones: list[bool] = []
        for i, argument in enumerate(arguments):
            for tensor in argument if isinstance(argument, list) else [argument]:
                for dim in self._free[min(i, len(self._free) - 1)]:
                    ones.append(tensor.shape[dim] == 1)
                    if not ones[-1]:
                        torch._dynamo.maybe_mark_dynamic(tensor, dim)
        return tuple(ones)


@contextmanager
def _free_sizes() -> Iterator[None]:
    """Settings of torch's compiler: sizes that are equal by chance are two, and there is no end to recompilation.

    It counts what it compiles of a line of code, and gives up after eight: a process has several models.
    """
    most = {"recompile_limit": 1 << 16, "accumulated_recompile_limit": 1 << 16}
    with torch._dynamo.config.patch(most), torch.fx.experimental._config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
        yield
