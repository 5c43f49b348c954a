"""The target's cache when a call begins, and when it has ended: new, or what an earlier call left."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import Cache

from specdec.cache import LayerKind, RollbackCache
from specdec.cache.exchange import History, check_dynamic, columns, num_rows
from specdec.errors import InputError, OptionError, UnsupportedOptionError
from specdec.inputs import Prompt
from specdec.loop import Memory
from specdec.target import ModelRunner
from specdec.types import Proposal
from specdec.window import build_window


def keeps_memory(runner: ModelRunner) -> bool:
    """A finished call's cache can be returned, and taken up again: all of it can be cut to any length."""
    is_whole = all(kind == LayerKind() for kind in runner.kinds)
    return is_whole and not runner.layout.level and not runner.attends_to_encoder


def check_past(runner: ModelRunner) -> None:
    """Raises UnsupportedOptionError where no call can begin with a cache."""
    if not keeps_memory(runner):
        raise UnsupportedOptionError(
            f"past_key_values cannot be taken over for {type(runner.model).__name__}, whose memory is not full "
            "attention alone, or whose rows must be level: leave it out, and give the whole text as the prompt."
        )


@contextmanager
def opened_memory(
    runner: ModelRunner, prompt: Prompt, past: Cache | None, keep_rows: bool, most: int | None = None
) -> Iterator[tuple[Memory, Prompt]]:
    """The cache to decode with: a new one, or what `past` holds, as far as it agrees with the prompt.

    After an exception the user's cache holds what it held as far as it agreed, and can be used again; where that one
    came while rows changed places, the next call refuses it.

    Args:
        past: None, transformers' DynamicCache, or a RollbackCache that an earlier call returned.
        keep_rows: the cache is returned.
        most: tokens that a row may have in the end.

    Yields:
        The memory, and the prompt with the tokens that only the cache knew.

    Raises:
        InputError: another batch size than the prompt's.
        OptionError: the cache belongs to another model, or its call has not finished.
        UnsupportedOptionError: another kind of cache.
    """
    history = past.history if isinstance(past, RollbackCache) else None
    memory, prompt = _open(runner, prompt, past, keep_rows, most)
    seen = list(memory.seen)
    try:
        yield memory, prompt
    except BaseException:
        if keep_rows and not memory.cache.is_torn:
            memory.cache.restore(seen)
            memory.cache.history = None if history is None else history.cut(seen)
        raise


def _open(
    runner: ModelRunner, prompt: Prompt, past: Cache | None, keep_rows: bool, most: int | None
) -> tuple[Memory, Prompt]:
    if isinstance(past, RollbackCache):
        return _continue(runner, prompt, past, keep_rows)
    batch_size = len(prompt.ids)
    cache = runner.new_cache(batch_size, prompt.mask.shape[1] + 1, most)
    seen = [0] * batch_size
    if past is None:
        return Memory(cache, seen, keep_rows), prompt
    check_dynamic(past, runner.num_layers)
    past_columns = columns(past)
    if past_columns > prompt.mask.shape[1]:
        raise InputError(
            f"past_key_values covers {past_columns} tokens and the prompt has {prompt.mask.shape[1]}: pass the whole "
            "sequence as input_ids, or an attention_mask over all of it."
        )
    if past_columns:
        _check_batch(num_rows(past), batch_size)
        covered = prompt.mask[:, :past_columns]
        cache.load(past, covered)
        # The last token is read again where the cache has it: its logits are wanted.
        seen = torch.minimum(covered.sum(1), prompt.mask.sum(1) - 1).tolist()
        cache.restore(seen)
    return Memory(cache, seen, keep_rows), prompt


def close_memory(runner: ModelRunner, memory: Memory, prompt: Prompt, new: list[list[int]]) -> None:
    """Rows come back in their order, covering all columns of the output but the last; notes what the cache holds."""
    rows = [ids[keep].tolist() for ids, keep in zip(prompt.ids, prompt.mask, strict=True)]
    rows = [row + tokens for row, tokens in zip(rows, new, strict=True)]
    read = [len(row) - 1 for row in rows]  # a row's last token has never been read
    memory.cache.restore(read)
    longest = max(map(len, new))
    if any(len(tokens) < longest for tokens in new):
        _read_last(runner, memory.cache, prompt, rows, read, [len(tokens) < longest for tokens in new])
    added = torch.arange(longest - 1) < torch.tensor([len(tokens) for tokens in new])[:, None]
    mask = torch.cat([prompt.mask.cpu(), added], dim=1)
    memory.cache.history = History(rows if prompt.knows_ids else None, mask, weakref.ref(runner.model))


@torch.inference_mode()
def _read_last(
    runner: ModelRunner,
    cache: RollbackCache,
    prompt: Prompt,
    rows: list[list[int]],
    read: list[int],
    chosen: list[bool],
) -> None:
    """Feeds the last token of rows that ended early: it stands in a column that the cache covers."""
    nothing = Proposal.empty(len(rows), runner.device)
    ends = [n + c for n, c in zip(read, chosen, strict=True)]
    table = torch.tensor([row + [0] * (max(ends) - len(row) + 1) for row in rows], device=runner.device)
    lengths = torch.tensor(ends, device=runner.device)
    window = build_window(table, lengths, cache.lengths, nothing, runner.plan(read, ends, nothing))
    runner.forward(window, cache, keep=1, prompt=prompt.extra)
    cache.commit(lengths - cache.lengths)


def _continue(runner: ModelRunner, prompt: Prompt, cache: RollbackCache, keep_rows: bool) -> tuple[Memory, Prompt]:
    """Goes on with our own cache, from where it and the prompt part."""
    history = cache.history
    if history is None:
        raise OptionError(
            "past_key_values is a cache that no finished call has left: pass the one that generate() returned."
        )
    if history.model() is not runner.model:
        raise OptionError("past_key_values was left by another model; its keys and values mean nothing to this one.")
    _check_batch(len(cache.lengths), len(prompt.ids))
    held = cache.lengths.tolist()
    lengths = prompt.mask.sum(1).tolist()
    if history.tokens is not None:
        ids = prompt.ids
        if not prompt.knows_ids:
            ids = _with_known_tokens(prompt, history.tokens)
        rows = [row[keep].tolist() for row, keep in zip(ids, prompt.mask, strict=True)]
        agreed = [_common(row, tokens) for row, tokens in zip(rows, history.tokens, strict=True)]
        prompt = Prompt(prompt.shown, ids, prompt.mask, True, prompt.extra)
    else:
        agreed = held
    seen = [min(a, h, n - 1) for a, h, n in zip(agreed, held, lengths, strict=True)]
    cache.restore(seen)
    cache.history = None  # until this call has finished
    return Memory(cache, seen, keep_rows), prompt


def _with_known_tokens(prompt: Prompt, tokens: list[list[int]]) -> Tensor:
    """Fills in the tokens that stand in the cache and not in the prompt."""
    ids, missing = prompt.ids.clone(), prompt.mask.shape[1] - prompt.shown.shape[1]
    for row, known in enumerate(tokens):
        place = prompt.mask[row, :missing].nonzero()[:, 0][: len(known)]
        ids[row, place] = torch.tensor(known[: len(place)], device=ids.device)
    return ids


def _common(one: list[int], other: list[int]) -> int:
    """Length of the common prefix."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _check_batch(cached: int, batch_size: int) -> None:
    if cached != batch_size:
        raise InputError(
            f"past_key_values holds {cached} rows and the prompt has {batch_size} (num_return_sequences counts): first "
            "select or repeat its rows (select_rows() of a specdec cache, batch_select_indices() or "
            "batch_repeat_interleave() of a DynamicCache), or leave it out."
        )
