"""Memory that is lent to one cache after another: a recording serves only a cache that lies where it was recorded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from specdec.compiled.recorded import stream_of
from specdec.errors import is_out_of_memory

_MOST_BYTES = 1 << 30  # that are kept while nobody needs them
_ALIGNED = 256  # bytes
_Key = tuple[object, ...]


class Arena:
    """Lends zeros; what nobody holds any longer is lent again. For any thread.

    Args:
        most_bytes: that are kept; a larger request is lent once, and what is idle is forgotten as others are lent.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._blocks: OrderedDict[_Key, list[Tensor]] = OrderedDict()  # the last used last
        self._lock = threading.Lock()

    def lend(self, shapes: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Zeros of these shapes, at the addresses that a request like this one had before, if they are free."""
        sizes = [-(-prod(shape) * dtype.itemsize // _ALIGNED) * _ALIGNED // dtype.itemsize for shape in shapes]
        # Work on another stream may not be over when its tensors are gone.
        key = (tuple(map(tuple, shapes)), dtype, device, stream_of(device))
        with self._lock, torch.inference_mode(False), torch.no_grad():
            block = next((b for b in self._blocks.get(key, []) if _is_free(b)), None)
            if block is None:
                block = self._new(sum(sizes), dtype, device)
                if block.nbytes <= self._most_bytes:
                    self._blocks.setdefault(key, []).append(block)
            else:
                block.zero_()  # a masked slot still meets a zero weight, and 0 * NaN would be NaN
            if key in self._blocks:
                self._blocks.move_to_end(key)
            parts = block.split(sizes)
            return [part[: prod(shape)].view(*shape) for part, shape in zip(parts, shapes, strict=True)]

    def _new(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        self._drop_idle(self._most_bytes - size * dtype.itemsize)
        try:
            return torch.zeros(size, dtype=dtype, device=device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._drop_idle(0)
            return torch.zeros(size, dtype=dtype, device=device)

    def _drop_idle(self, most: int) -> None:
        """Forgets what has been free for longest, until no more is kept than that."""
        idle = [(key, block) for key, blocks in self._blocks.items() for block in blocks if _is_free(block)]
        kept = sum(block.nbytes for _, block in idle)
        for key, block in idle:
            if kept <= most:
                return
            kept -= block.nbytes
            self._blocks[key] = [b for b in self._blocks[key] if b is not block]
            if not self._blocks[key]:
                del self._blocks[key]


def _is_free(block: Tensor) -> bool:
    """No view of it is left."""
    return _holders(block) == _ALONE


def _holders(block: Tensor) -> int:
    count: int = torch._C._storage_Use_Count(block.untyped_storage()._cdata)
    return count


_ALONE = _holders(torch.zeros(1))
