"""The calls that faults are put into: a model of each kind of memory, one row or three, greedy or sampled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import families
import torch
from equality.coupling import GumbelChoice
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import specdec

NEW_TOKENS, DRAFTED = 12, 2
MEMORIES = {  # name -> family, and the cache that the call begins with
    "attention": ("llama", None),
    "sliding": ("mistral", None),
    "recurrent": ("lfm2", None),
    "encoder-decoder": ("bart", None),
    "given DynamicCache": ("llama", "dynamic"),
    "given RollbackCache": ("llama", "rollback"),
}
NO_TOKEN = 1  # an id that no reference text has, asserted below


@dataclass(frozen=True)
class Setting:
    """One call without a fault.

    Sampled calls have one text to sample (GumbelChoice), so that it can be compared whatever the drafts are.
    """

    memory: str
    batch_size: int
    do_sample: bool

    @property
    def family(self) -> str:
        return MEMORIES[self.memory][0]

    @property
    def target(self) -> PreTrainedModel:
        return families.family(self.family)

    @property
    def draft(self) -> PreTrainedModel:
        return families.family(self.family, families.ARCHITECTURES[self.family].noise)

    def drafter(self) -> specdec.Drafter:
        return specdec.ModelDrafter(self.draft)

    def arguments(self) -> dict[str, Any]:
        """What both sides get; processors are new objects."""
        found = dict(_begun(self)[0]) if self.memory.startswith("given") else _inputs(self.family, self.batch_size)
        choice = {"logits_processor": [GumbelChoice()]} if self.do_sample else {}
        return {**found, **choice, "max_new_tokens": NEW_TOKENS, "eos_token_id": eos(self)}

    def past(self) -> Any:
        """A cache of its own for each call; None where the call begins with none."""
        return copy.deepcopy(_begun(self)[1]) if self.memory.startswith("given") else None


def _inputs(family: str, batch_size: int) -> dict[str, Tensor]:
    return families.inputs(family, batch_size)


@cache
def _begun(setting: Setting) -> tuple[dict[str, Tensor], Any]:
    """The second turn of a text, and the cache that its first turn has left."""
    inputs = _inputs(setting.family, setting.batch_size)
    kind = MEMORIES[setting.memory][1]
    first = specdec.generate(
        setting.target, **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
    )  # fmt: skip
    mask = torch.cat([inputs["attention_mask"], torch.ones(setting.batch_size, 4, dtype=torch.int64)], 1)
    past = first.past_key_values.to_dynamic_cache() if kind == "dynamic" else first.past_key_values
    return {"input_ids": first.sequences, "attention_mask": mask}, past


def text(setting: Setting, model: PreTrainedModel | None = None, **changes: Any) -> Tensor:
    """What transformers writes, one token at a time and without a cache of ours."""
    arguments = {**setting.arguments(), **changes}
    return (model or setting.target).generate(**arguments, do_sample=False)


@cache
def reference(setting: Setting) -> Tensor:
    return text(setting)


@cache
def eos(setting: Setting) -> int:
    """Ends the shorter ones of three rows; of one row nothing."""
    if setting.batch_size == 1:
        return NO_TOKEN
    arguments = {**_without_eos(setting), "max_new_tokens": NEW_TOKENS}
    new = setting.target.generate(**arguments, do_sample=False)[:, -NEW_TOKENS:]
    for column in range(4, NEW_TOKENS - 2):
        for token in new[:, column].tolist():
            ends = [(row == token).nonzero().flatten().tolist() for row in new]
            ended = [row for row in ends if row and row[0] >= 3]
            if len(ended) in (1, 2) and all(not row or row[0] >= 3 for row in ends):
                return int(token)
    raise AssertionError(f"no token ends some rows of {setting} and not others: choose another seed")


def _without_eos(setting: Setting) -> dict[str, Any]:
    found = dict(_begun(setting)[0]) if setting.memory.startswith("given") else _inputs(
        setting.family, setting.batch_size
    )
    return {**found, **({"logits_processor": [GumbelChoice()]} if setting.do_sample else {})}


@cache
def poisoned(setting: Setting, how: str) -> PreTrainedModel:
    """The target with broken numbers in one row of its embeddings, of a token nobody writes, or of its head."""
    model = copy.deepcopy(setting.target)
    with torch.no_grad():
        if how == "embedding":
            model.get_input_embeddings().weight[NO_TOKEN] = float("nan")
        else:
            row = {"head inf": 1e300, "head nan": float("nan")}[how]
            model.get_output_embeddings().weight[5] *= row
    return model


Made = Callable[[], DynamicCache]
