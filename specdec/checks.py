"""Refusals of bad prompts, before any forward: what is wrong, why, what to do instead."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from specdec.errors import InputError


def check_ids(ids: Any, vocab_size: int) -> None:
    """Raises InputError for token ids that cannot be decoded."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
        raise InputError("the prompt must be an integer tensor [batch, length]; tokenize with return_tensors='pt'.")
    if ids.numel() == 0:
        raise InputError(f"the prompt is empty (shape {tuple(ids.shape)}): give at least one token, e.g. BOS.")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise InputError(f"token id {bad} is outside the target's vocabulary 0..{vocab_size - 1}: another tokenizer?")


def check_embeds(embeds: Any, hidden_size: int) -> None:
    """Raises InputError unless embeds is a float tensor [batch, length >= 1, hidden_size]."""
    if not isinstance(embeds, Tensor) or embeds.dim() != 3 or not embeds.is_floating_point():
        raise InputError("inputs_embeds must be a float tensor [batch, length, hidden size].")
    if embeds.numel() == 0 or embeds.shape[2] != hidden_size:
        raise InputError(
            f"inputs_embeds has shape {tuple(embeds.shape)}; the target takes [batch, length >= 1, {hidden_size}]."
        )


def check_padding(shape: tuple[int, ...], mask: Any) -> None:
    """Raises InputError unless the mask [B, T] fits the prompt's shape and leaves every row's last token visible."""
    if not isinstance(mask, Tensor):
        raise InputError(f"attention_mask must be a tensor, got {type(mask).__name__}.")
    if tuple(mask.shape) != tuple(shape):
        raise InputError(f"attention_mask has shape {tuple(mask.shape)}, the prompt {tuple(shape)}.")
    keep = mask.bool()
    if not bool(keep.any(1).all()):
        raise InputError("a row of the batch is all padding: give each row at least one token.")
    if not bool(keep[:, -1].all()):
        raise InputError("the batch is right-padded: load the tokenizer with padding_side='left'.")
