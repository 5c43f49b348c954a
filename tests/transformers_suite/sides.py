"""Who answers `model.generate()` in a test: transformers itself, which proves the expectation, or specdec."""

from __future__ import annotations

import logging as python_logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import specdec


@dataclass(frozen=True)
class Side:
    """One of transformers' own calls runs unchanged on every side.

    Args:
        name: "control" (transformers: nothing is replaced), "model" or "ngram" (specdec with that kind of
            drafter), or "specdec" (without one: the call names its own).
    """

    name: str

    @property
    def is_ours(self) -> bool:
        return self.name != "control"

    @contextmanager
    def attach(self, target: PreTrainedModel, draft: PreTrainedModel) -> Iterator[None]:
        """Lets this side answer target.generate() inside the block."""
        if not self.is_ours:
            yield
            return
        if self.name == "specdec":
            settings: dict[str, Any] = {}
        else:  # a fixed number: "auto" may decide that drafting does not pay, and then nothing would be tested
            settings = {"drafter": draft if self.name == "model" else specdec.NgramDrafter(min_ngram=1)}
            settings["num_draft_tokens"] = 3
        with specdec.attached(target, **settings):
            yield


class Writer(NamedTuple):
    """A trained pair that writes text."""

    target: PreTrainedModel
    draft: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def tokens(self, text: str | list[str]) -> dict[str, torch.Tensor]:
        """The prompt as generate() takes it."""
        batch = self.tokenizer(text, return_tensors="pt", padding=True)
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def plain(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
    """transformers' own generate(), whatever is attached to the model."""
    return type(model).generate(model, *args, **kwargs)


class Forwards:
    """Counts a model's forwards while it is open.

    Example:
        >>> with Forwards(target) as forwards: target.generate(**inputs)  # doctest: +SKIP
        >>> forwards.count  # doctest: +SKIP
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.count = 0

    def __enter__(self) -> Forwards:
        self._handle = self._model.register_forward_hook(self._add)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _add(self, *_: object) -> None:
        self.count += 1


def standard(cache: Cache) -> Cache:
    """The cache in transformers' own format: specdec's is converted, any other is that already."""
    return cache.to_dynamic_cache() if hasattr(cache, "to_dynamic_cache") else cache


def embed(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """[B, T, H] embeddings of token ids."""
    with torch.no_grad():
        return model.get_input_embeddings()(ids)


@contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    """What a logger of transformers says inside the block; it says each thing once a program, so it forgets first."""
    logging.warning_once.cache_clear()
    said: list[str] = []
    handler = python_logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.get_logger(name)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
