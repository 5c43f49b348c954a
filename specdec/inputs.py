"""The prepared call -> what the loop starts from: tokens, padding, memory of earlier calls, other model inputs.

Whatever way the user gave the prompt (ids, embeddings, only what follows a cache), here it becomes one table of
token ids per row, so that drafters and windows know one form only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.generation import utils as hf

from specdec.cache import RollbackCache
from specdec.cache.exchange import History, check_dynamic, columns, num_rows
from specdec.checks import check_ids, check_padding
from specdec.errors import InputError, OptionError, UnsupportedOptionError
from specdec.loop import Memory
from specdec.prompt import PromptInputs, left_aligned
from specdec.target import ModelRunner

# Prepared by transformers for its own loop; ours makes its own of them.
_OWN = frozenset(
    "attention_mask position_ids past_key_values inputs_embeds use_cache logits_to_keep output_hidden_states "
    "output_attentions cache_position input_ids cache_params".split()
)
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
# What a multimodal prompt brings to its first forward.
_ONCE = frozenset(getattr(hf, "MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL", ())) | frozenset(
    "pixel_values pixel_values_videos pixel_mask pixel_attention_mask image_sizes input_features input_features_mask "
    "input_values image_grid_thw video_grid_thw second_per_grid_ts audio_feature_lengths feature_attention_mask".split()
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the loop starts from."""

    shown: Tensor  # [B, P] int64, what processors and the returned sequences begin with
    ids: Tensor  # [B, T] int64, what the model reads, padding included
    mask: Tensor  # [B, T] bool, False on padding
    knows_ids: bool  # False where ids stand for embeddings or for a cache of unknown tokens
    extra: PromptInputs | None


def read_prompt(
    runner: ModelRunner,
    input_ids: Tensor,
    model_kwargs: dict[str, Any],
    config: GenerationConfig,
    past_columns: int,
    num_new_tokens: int,
) -> Prompt:
    """Lays out the prompt of a prepared call.

    Args:
        input_ids: [B, P] as transformers prepared it; P = 0 where only embeddings were given.
        model_kwargs: the rest of what transformers prepared.
        past_columns: tokens a row, padding included, that `past_key_values` covers.
        num_new_tokens: at most this many will follow.

    Raises:
        InputError: no token, a token outside the vocabulary, right padding, more tokens than the context holds.
        UnsupportedOptionError: a model input that cannot be continued.
    """
    device = runner.device
    embeds: Tensor | None = model_kwargs.get("inputs_embeds")
    given: Tensor | None = model_kwargs.get("attention_mask")
    if embeds is not None:
        width = embeds.shape[1]
    elif given is not None:
        width = given.shape[1]
    else:  # transformers drops a mask without padding, and leaves its length behind
        width = max(input_ids.shape[1], getattr(config, "_mask_length", 0))
    batch_size = input_ids.shape[0]
    mask = torch.ones(batch_size, width, dtype=torch.bool, device=device) if given is None else given.to(device).bool()
    shown = input_ids.to(device)
    if shown.shape[1]:
        check_ids(shown, runner.vocab_size)
    if embeds is not None:
        knows = shown.shape[1] == width
        ids = shown if knows else nearest_tokens(runner.model, embeds.to(device))
    else:
        missing = width - shown.shape[1]
        if missing > past_columns:
            raise InputError(
                f"attention_mask covers {width} tokens, input_ids has {shown.shape[1]} and past_key_values "
                f"{past_columns}: pass the whole sequence as input_ids."
            )
        knows = missing == 0
        ids = shown if knows else torch.nn.functional.pad(shown, (missing, 0))
    if given is not None:
        check_padding(ids.shape, mask)
    _check_length(runner, mask, num_new_tokens)
    return Prompt(shown, ids, mask, knows, _extra(runner, mask, embeds, model_kwargs))


def nearest_tokens(model: PreTrainedModel, embeds: Tensor) -> Tensor:
    """[B, T] the tokens whose embeddings point where those of the prompt [B, T, H] do: for drafters to read.

    Exact for embeddings of tokens, a guess for others; the output does not depend on it.
    """
    weight: Tensor = cast(Any, model.get_input_embeddings()).weight
    if weight.dim() != 2 or weight.shape[1] != embeds.shape[2] or weight.device != embeds.device:
        return torch.zeros(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
    direction = torch.nn.functional.normalize(weight.float(), dim=1)
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    return torch.stack([(row.float() @ direction.T)[:, :vocab_size].argmax(-1) for row in embeds])


@contextmanager
def opened_memory(
    runner: ModelRunner, prompt: Prompt, past: Cache | None, keep_rows: bool
) -> Iterator[tuple[Memory, Prompt]]:
    """The cache to decode with: a new one, or what `past` holds, as far as it agrees with the prompt.

    After an exception the user's cache holds what it held as far as it agreed, and can be used again.

    Args:
        past: None, transformers' DynamicCache, or a RollbackCache that an earlier call returned.
        keep_rows: the cache is returned.

    Yields:
        The memory, and the prompt with the tokens that only the cache knew.

    Raises:
        InputError: another batch size than the prompt's.
        OptionError: the cache belongs to another model, or its call has not finished.
        UnsupportedOptionError: another kind of cache.
    """
    history = past.history if isinstance(past, RollbackCache) else None
    memory, prompt = _open(runner, prompt, past, keep_rows)
    seen = list(memory.seen)
    try:
        yield memory, prompt
    except BaseException:
        if keep_rows:
            memory.cache.restore(seen)
            memory.cache.history = None if history is None else history.cut(seen)
        raise


def _open(runner: ModelRunner, prompt: Prompt, past: Cache | None, keep_rows: bool) -> tuple[Memory, Prompt]:
    if isinstance(past, RollbackCache):
        return _continue(runner, prompt, past, keep_rows)
    batch_size = len(prompt.ids)
    cache = runner.new_cache(batch_size, prompt.mask.shape[1] + 1)
    seen = [0] * batch_size
    if past is None:
        return Memory(cache, seen, keep_rows), prompt
    check_dynamic(past, runner.num_layers)
    past_columns = columns(past)
    if past_columns:
        _check_batch(num_rows(past), batch_size)
        covered = prompt.mask[:, :past_columns]
        cache.load(past, covered)
        # The last token is read again where the cache has it: its logits are wanted.
        seen = torch.minimum(covered.sum(1), prompt.mask.sum(1) - 1).tolist()
        cache.restore(seen)
    return Memory(cache, seen, keep_rows), prompt


def close_memory(memory: Memory, prompt: Prompt, new: list[list[int]], model: PreTrainedModel) -> None:
    """Rows come back in their order, covering all tokens but the last; notes what the cache then holds."""
    before = prompt.mask.sum(1).tolist()
    memory.cache.restore([n + len(tokens) - 1 for n, tokens in zip(before, new, strict=True)])
    # Rows that ended early end the layout for all: transformers has one length for the whole cache.
    shortest = min(map(len, new))
    mask = torch.nn.functional.pad(prompt.mask.cpu(), (0, shortest - 1), value=True)
    rows = [row[keep].tolist() for row, keep in zip(prompt.ids.cpu(), prompt.mask.cpu(), strict=True)]
    tokens = [row + added for row, added in zip(rows, new, strict=True)] if prompt.knows_ids else None
    memory.cache.history = History(tokens, mask, id(model))


def _continue(runner: ModelRunner, prompt: Prompt, cache: RollbackCache, keep_rows: bool) -> tuple[Memory, Prompt]:
    """Goes on with our own cache, from where it and the prompt part."""
    history = cache.history
    if history is None:
        raise OptionError(
            "past_key_values is a cache that no finished call has left: pass the one that generate() returned."
        )
    if history.model != id(runner.model):
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
            f"past_key_values holds {cached} rows and the prompt has {batch_size} (num_return_sequences counts): call "
            "batch_repeat_interleave() on a DynamicCache first, or leave it out."
        )


def _check_length(runner: ModelRunner, mask: Tensor, num_new_tokens: int) -> None:
    """Raises InputError if prompt and output do not fit the model's positions."""
    lengths = mask.sum(1)
    longest = int(lengths.max())
    wanted = longest + num_new_tokens
    if runner.max_positions is not None and wanted > runner.max_positions:
        raise InputError(
            f"prompt ({longest} tokens) and new tokens ({num_new_tokens}) need {wanted} positions, the target has "
            f"{runner.max_positions}: shorten the prompt or lower max_new_tokens."
        )
    switch = runner.rope_switch
    if switch is not None and int(lengths.min()) <= switch < wanted:
        raise InputError(
            f"the target's longrope changes all its frequencies at {switch} tokens, in the middle of this output "
            f"({wanted} tokens with the prompt): stay on one side of it, or use model.generate()."
        )


def _extra(
    runner: ModelRunner, mask: Tensor, embeds: Tensor | None, model_kwargs: dict[str, Any]
) -> PromptInputs | None:
    """What the model takes beside token ids and positions of the ordinary kind."""
    device, lengths = runner.device, mask.sum(1)
    out = PromptInputs(lengths)
    if embeds is not None:
        out.embeds = left_aligned(embeds.to(device), mask)
    positions: Tensor | None = model_kwargs.get("position_ids")
    if positions is not None:
        out.positions = _own_positions(positions.to(device), mask)
    for name, value in model_kwargs.items():
        if name in _OWN or value is None:
            continue
        if name in _TOKEN_TYPES and isinstance(value, Tensor) and value.shape == mask.shape:
            new = value[:, -1] if name == "token_type_ids" else torch.zeros_like(value[:, -1])
            table = torch.nn.functional.pad(left_aligned(value.to(device), mask), (0, 1))
            out.per_token[name] = table.scatter(1, lengths[:, None], new.to(device)[:, None])
        elif name in _ONCE:
            out.once[name] = value
        elif not isinstance(value, Tensor):
            out.always[name] = value
        else:
            raise UnsupportedOptionError(
                f"the model input {name} (shape {tuple(value.shape)}) cannot be continued over new tokens by specdec: "
                "leave it out, or use model.generate()."
            )
    return None if out.is_empty else out


def _own_positions(positions: Tensor, mask: Tensor) -> Tensor | None:
    """Position ids [.., B, T] that are not simply 0, 1, 2, ... along each row; else None."""
    if positions.shape[-1] != mask.shape[1]:
        raise InputError(
            f"position_ids has {positions.shape[-1]} columns, the sequence {mask.shape[1]}: give one for each token, "
            "cached ones included, or none."
        )
    if positions.dim() == 2:
        ordinary = (mask.long().cumsum(1) - 1).clamp(min=0)
        if positions.shape[0] == 1 and mask.all():
            ordinary = ordinary[:1]
        if torch.equal(positions, ordinary):
            return None
        positions = positions.expand(len(mask), -1)
        if torch.equal(positions[mask], ordinary[mask]):
            return None
    else:
        positions = positions.expand(*positions.shape[:-2], len(mask), -1)
    return left_aligned(positions, mask, dim=positions.dim() - 1)
