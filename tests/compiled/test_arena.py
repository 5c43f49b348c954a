"""The arena lends the same memory again, and never what somebody still looks at."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from fresh import own
from models import prompts
from stand_in import recorded, remade
from torch import Tensor

import specdec
from specdec.compiled import choose
from specdec.compiled.arena import Arena
from specdec.compiled.runner import CompiledRunner, Graph
from specdec.probe import probe
from specdec.stats import GraphUse
from specdec.target import ModelRunner

SHAPES = [(2, 3, 5), (2, 3, 7)]
CPU = torch.device("cpu")


def lent(arena: Arena, shapes: Any = SHAPES) -> list[Tensor]:
    return arena.lend(shapes, torch.float32, CPU)


def places(tensors: list[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def test_the_same_again_once_nobody_looks_and_all_zeros() -> None:
    arena = Arena()
    first = lent(arena)
    assert [tuple(t.shape) for t in first] == SHAPES and all(t.is_contiguous() for t in first)
    where = places(first)
    assert all(place % 64 == where[0] % 64 for place in where)
    for tensor in first:
        tensor.fill_(torch.nan)
    del first, tensor
    again = lent(arena)
    assert places(again) == where and all((t == 0).all() for t in again)


@pytest.mark.parametrize("look", [lambda t: t[1][1:, :, 2], lambda t: t[0].view(-1)])
def test_what_somebody_looks_at_is_not_lent(look: Any) -> None:
    arena = Arena()
    first = lent(arena)
    where, seen = places(first), look(first)
    del first
    assert not set(places(lent(arena))) & set(where)
    del seen
    assert places(lent(arena)) == where


def test_other_shapes_and_modes_have_memory_of_their_own() -> None:
    arena = Arena()
    where = places(lent(arena))
    assert not set(places(lent(arena, [(2, 3, 5)]))) & set(where)
    with torch.inference_mode():
        inside = lent(arena)
        inside[0].add_(1)
    assert places(inside) == where and not inside[0].is_inference()


def test_little_is_kept() -> None:
    def kept() -> list[int]:
        return [block.nbytes for blocks in arena._blocks.values() for block in blocks]

    arena = Arena(most_bytes=2000)
    for size in (100, 200, 300):
        lent(arena, [(size,)])
    assert kept() == [1280], "with either of the two before it would be too much"
    lent(arena, [(64,)])
    assert kept() == [1280, 256]
    lent(arena, [(1000,)])
    assert sum(kept()) == 0, "a large one is lent and not kept, and nothing beside it"


def test_what_is_idle_makes_room_when_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    arena, zeros = Arena(), torch.zeros
    lent(arena)

    def scarce(*arguments: Any, **how: Any) -> Tensor:
        if arena._blocks:
            raise torch.OutOfMemoryError("none left")
        return zeros(*arguments, **how)

    monkeypatch.setattr(torch, "zeros", scarce)
    assert lent(arena, [(5,)])[0].tolist() == [0.0] * 5


@pytest.fixture
def compiled() -> Any:
    model = own()
    runner = ModelRunner(model)
    probe(runner)
    graph = choose.by_shapes(runner, None, remade)
    assert isinstance(graph, Graph)
    return CompiledRunner(runner, graph, GraphUse())


def test_caches_that_follow_each_other_lie_where_the_last_one_lay(compiled: Any) -> None:
    seen = []
    for _ in range(3):
        cache = compiled.new_cache(2, 9)
        cache.reserve(600)
        seen.append(places(cache.buffers()))
        del cache
    assert seen[0] == seen[1] == seen[2]
    two = compiled.new_cache(2, 9), compiled.new_cache(2, 9)
    assert not set(places(two[0].buffers())) & set(places(two[1].buffers()))


def test_a_growing_cache_keeps_what_it_has(compiled: Any) -> None:
    cache = compiled.new_cache(1, 9)
    for buffer in cache.buffers():
        buffer.normal_()
    before = [buffer.clone() for buffer in cache.buffers()]
    cache.reserve(before[0].shape[2] + 1)
    for old, new in zip(before, cache.buffers(), strict=True):
        size = old.shape[2]
        assert new.shape[2] == 2 * size and torch.equal(new[:, :, :size], old) and not new[:, :, size:].any()


def test_more_rows_than_there_were(compiled: Any) -> None:
    cache = compiled.new_cache(2, 9)
    for buffer in cache.buffers():
        buffer.normal_()
    before = [buffer.clone() for buffer in cache.buffers()]
    cache.lengths.fill_(9)
    cache.reserve(9)
    cache.select_rows(torch.tensor([0, 1, 0]))
    cache.reserve(before[0].shape[2] + 1)
    for old, new in zip(before, cache.buffers(), strict=True):
        assert new.shape[0] == 3 and torch.equal(new[:, :, :9], old[[0, 1, 0], :, :9])


def test_a_call_finds_its_recordings_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, draft = own(), own(noise=0.02)
    runs = [recorded(each).recordings for each in (model, draft)]
    expected = model.generate(**prompts(2), max_new_tokens=30, do_sample=False)
    counts = []
    gc.disable()
    try:
        for _ in range(3):
            out = specdec.generate(
                model, **prompts(2), drafter=draft, num_draft_tokens=3, max_new_tokens=30, do_sample=False, compile=True
            )
            assert torch.equal(out, expected)
            counts.append([len(run.recorded) for run in runs])
    finally:
        gc.enable()
    assert min(counts[1]) > 1 and counts[1] == counts[2], counts


def test_a_returned_cache_is_its_owner_s() -> None:
    model = own()
    recorded(model)
    arguments: dict[str, Any] = {"do_sample": False, "compile": True, "return_dict_in_generate": True}
    whole = model.generate(**prompts(1), max_new_tokens=20, do_sample=False)
    first = specdec.generate(model, **prompts(1), max_new_tokens=10, **arguments)
    specdec.generate(model, **prompts(1, seed=4), max_new_tokens=10, **arguments)  # must not write there
    seen = torch.ones_like(first.sequences)  # the text has a token 0, which pads
    second = specdec.generate(
        model,
        first.sequences,
        attention_mask=seen,
        past_key_values=first.past_key_values,
        max_new_tokens=10,
        **arguments,
    )
    assert torch.equal(second.sequences, whole)
