"""The calls that faults are put into: a model of each kind of memory, one row or three, greedy or sampled."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import families
import torch
from equality.coupling import GumbelChoice
from models import VOCAB_SIZE
from torch import Tensor
from transformers import PreTrainedModel

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
        found = dict(_begun(self)[0]) if self.memory.startswith("given") else _inputs(self)
        choice = {"logits_processor": [GumbelChoice()]} if self.do_sample else {}
        return {**found, **choice, "max_new_tokens": NEW_TOKENS, "eos_token_id": eos(self)}

    def past(self) -> Any:
        """A cache of its own for each call; None where the call begins with none."""
        return copy.deepcopy(_begun(self)[1]) if self.memory.startswith("given") else None


def _inputs(setting: Setting) -> dict[str, Tensor]:
    return families.inputs(setting.family, setting.batch_size)


@cache
def _begun(setting: Setting) -> tuple[dict[str, Tensor], Any]:
    """The second turn of a text, and the cache that its first turn has left."""
    inputs = _inputs(setting)
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
def _free(setting: Setting) -> Tensor:
    """The text that no EOS ends, prompt included."""
    found = dict(_begun(setting)[0]) if setting.memory.startswith("given") else _inputs(setting)
    if setting.do_sample:
        found["logits_processor"] = [GumbelChoice()]
    return setting.target.generate(**found, max_new_tokens=NEW_TOKENS, do_sample=False)


@cache
def unused(setting: Setting) -> int:
    """An id that stands nowhere in prompt and text."""
    there = {*_free(setting).flatten().tolist(), *_inputs(setting)["input_ids"].flatten().tolist()}
    return next(i for i in range(1, VOCAB_SIZE) if i not in there)


@cache
def eos(setting: Setting) -> int:
    """Ends the shorter ones of three rows; of one row nothing."""
    if setting.batch_size == 1:
        return unused(setting)
    new = _free(setting)[:, -NEW_TOKENS:]
    for column in range(4, NEW_TOKENS - 2):
        for token in new[:, column].tolist():
            ends = [(row == token).nonzero().flatten().tolist() for row in new]
            if all(not row or row[0] >= 3 for row in ends) and 1 <= sum(map(bool, ends)) <= 2:
                return int(token)
    raise AssertionError(f"no token ends some rows of {setting} and not others: choose another seed")


@cache
def poisoned(setting: Setting, how: str) -> PreTrainedModel:
    """The target with broken numbers in one row of its embeddings, of a token nobody writes, or of its head."""
    model = copy.deepcopy(setting.target)
    with torch.no_grad():
        if how == "embedding":
            model.get_input_embeddings().weight[unused(setting)] = float("nan")
        else:
            row = {"head inf": 1e300, "head nan": float("nan")}[how]
            model.get_output_embeddings().weight[5] *= row
    return model
