"""The prompts that are measured on: of a file or bundled, by kind, and filled up to a length with other prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bench.settings import Settings
from specdec.profile.prompts import Prompt, bundled, encode, open_prompts

Batch = dict[str, Tensor]
MIXED = "mixed"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt's tokens.

    Attributes:
        kind: the category that its file gives it (Spec-Bench's), or what the file is: "code" (HumanEval, the bundled
            ones), "math" (GSM8K), "chat", "qa", "text".
    """

    kind: str
    ids: tuple[int, ...]


def read(settings: Settings, at_least: int = 1) -> list[Prompt]:
    """The prompts of all files, of each file and kind in turn; `--prompts` of each file, or all.

    Raises:
        InputError: a file cannot be read, see `specdec.profile.prompts.open_prompts`.
    """
    limit = max(settings.prompts, at_least) if settings.prompts else None
    if not settings.prompt_files:
        return list(bundled(limit=limit))
    return [prompt for path in settings.prompt_files for prompt in open_prompts(path, limit=limit)]


def tokens_of(prompts: Sequence[Prompt | str], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """Messages through the tokenizer's chat template, where it has one; texts as they stand."""
    whole = [Prompt(i, str(i), "text", text=p) if isinstance(p, str) else p for i, p in enumerate(prompts)]
    return [Tokens(p.domain, tuple(encode(p, tokenizer))) for p in whole]


def of_length(prompts: Sequence[Tokens], length: int) -> list[Tokens]:
    """The same prompts, each with exactly `length` tokens: cut at its front, or behind others that fill it up."""
    filled = []
    for i, prompt in enumerate(prompts):
        ids = list(prompt.ids)
        before = i
        while len(ids) < length:
            before -= 1
            ids = [*prompts[before % len(prompts)].ids, *ids]
        filled.append(Tokens(prompt.kind, tuple(ids[len(ids) - length :])))
    return filled


def batched(prompts: Sequence[Tokens], size: int, pad: int, device: str = "cpu") -> list[Batch]:
    """Batches of `size` prompts, left-padded; the last one is filled up from the first prompts."""
    batches = []
    for rows in _groups(prompts, size):
        width = max(len(row.ids) for row in rows)
        ids = torch.tensor([[pad] * (width - len(row.ids)) + list(row.ids) for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows], device=device)
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def kinds_of(prompts: Sequence[Tokens | Prompt], size: int) -> list[str]:
    """The kind of each batch of `batched`; one of several kinds is "mixed"."""
    kinds = [p.domain if isinstance(p, Prompt) else p.kind for p in prompts]
    return [group[0] if len(set(group)) == 1 else MIXED for group in _groups(kinds, size)]


def _groups(items: Sequence[T], size: int) -> list[list[T]]:
    filled = [*items, *(items[i % len(items)] for i in range(-len(items) % size))]
    return [filled[i : i + size] for i in range(0, len(filled), size)]
