"""What compiled steps ask of the cache: buffers before any forward, room in small steps, lengths from the host."""

from __future__ import annotations

import torch

from specdec.cache import LayerKind, RollbackCache

SHAPES = [(2, 4, 6), (1, 8, 8)]  # heads, width of a key and of a value


def made(batch_size: int = 3) -> RollbackCache:
    cache = RollbackCache([LayerKind()] * len(SHAPES), batch_size, torch.device("cpu"), 10, fine=True)
    cache.allocate(SHAPES, torch.float64)
    return cache


def test_buffers_are_there_before_a_forward() -> None:
    shapes = [tuple(b.shape) for b in made().buffers()]
    assert shapes == [(3, 2, 256, 4), (3, 2, 256, 6), (3, 1, 256, 8), (3, 1, 256, 8)]


def test_room_grows_in_steps_and_keeps_what_was_written() -> None:
    cache = made()
    before = cache.buffers()
    for buffer in before:
        buffer.copy_(torch.randn(buffer.shape, dtype=buffer.dtype))
    cache.reserve(256)
    assert all(a is b for a, b in zip(cache.buffers(), before, strict=True)), "the same list, while nothing moves"
    cache.reserve(257)
    assert cache.capacity == 512
    for old, new in zip(before, cache.buffers(), strict=True):
        assert torch.equal(new[:, :, :256], old)
        assert not new[:, :, 256:].any()
    cache.reserve(5000)
    assert cache.capacity == 5376, "a sixteenth more than asked for: growing costs little on the way to long texts"


def test_lengths_from_the_host_and_rows_that_leave() -> None:
    cache = made()
    for row in range(3):
        for buffer in cache.buffers():
            buffer[row] = row
    cache.reserve(9)
    cache.cut([4, 9, 7])
    assert cache.lengths.tolist() == [4, 9, 7]
    cache.select_rows(torch.tensor([2, 0]))
    assert cache.lengths.tolist() == [7, 4]
    for buffer in cache.buffers():
        assert buffer.shape[0] == 2
        assert buffer[0, :, :9].unique().tolist() == [2]
        assert buffer[1, :, :9].unique().tolist() == [0]
