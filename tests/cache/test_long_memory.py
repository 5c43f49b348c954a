"""What a long text's memory takes: transformers' own and a little, never twice as much; bytes are counted, no clock."""

from __future__ import annotations

import weakref
from typing import Any
from unittest import mock

import pytest
import torch
from models import VOCAB_SIZE, tiny
from transformers import DynamicCache

import specdec
from specdec.cache import LayerKind, RollbackCache
from specdec.cache.layers import FullAttentionLayer

LAYERS, HEADS, DIM = 3, 2, 4
SLOT = 2 * LAYERS * HEADS * DIM * 4  # bytes of one token's keys and values in float32


def dynamic_bytes(cache: DynamicCache) -> int:
    buffers = [b for layer in cache.layers for b in (layer.keys, layer.values) if b is not None]
    return sum(b.numel() * b.element_size() for b in buffers)


def filled(slots: int, **settings: Any) -> RollbackCache:
    """A cache of so many slots in use, and buffers for them."""
    cache = RollbackCache([LayerKind()] * LAYERS, 1, torch.device("cpu"), slots, **settings)
    cache.allocate([(HEADS, DIM, DIM)] * LAYERS, torch.float32)
    cache.reserve(slots)
    return cache


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("slots", [1025, 2049, 4097, 8193, 33_000])
def test_a_long_text_takes_a_sixteenth_more_than_it_needs(slots: int, fine: bool) -> None:
    """And 512 slots, two steps of growth; doubling would take nearly twice as much just behind a power of two."""
    assert filled(slots, fine=fine).cache_bytes <= (slots + slots // 16 + 512) * SLOT


@pytest.mark.parametrize("fine", [False, True])
def test_nothing_is_made_beyond_the_end_of_the_text(fine: bool) -> None:
    cache = filled(4097, fine=fine, most=4160)
    assert cache.capacity == 4160
    cache.reserve(4160)
    assert cache.cache_bytes == 4160 * SLOT
    cache.reserve(4165)  # a wide tree may need more
    assert 4165 <= cache.capacity <= 4165 + 4165 // 16 + 512


def test_graphs_of_one_capacity_each_keep_powers_of_two() -> None:
    assert filled(4097, doubling=True, most=4160).capacity == 8192


def test_growing_takes_the_place_of_one_more_layer() -> None:
    """Layer by layer: when one grows, the smaller buffers of those before it are gone."""
    cache = filled(2048)
    cache.buffers()  # the list that a compiled step is handed
    old = [(weakref.ref(layer.keys), weakref.ref(layer.values)) for layer in cache.layers]
    alive: list[int] = []
    grow = FullAttentionLayer.grow

    def counted(layer: FullAttentionLayer, capacity: int) -> None:
        alive.append(sum(buffer() is not None for pair in old for buffer in pair))
        grow(layer, capacity)

    with mock.patch.object(FullAttentionLayer, "grow", counted):
        cache.reserve(4097)
    assert alive == [6, 4, 2]
    assert not any(buffer() is not None for pair in old for buffer in pair)


@pytest.mark.parametrize("num_draft_tokens", [0, 4])
def test_a_call_holds_what_transformers_holds_and_the_window(num_draft_tokens: int) -> None:
    """At the end of a call over a long prompt; its text has no room left that it could not have used."""
    target = tiny("llama", dtype=torch.float32, max_position_embeddings=4096)
    ids = torch.randint(2, VOCAB_SIZE, (1, 2080), generator=torch.Generator().manual_seed(0))
    new = 24
    drafter = specdec.NgramDrafter() if num_draft_tokens else None
    settings = {"num_draft_tokens": num_draft_tokens} if drafter else {}
    out = specdec.generate(
        target, input_ids=ids, drafter=drafter, max_new_tokens=new, return_dict_in_generate=True, **settings
    )
    theirs = target.generate(input_ids=ids, max_new_tokens=new, do_sample=False, return_dict_in_generate=True)
    assert torch.equal(out.sequences, theirs.sequences)
    slot = dynamic_bytes(theirs.past_key_values) // (ids.shape[1] + new - 1)
    assert out.past_key_values.cache_bytes <= dynamic_bytes(theirs.past_key_values) + 64 * slot
