"""Models that no other test has seen.

`tiny` and `family` remember theirs, and transformers leaves hooks on a model whose hidden states were asked for.
"""

from __future__ import annotations

from typing import Any

import families
import models
import torch


def own(architecture: str = "llama", **changes: Any) -> Any:
    """`models.tiny`, made anew, in float32 as users' models are, and of two layers where that is llama's."""
    smaller = {"num_hidden_layers": 2} if architecture == "llama" else {}
    return models.tiny.__wrapped__(architecture, **{"dtype": torch.float32, **smaller, **changes})


def own_family(name: str) -> Any:
    """`families.family`, made anew."""
    return families.family.__wrapped__(name)
