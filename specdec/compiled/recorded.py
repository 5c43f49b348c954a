"""Functions of tensors recorded as CUDA graphs: all kernels of a step begin with one launch.

A GPU that decodes a token waits for Python most of the time (docs/performance/gpu.md). A recording replays the kernels
of one call, at the addresses that they had then: inputs are copied to where it reads them, outputs from where it writes
them, and what it writes in place (keys and values) must lie where it lay.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("specdec")
_PATIENCE = 1  # a call is recorded when it comes the second time: a recording costs as much as three calls
_MOST = 64  # recordings that are kept of one function
_ROUNDING = {2: 0.1, 4: 1e-3, 8: 1e-3}  # by bytes of a number; those from a wrong address are off by far more
_MOST_BYTES = 1 << 26  # of a call's small inputs: larger ones are not worth a copy, nor a place that is kept for them
_MOST_COUNTED = 4096  # kinds of calls that are remembered before they are recorded

Function = Callable[..., Sequence[Tensor]]  # of small tensors, and of a list of tensors that it writes in place
Outputs = tuple[Tensor, ...]
# Of a function's call with these small tensors and this memory: its outputs, and what makes it again. Holds the small
# tensors, and not the memory.
Capture = Callable[[Function, list[Tensor], list[Tensor]], tuple[Outputs, Callable[[], object]]]


class CudaCapture:
    """Records what is launched on a GPU.

    All recordings of one of these share memory for what they hold in between, so that no two of them may run at a time.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(
        self, function: Function, places: list[Tensor], memory: list[Tensor]
    ) -> tuple[Outputs, Callable[[], object]]:
        """Calls the function, which has been called like this before, without effect.

        Returns:
            The outputs of what has the effect, and that.

        Raises:
            RuntimeError: it waits for the GPU, or does something else that cannot be recorded.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        device = places[0].device
        graph, current, own = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device), torch.cuda.Stream(device)
        own.wait_stream(current)
        with torch.cuda.stream(own), _workspaces_of_its_own():
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                outputs = tuple(_call(function, places, memory))
            finally:
                graph.capture_end()
        current.wait_stream(own)
        return outputs, graph.replay


def _call(function: Function, small: Sequence[Tensor], memory: Sequence[Tensor]) -> Sequence[Tensor]:
    return function(*small, *([list(memory)] if memory else []))


@contextmanager
def _workspaces_of_its_own() -> Iterator[None]:
    """cuBLAS keeps a workspace for each stream, which whoever records frees: torch.compile's CUDA graphs do.

    A recording that used one made before would then write to memory that is another's. Those made while it records are
    in its own pool.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


class _Recording:
    """One call of a function, to be made again with other small inputs."""

    def __init__(self, function: Function, first: Sequence[Tensor], memory: Sequence[Tensor], capture: Capture) -> None:
        self._places = [tensor.clone() for tensor in first]
        self._held: list[Tensor | None] = [
            None for _ in first
        ]  # kept, so that no other tensor is taken for one of them
        self._outputs, self._replay = capture(function, self._places, list(memory))

    def __call__(self, first: Sequence[Tensor], fresh: Sequence[int]) -> Outputs:
        for i, (place, tensor) in enumerate(zip(self._places, first, strict=True)):
            if i in fresh:
                place.copy_(tensor)
            elif tensor is not self._held[i]:
                place.copy_(tensor)
                self._held[i] = tensor
        self._replay()
        return tuple(output.clone() for output in self._outputs)  # the next replay writes where this one did


class Recordings:
    """A function whose recurring calls are recorded. Safe for threads: one call is made at a time.

    Args:
        function: of small tensors, and of a list of tensors that it writes in place, if it takes any. Called twice with
            the same small tensors it must write the same.
        fresh: which of the small tensors may be written to between calls; the others say another thing only where they
            are other tensors.
        capture: makes a recording; another one than CUDA's for tests.
    """

    def __init__(self, function: Function, fresh: Sequence[int], capture: Capture | None = None) -> None:
        self._function, self._fresh = function, fresh
        self._capture = CudaCapture() if capture is None else capture
        self._lock = threading.Lock()
        self._met: Counter[object] = Counter()
        self._refused: set[object] = set()
        self.recorded: OrderedDict[object, _Recording] = OrderedDict()

    def __call__(self, first: Sequence[Tensor], memory: Sequence[Tensor] = ()) -> Sequence[Tensor]:
        shape = tuple((tensor.shape, tensor.dtype) for tensor in first)
        key = (shape, stream_of(first[0].device), tuple((tensor.data_ptr(), tensor.shape) for tensor in memory))
        with self._lock:
            recording = self.recorded.get(key)
            if recording is not None:
                self.recorded.move_to_end(key)
                return recording(first, self._fresh)
            # Copies, as in a recording: a compiler makes other kernels where two inputs are one tensor.
            places = [tensor.clone() for tensor in first]
            outputs = _call(self._function, places, memory)
            if shape not in self._refused and self._is_due(key) and sum(t.nbytes for t in first) <= _MOST_BYTES:
                self._record(key, shape, first, memory, outputs)
            return outputs

    def _is_due(self, key: object) -> bool:
        if len(self._met) > _MOST_COUNTED:
            self._met.clear()
        self._met[key] += 1
        return self._met[key] > _PATIENCE

    def _record(
        self, key: object, shape: object, first: Sequence[Tensor], memory: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> None:
        """Keeps a recording of the call that gave these outputs, if a replay gives them again."""
        try:
            recording = _Recording(self._function, first, memory, self._capture)
            again = recording(first, self._fresh)
        except RuntimeError as error:
            self._refuse(shape, f"{type(error).__name__}: {error}")
            return
        if not same(outputs, again):
            self._refuse(shape, "a replay gave other numbers")
            return
        self.recorded[key] = recording
        del self._met[key]
        if len(self.recorded) > _MOST:
            self.recorded.popitem(last=False)

    def _refuse(self, shape: object, why: str) -> None:
        logger.warning("a shape of a compiled step is launched kernel by kernel: %s", why)
        self._refused.add(shape)


def same(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    """Are these outputs of one call? But for rounding, which also tips choices between what nearly ties."""
    return all(a.shape == b.shape and (not a.is_floating_point() or _near(a, b)) for a, b in zip(one, two, strict=True))


def _near(a: Tensor, b: Tensor) -> bool:
    rounding = _ROUNDING[a.element_size()]
    a, b = (t.double().nan_to_num(0.0, 0.0, 0.0) for t in (a, b))
    return bool((a - b).norm() <= rounding * a.norm())


def stream_of(device: torch.device) -> int:
    """A recording belongs to the stream on which it is replayed: on another one its memory might be in use."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
