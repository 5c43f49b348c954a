"""One forward of a model over a finished text: the logits in front of each of its new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.target import input_device, parameters
from specdec.wrapped import uncompiled_call


@torch.inference_mode()
def logits_along(model: PreTrainedModel, prompt: Sequence[int], text: Sequence[int]) -> Tensor:
    """[T, V] logits in front of each token of `text`, which stands behind `prompt`, in the model's dtype."""
    device = input_device(model)
    kwargs: dict[str, Any] = {"use_cache": False, "return_dict": True}
    kwargs["input_ids"] = torch.tensor([[*prompt, *text[:-1]]], device=device)
    if "logits_to_keep" in parameters(model.forward):
        kwargs["logits_to_keep"] = len(text)
    logits: Tensor = uncompiled_call(model)(**kwargs).logits
    return logits[0, -len(text) :]
