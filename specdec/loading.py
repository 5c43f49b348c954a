"""Models and drafters as the command line names them: a directory, a hub id, or a drafter's short name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from specdec.bundled import bundled_pair
from specdec.drafters import CrossTokenizerDrafter, Drafter, ModelDrafter, NgramDrafter, TreeDrafter
from specdec.drafters.named import NAMES, named
from specdec.errors import OptionError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass
class Loaded:
    """What a command decodes with."""

    target: PreTrainedModel
    drafter: Drafter | None
    tokenizer: PreTrainedTokenizerBase


def native_dtype(device: str) -> torch.dtype:
    """bfloat16, except on CPUs that only emulate it: there verifying five tokens costs two plain steps."""
    if (
        torch.device(device).type != "cpu"
        or torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported()
    ):
        return torch.bfloat16
    return torch.float32


def check_device(device: str) -> None:
    """Raises OptionError for a device that torch does not know or this machine has not got."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(
            f"--device {device} cannot be used here: {reason}. Use cpu, or cuda where there is one."
        ) from None


def placed(model: Any, device: str) -> PreTrainedModel:
    """model.to(device); transformers decorates `to` in a way that leaves it no usable type."""
    return model.to(device)


def load_all(target: str | None, draft: str | None, dtype: torch.dtype, device: str) -> Loaded:
    """The bundled pair by default; `draft` is a path, a drafter's name or "none"."""
    small: PreTrainedModel | None = None
    if target is None:
        model, small, tokenizer = bundled_pair(dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, trust_remote_code=False).eval()
        tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=False)
    return Loaded(placed(model, device), _drafter(draft, small, tokenizer, dtype, device), tokenizer)


def _drafter(
    draft: str | None,
    bundled: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    device: str,
) -> Drafter | None:
    """What `--draft` asks for; bundled: the draft model, where the target is the bundled one."""
    kind, colon, value = (draft or "").partition(":")
    if draft == "none":
        return None
    if draft is None and bundled is None:
        return NgramDrafter()
    if kind in NAMES and kind != "tree":
        return named(draft or "", tokenizer=tokenizer)
    path = value if kind == "tree" and colon else None if draft in (None, "tree") else draft
    if path is None and bundled is None:
        raise OptionError("--draft tree needs a draft model beside another target: name one, as in tree:MODEL.")
    if path is None:
        small, theirs = bundled, tokenizer
    else:
        small, theirs = load_draft(draft or "", path, dtype)
    small = placed(small, device)
    if kind == "tree":
        return TreeDrafter(small, tokenizer=tokenizer, draft_tokenizer=theirs)
    if theirs.get_vocab() != tokenizer.get_vocab():
        return CrossTokenizerDrafter(small, target_tokenizer=tokenizer, draft_tokenizer=theirs)
    return ModelDrafter(small, tokenizer=tokenizer, draft_tokenizer=theirs)


def load_draft(asked: str, path: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A draft model and its tokenizer.

    Args:
        asked: what the user wrote, for the error.

    Raises:
        OptionError: either cannot be loaded.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=False).eval()
    except (OSError, ValueError) as error:
        names = ", ".join(NAMES)
        raise OptionError(
            f"--draft {asked} is neither a drafter ({names}, none) nor a model that can be loaded: {error}"
        ) from None
    try:
        return model, AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise OptionError(f"--draft {asked} has no tokenizer that can be loaded beside the model: {error}") from None
