"""The exact law of a tiny target's next tokens, for G-tests of whole calls."""

from __future__ import annotations

from typing import Any

import torch
from lossless.test_gtests import p_value
from models import VOCAB_SIZE
from torch import Tensor
from transformers import PreTrainedModel

FEW = range(3, 7)  # with so few tokens a text repeats itself at once
SUPPRESSED = [token for token in range(VOCAB_SIZE) if token not in FEW]
TOP_K = 2


@torch.no_grad()
def p_of(target: PreTrainedModel, prompt: Tensor, new: Tensor) -> float:
    """P-value of new tokens [n, L] behind one prompt [1, P], sampled with `SUPPRESSED` tokens and `TOP_K`."""
    model: Any = target
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for step in range(new.shape[1]):
        behind = torch.tensor(list(law), dtype=torch.int64).view(len(law), step)
        logits = model(torch.cat([prompt.repeat(len(law), 1), behind], 1)).logits[:, -1].float()
        logits[:, SUPPRESSED] = -torch.inf
        best, tokens = logits.topk(TOP_K)
        law = {
            (*outcome, int(token)): share * float(p)
            for (outcome, share), row, probs in zip(law.items(), tokens, best.softmax(-1), strict=True)
            for token, p in zip(row, probs, strict=True)
        }
    cells = {outcome: code for code, outcome in enumerate(law)}
    codes = torch.tensor([cells[tuple(row)] for row in new.tolist()])
    return p_value(codes, torch.tensor(list(law.values()), dtype=torch.float64))
