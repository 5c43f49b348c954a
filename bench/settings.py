"""What the command line of the benchmarks asks for."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import specdec
from specdec.loading import check_device, load_draft, placed


@dataclass(frozen=True, slots=True)
class Models:
    """A pair and where it runs; the bundled one where nothing is named.

    Attributes:
        target, draft: directories or hub ids; both or neither.
        device: as torch names it.
    """

    target: str | None = None
    draft: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if (self.target is None) != (self.draft is None):
            raise specdec.OptionError(
                "--target and --draft go together: strategies with and without a draft model are compared. Name both, "
                "or neither for the bundled pair."
            )
        check_device(self.device)

    @property
    def name(self) -> str:
        return "bundled pair" if self.target is None else f"{self.target} with {self.draft}"


BUNDLED = Models()


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asked for."""

    prompts: int
    new_tokens: int
    draft_tokens: int
    rounds: int
    threads: int
    models: Models = BUNDLED
    prompt_files: tuple[str, ...] = ()

    def info(self) -> dict[str, Any]:
        """For `benchmark.extra_info`: a number without its circumstances says nothing."""
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        known = asdict(self)
        known |= {"models": self.models.name, "device": device_name(self.models.device)}
        return known | versions | {"cpus": len(os.sched_getaffinity(0))}


def device_name(device: str) -> str:
    """ "cpu", or the accelerator's own name."""
    if torch.device(device).type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return device


@cache
def pair(
    dtype: torch.dtype, models: Models = BUNDLED
) -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedTokenizerBase]:
    """Target, draft and tokenizer, loaded once a dtype.

    Raises:
        OptionError: the draft cannot be loaded, or has another tokenizer.
    """
    if models.target is None or models.draft is None:
        target, draft, tokenizer = specdec.bundled_pair(dtype)
        return placed(target, models.device), placed(draft, models.device), tokenizer
    tokenizer = AutoTokenizer.from_pretrained(models.target, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    draft, theirs = load_draft(models.draft, models.draft, dtype)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise specdec.OptionError(
            f"--draft {models.draft} has another tokenizer than {models.target}: transformers' assisted generation and "
            "the trees that stand beside it need the same. Name a draft of the target's family."
        )
    return target_copy(dtype, models), placed(draft, models.device), tokenizer


@cache
def target_copy(dtype: torch.dtype, models: Models = BUNDLED, use: str = "") -> PreTrainedModel:
    """The target loaded once more; use: what for, since hooks, early exit and compiling each want their own."""
    if models.target is None:
        return placed(specdec.bundled_pair(dtype)[0], models.device)
    model = AutoModelForCausalLM.from_pretrained(models.target, dtype=dtype, trust_remote_code=False).eval()
    return placed(model, models.device)
