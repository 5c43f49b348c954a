"""Memory that is lent to one cache after another: a recording serves only a cache that lies where it was recorded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from specdec.compiled.recorded import stream_of

_MOST_BYTES = 1 << 30  # that are kept for the next cache, beside what is in use
_ALIGNED = 256  # bytes
_Key = tuple[object, ...]


class Arena:
    """Lends zeros; what nobody holds any longer is lent again. Safe for threads.

    Args:
        most_bytes: that are kept while nobody needs them.
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
            blocks = self._blocks.setdefault(key, [])
            self._blocks.move_to_end(key)
            block = next((b for b in blocks if _is_free(b)), None)
            if block is None:
                block = torch.zeros(sum(sizes), dtype=dtype, device=device)
                blocks.append(block)
                self._drop_idle(but=block)
            else:
                block.zero_()  # a masked slot still meets a zero weight, and 0 * NaN would be NaN
            parts = block.split(sizes)
            return [part[: prod(shape)].view(*shape) for part, shape in zip(parts, shapes, strict=True)]

    def _drop_idle(self, but: Tensor) -> None:
        """Forgets what has been free for longest, until no more is kept than may be."""
        idle = [(key, b) for key, blocks in self._blocks.items() for b in blocks if b is not but and _is_free(b)]
        kept = sum(block.nbytes for _, block in idle)
        for key, block in idle:
            if kept <= self._most_bytes:
                return
            kept -= block.nbytes
            self._blocks[key] = [b for b in self._blocks[key] if b is not block]


def _is_free(block: Tensor) -> bool:
    """No view of it is left."""
    return _holders(block) == _ALONE


def _holders(block: Tensor) -> int:
    count: int = torch._C._storage_Use_Count(block.untyped_storage()._cdata)
    return count


_ALONE = _holders(torch.zeros(1))
