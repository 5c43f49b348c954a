"""Rows that end stay in a cache that is returned; to and from transformers' cache it is the same memory."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import VOCAB_SIZE, prompts, tiny
from torch import Tensor
from transformers import DynamicCache

import specdec
from specdec.target import ModelRunner
from specdec.types import Proposal
from specdec.window import build_window

TARGET, DRAFT = tiny("llama"), tiny("llama", noise=0.02)
BATCH = 4


def feed(runner: ModelRunner, cache: specdec.cache.RollbackCache, rows: list[list[int]], seen: list[int]) -> Tensor:
    """Feeds what the cache lacks of each row; logits [B, V] after the last token."""
    nothing = Proposal.empty(len(rows), torch.device("cpu"))
    lengths = [len(r) for r in rows]
    shape = runner.plan(seen, lengths, nothing)
    table = torch.tensor([r + [0] * (max(lengths) - len(r)) for r in rows])
    window = build_window(table, torch.tensor(lengths), cache.lengths, nothing, shape)
    logits = runner.forward(window, cache, keep=shape.width).logits
    cache.commit(torch.tensor(lengths) - torch.tensor(seen))
    return logits[torch.arange(len(rows)), torch.tensor(lengths) - torch.tensor(seen) - 1]


def fresh(rows: list[list[int]]) -> Tensor:
    return torch.stack([TARGET(torch.tensor([r])).logits[0, -1] for r in rows])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
@torch.inference_mode()
def test_rows_set_aside_come_back_as_they_were(data: st.DataObject) -> None:
    """Any order of leaving, growth in between, any cut at the end: the next logits are those of a fresh forward."""
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

    def draw(num: int) -> list[int]:
        return torch.randint(0, VOCAB_SIZE, (num,), generator=random).tolist()

    runner = ModelRunner(TARGET)
    cache = runner.new_cache(BATCH, 1)
    rows = [draw(3 + b) for b in range(BATCH)]
    active = list(range(BATCH))
    feed(runner, cache, rows, [0] * BATCH)
    while active:
        before = [len(rows[r]) for r in active]
        for r in active:
            rows[r] += draw(data.draw(st.integers(1, 30)))
        logits = feed(runner, cache, [rows[r] for r in active], before)
        torch.testing.assert_close(logits, fresh([rows[r] for r in active]), rtol=0, atol=1e-6)
        leaving = sorted(data.draw(st.sets(st.integers(0, len(active) - 1), min_size=1)))
        active = [active[i] for i in cache.set_aside(leaving)]
    kept = [data.draw(st.integers(1, len(r))) for r in rows]
    cache.restore(kept)
    assert cache.lengths.tolist() == kept
    longer = [r[:k] + draw(2) for r, k in zip(rows, kept, strict=True)]
    torch.testing.assert_close(feed(runner, cache, longer, kept), fresh(longer), rtol=0, atol=1e-6)


def early_eos() -> int:
    """A token that ends some of the three rows early and not others."""
    out = TARGET.generate(**prompts(3), max_new_tokens=14)[:, 11:]
    counts = {t: (out == t).any(1).sum() for t in out.unique().tolist()}
    return next(t for t, n in counts.items() if 0 < n < 3 and t not in out[:, :3])


@pytest.mark.parametrize("ends_early", [False, True])
def test_both_sides_continue_a_returned_cache(ends_early: bool) -> None:
    """A second turn from the cache equals one without it; ours reads the new tokens only."""
    inputs = prompts(3)
    stop = {"eos_token_id": early_eos()} if ends_early else {}
    first = specdec.generate(
        TARGET, **inputs, **stop, drafter=DRAFT, num_draft_tokens=4, max_new_tokens=14, return_dict_in_generate=True
    )
    new = first.sequences[:, 11:]
    valid = torch.tensor([[i < len(r) for i in range(new.shape[1])] for r in first.speculation.trace.tokens])
    assert bool((~valid).any()) == ends_early
    turn = torch.randint(2, VOCAB_SIZE, (3, 5), generator=torch.Generator().manual_seed(9))
    ids = torch.cat([first.sequences, turn], 1)
    mask = torch.cat([inputs["attention_mask"], valid.long(), torch.ones_like(turn)], 1)
    second = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 12}
    expected = TARGET.generate(**second)
    exported = first.past_key_values.to_dynamic_cache()
    again = TARGET.generate(**second, past_key_values=copy.deepcopy(exported))
    assert torch.equal(again, expected)
    # The usual next turn of transformers: the new tokens only, and a mask over all.
    alone = {**second, "input_ids": ids[:, 13 + 11 :]}
    again = TARGET.generate(**alone, past_key_values=copy.deepcopy(exported))
    assert torch.equal(again[:, 6:], expected[:, 30:])
    unread = 3 * 5 + int(valid[:, -1].sum())  # the turn, and the last token of rows that did not end early
    for memory in (copy.deepcopy(exported), first.past_key_values):
        ours = specdec.generate(TARGET, **second, past_key_values=memory, drafter=DRAFT, return_dict_in_generate=True)
        assert torch.equal(ours.sequences, expected)
        assert ours.speculation.prompt_tokens == unread
    ours = specdec.generate(TARGET, **alone, past_key_values=exported, drafter=DRAFT)
    assert torch.equal(ours, again)


def test_a_dynamic_cache_ends_where_transformers_ends() -> None:
    """Rows that ended early included: the same columns, and the same memory wherever a token stands."""
    inputs, stop = prompts(3), early_eos()
    theirs, ours = DynamicCache(), DynamicCache()
    sequences = TARGET.generate(**inputs, past_key_values=theirs, max_new_tokens=14, eos_token_id=stop)
    specdec.generate(TARGET, **inputs, past_key_values=ours, drafter=DRAFT, max_new_tokens=14, eos_token_id=stop)
    new = sequences[:, 11:]
    valid = torch.cat([torch.ones(3, 1, dtype=torch.bool), (new == stop).cumsum(1)[:, :-1] == 0], 1)
    mask = torch.cat([inputs["attention_mask"].bool(), valid], 1)[:, :-1]
    assert ours.get_seq_length() == theirs.get_seq_length() == mask.shape[1]
    for one, two in zip(ours.layers, theirs.layers, strict=True):
        for a, b in ((one.keys, two.keys), (one.values, two.values)):
            torch.testing.assert_close(a.transpose(1, 2)[mask], b.transpose(1, 2)[mask], rtol=0, atol=1e-6)


def test_only_what_agrees_is_taken() -> None:
    """An edited conversation reuses the common beginning: no stale memory, whatever the user changed."""
    ids = prompts(1)["input_ids"]
    first = specdec.generate(TARGET, ids, drafter=DRAFT, max_new_tokens=10, return_dict_in_generate=True)
    for keep in (15, 11, 4, 0):
        changed = torch.cat([first.sequences[:, :keep], (first.sequences[:, keep:] + 1) % VOCAB_SIZE], 1)
        memory = copy.deepcopy(first.past_key_values)
        out = specdec.generate(
            TARGET, changed, drafter=DRAFT, max_new_tokens=10, past_key_values=memory, return_dict_in_generate=True
        )
        assert torch.equal(out.sequences, TARGET.generate(changed, max_new_tokens=10))
        assert out.speculation.prompt_tokens == changed.shape[1] - keep


def test_a_dynamic_cache_of_the_users_is_updated_in_place() -> None:
    """The recipe of transformers' documentation: one cache object through all turns of a chat."""
    inputs = prompts(1)
    theirs, ours = DynamicCache(config=TARGET.config), DynamicCache(config=TARGET.config)
    ids = other = inputs["input_ids"]
    for _ in range(3):
        ids = TARGET.generate(ids, past_key_values=theirs, max_new_tokens=8)
        other = specdec.generate(TARGET, other, past_key_values=ours, drafter=DRAFT, max_new_tokens=8)
        assert torch.equal(ids, other)
        assert ours.get_seq_length() == theirs.get_seq_length()
        for one, two in zip(ours.layers, theirs.layers, strict=True):
            torch.testing.assert_close(one.keys, two.keys, rtol=0, atol=1e-6)
            torch.testing.assert_close(one.values, two.values, rtol=0, atol=1e-6)


def test_only_the_new_tokens_beside_a_cache() -> None:
    """transformers also takes the new tokens alone, with a mask over all of them."""
    inputs = prompts(3)
    first = specdec.generate(TARGET, **inputs, drafter=DRAFT, max_new_tokens=8, return_dict_in_generate=True)
    new = torch.cat([first.sequences[:, -1:], torch.full((3, 4), 7)], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 12, dtype=torch.int64)], 1)
    exported = first.past_key_values.to_dynamic_cache()
    expected = TARGET.generate(new, attention_mask=mask, past_key_values=copy.deepcopy(exported), max_new_tokens=8)
    for memory in (exported, first.past_key_values):
        out = specdec.generate(
            TARGET, new, attention_mask=mask, past_key_values=memory, drafter=DRAFT, max_new_tokens=8
        )
        assert torch.equal(out, expected)


def test_a_failed_call_leaves_a_cache_usable() -> None:
    inputs = prompts(3)
    first = specdec.generate(TARGET, **inputs, drafter=DRAFT, max_new_tokens=8, return_dict_in_generate=True)
    second = {
        "input_ids": first.sequences,
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones(3, 8, dtype=torch.int64)], 1),
        "max_new_tokens": 12,
        "eos_token_id": early_eos(),
    }
    calls = 0

    def fails(_: specdec.Committed) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise RuntimeError("boom")

    arguments = {**second, "past_key_values": first.past_key_values, "drafter": DRAFT}
    with pytest.raises(RuntimeError, match="boom"):
        specdec.generate(TARGET, **arguments, on_commit=fails)
    expected = TARGET.generate(**second)
    exported = first.past_key_values.to_dynamic_cache()
    assert torch.equal(TARGET.generate(**second, past_key_values=exported), expected)
    out = specdec.generate(TARGET, **arguments, return_dict_in_generate=True)
    assert torch.equal(out.sequences, expected)
    assert out.speculation.prompt_tokens == 3


def test_an_error_takes_nothing_from_a_cache_that_agreed() -> None:
    """What the failed call had only read again is still there, column by column."""
    first = specdec.generate(TARGET, **prompts(3), drafter=DRAFT, max_new_tokens=8, return_dict_in_generate=True)
    memory, mask = first.past_key_values, prompts(3)["attention_mask"]
    covered = memory.get_seq_length()

    def fails(_: specdec.Committed) -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        specdec.generate(
            TARGET, first.sequences, attention_mask=torch.cat([mask, torch.ones(3, 8, dtype=torch.int64)], 1),
            past_key_values=memory, drafter=DRAFT, max_new_tokens=6, on_commit=fails,
        )  # fmt: skip
    assert memory.get_seq_length() == covered == first.sequences.shape[1] - 1


def test_an_error_at_the_very_end_leaves_a_cache_usable() -> None:
    """The statistics' receiver fails after everything else is done."""
    first = specdec.generate(TARGET, **prompts(3), drafter=DRAFT, max_new_tokens=8, return_dict_in_generate=True)
    arguments = {
        "input_ids": first.sequences,
        "attention_mask": torch.cat([prompts(3)["attention_mask"], torch.ones(3, 8, dtype=torch.int64)], 1),
        "max_new_tokens": 6,
    }

    def fails(_: specdec.SpeculationStats) -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        specdec.generate(TARGET, **arguments, past_key_values=first.past_key_values, on_finish=fails)
    out = specdec.generate(TARGET, **arguments, past_key_values=first.past_key_values)
    assert torch.equal(out, TARGET.generate(**arguments))


def test_rows_of_a_returned_cache_can_be_selected() -> None:
    """A conversation leaves the batch: the others go on, also in transformers."""
    inputs = prompts(3)
    first = specdec.generate(
        TARGET, **inputs, drafter=DRAFT, max_new_tokens=14, eos_token_id=early_eos(), return_dict_in_generate=True
    )
    rows = [2, 0]
    memory = copy.deepcopy(first.past_key_values)
    memory.select_rows(torch.tensor(rows))
    ended = [len(t) for t in first.speculation.trace.tokens]
    mask = torch.cat([inputs["attention_mask"], (torch.arange(14) < torch.tensor(ended)[:, None]).long()], 1)[rows]
    turn = torch.full((2, 3), 9)
    second = {
        "input_ids": torch.cat([first.sequences[rows], turn], 1),
        "attention_mask": torch.cat([mask, torch.ones_like(turn)], 1),
        "max_new_tokens": 8,
    }
    expected = TARGET.generate(**second)
    assert torch.equal(TARGET.generate(**second, past_key_values=memory.to_dynamic_cache()), expected)
    assert torch.equal(specdec.generate(TARGET, **second, past_key_values=memory, drafter=DRAFT), expected)


def test_memory_is_freed_with_the_cache() -> None:
    """No cycle keeps keys and values until the garbage collector comes."""
    gc.disable()
    try:
        out = specdec.generate(TARGET, **prompts(2), drafter=DRAFT, max_new_tokens=4, return_dict_in_generate=True)
        keys = weakref.ref(out.past_key_values.layers[0].keys)
        del out
        assert keys() is None
    finally:
        gc.enable()


def test_misuse_is_named() -> None:
    """Another model, another batch, transformers itself: an error, never silent nonsense."""
    first = specdec.generate(TARGET, **prompts(3), drafter=DRAFT, max_new_tokens=4, return_dict_in_generate=True)
    memory = first.past_key_values
    with pytest.raises(specdec.OptionError, match="another model"):
        specdec.generate(DRAFT, first.sequences, past_key_values=memory, max_new_tokens=4)
    with pytest.raises(specdec.InputError, match="3 rows"):
        specdec.generate(TARGET, first.sequences[:1], past_key_values=memory, max_new_tokens=4)
    with pytest.raises(TypeError, match="to_dynamic_cache"):
        TARGET.generate(first.sequences, past_key_values=memory, max_new_tokens=4)
    longer = memory.to_dynamic_cache()
    with pytest.raises(specdec.InputError, match="covers 14 tokens and the prompt has 4"):
        specdec.generate(TARGET, torch.full((3, 4), 7), past_key_values=longer, max_new_tokens=4)
    for method in ("crop", "reset", "reorder_cache", "batch_repeat_interleave", "batch_select_indices"):
        with pytest.raises(TypeError, match="to_dynamic_cache"):
            getattr(memory, method)(torch.tensor([0]))
    with pytest.raises(specdec.OptionError, match="no finished call"):
        ModelRunner(TARGET).new_cache(1, 8).to_dynamic_cache()
