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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec.errors import is_out_of_memory

logger = logging.getLogger("specdec")
_PATIENCE = 1  # a call is recorded when it comes the second time: a recording costs as much as three calls
_MOST = 64  # recordings that are kept of one function
_ROUNDING = {2: 0.1, 4: 1e-3, 8: 1e-3}  # by bytes of a number; those from a wrong address are off by far more
_MOST_BYTES = 1 << 27  # of a call's small inputs: larger ones are not worth a copy, nor a place that is kept for them
_MOST_COUNTED = 4096  # kinds of calls that are remembered before they are recorded
_CAPTURING = threading.Lock()  # of all recordings: they free workspaces that others may be about to use
_failed: list[object] = []  # graphs whose capture failed: torch's allocator may go on asking them

Function = Callable[..., Sequence[Tensor]]  # of small tensors, and of a list of tensors that it writes in place
Outputs = tuple[Tensor, ...]
# Of a function's call with these small tensors and this memory: its outputs, and what makes it again. Holds the small
# tensors, and not the memory.
Capture = Callable[[Function, list[Tensor], list[Tensor]], tuple[Outputs, Callable[[], object]]]


@dataclass(slots=True)
class _Room:
    """Where the recordings of one stream are made, and what they hold in between: they are replayed one by one."""

    stream: torch.cuda.Stream
    pool: Any
    anchor: Any = None  # its first recording, kept: a pool that has none is gone


class CudaCapture:
    """Records what is launched on a GPU."""

    def __init__(self) -> None:
        self._rooms: dict[int, _Room] = {}  # by the stream on which is replayed

    def __call__(
        self, function: Function, places: list[Tensor], memory: list[Tensor]
    ) -> tuple[Outputs, Callable[[], object]]:
        """Calls the function, which has been called like this before, without effect.

        Returns:
            The outputs of what has the effect, and that.

        Raises:
            RuntimeError: it waits for the GPU, or does something else that cannot be recorded.
        """
        device = places[0].device
        current, graph = torch.cuda.current_stream(device), torch.cuda.CUDAGraph()
        room = self._rooms.get(current.cuda_stream)
        if room is None:
            room = _Room(torch.cuda.Stream(device), torch.cuda.graph_pool_handle())
            self._rooms[current.cuda_stream] = room
        with _CAPTURING:
            room.stream.wait_stream(current)
            try:
                with torch.cuda.stream(room.stream), _workspaces_of_its_own():
                    with torch.inference_mode(False):  # the generator's state is remembered from the first capture on
                        graph.capture_begin(pool=room.pool, capture_error_mode="thread_local")
                    try:
                        outputs = tuple(_call(function, places, memory))
                    finally:
                        graph.capture_end()
            except BaseException:
                _failed.append(graph)
                del self._rooms[current.cuda_stream]
                with suppress(RuntimeError):  # it says so where that has been done
                    torch._C._cuda_endAllocateToPool(current.device_index, room.pool)
                raise
            finally:
                current.wait_stream(room.stream)
        room.anchor = room.anchor or graph
        return outputs, graph.replay


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


def _call(function: Function, small: Sequence[Tensor], memory: Sequence[Tensor]) -> Sequence[Tensor]:
    return function(*small, *([list(memory)] if memory else []))


class _Recording:
    """One call of a function, to be made again with other small inputs."""

    def __init__(self, function: Function, first: Sequence[Tensor], memory: Sequence[Tensor], capture: Capture) -> None:
        self._places = [tensor.clone() for tensor in first]
        # What was copied last; kept, so that no other tensor is taken for one of them.
        self._held: list[Tensor | None] = [None for _ in first]
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

    def repeats(
        self, first: Sequence[Tensor], memory: Sequence[Tensor], fresh: Sequence[int], outputs: Sequence[Tensor]
    ) -> bool:
        """Does a replay give these outputs, and write what the last part of the memory holds, where it holds it?"""
        part = memory[-1] if memory else None
        right = None if part is None else part.clone()
        if not same(outputs, self(first, fresh)):
            return False
        if part is None or right is None:
            return True
        part.zero_()
        self._replay()
        written = part != 0
        is_right = bool(written.any()) and same([right[written]], [part[written]])
        part.copy_(right)
        return is_right


class Recordings:
    """A function whose recurring calls are recorded. For any thread: one call is made at a time.

    Args:
        function: of small tensors, and of a list of tensors that it writes in place, if it takes any. Called twice with
            the same small tensors it must write the same.
        fresh: which of the small tensors may be written to between calls; the others say another thing only where they
            are other tensors.
        capture: makes a recording; another one than CUDA's for tests.
        most: recordings that are kept.
    """

    def __init__(
        self, function: Function, fresh: Sequence[int], capture: Capture | None = None, most: int = _MOST
    ) -> None:
        self._function, self._fresh, self._most = function, fresh, most
        self._capture = CudaCapture() if capture is None else capture
        self._lock = threading.Lock()
        self._met: Counter[object] = Counter()
        self._is_off = False  # a capture has failed: it is not tried again, since that costs torch memory each time
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
            if self._is_off or shape in self._refused or sum(t.nbytes for t in first) > _MOST_BYTES:
                return outputs
            if self._is_due(key) and not self._record(key, shape, first, memory, outputs):
                _call(self._function, places, memory)  # what was written is not to be trusted
            return outputs

    def _is_due(self, key: object) -> bool:
        if len(self._met) > _MOST_COUNTED:
            self._met.clear()
        self._met[key] += 1
        return self._met[key] > _PATIENCE

    def _record(
        self, key: object, shape: object, first: Sequence[Tensor], memory: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> bool:
        """Keeps a recording of the call that gave these outputs, if a replay gives and writes the same."""
        try:
            recording = _Recording(self._function, first, memory, self._capture)
        except Exception as error:  # whatever the function does in a capture
            if not is_out_of_memory(error):
                self._is_off = True
                logger.warning("a compiled step is launched kernel by kernel: %s", error.__context__ or error)
            return False
        if not recording.repeats(first, memory, self._fresh, outputs):
            self._refused.add(shape)
            logger.warning("a shape of a compiled step is launched kernel by kernel: a replay gave other numbers")
            return False
        self.recorded[key] = recording
        del self._met[key]
        if len(self.recorded) > self._most:
            self.recorded.popitem(last=False)
        return True


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
