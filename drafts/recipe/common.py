"""What the two training scripts share: batches, the optimiser pair, the schedule, the measures."""

from __future__ import annotations

import pathlib

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedModel

SEQUENCE_LENGTH = 512


class Corpus:
    """Random windows of the training text: the library twice as often as its tests."""

    def __init__(self, work: pathlib.Path, seed: int) -> None:
        library, tests = np.load(work / "lib.npy"), np.load(work / "test.npy")
        self._ids = np.concatenate([library, library, tests])
        self._rng = np.random.default_rng(seed)
        self.held = torch.from_numpy(np.load(work / "held.npy").astype(np.int64))

    def batch(self, size: int) -> Tensor:  # [size, SEQUENCE_LENGTH] int64
        starts = self._rng.integers(0, len(self._ids) - SEQUENCE_LENGTH, size)
        rows = [self._ids[i : i + SEQUENCE_LENGTH].astype(np.int64) for i in starts]
        return torch.from_numpy(np.stack(rows))

    def held_out(self, rows: int) -> Tensor:  # [rows, SEQUENCE_LENGTH], the same on every call
        return self.held[: rows * SEQUENCE_LENGTH].view(rows, SEQUENCE_LENGTH)


class Optimiser:
    """Muon for the blocks' matrices, AdamW for embeddings and norms, under one schedule."""

    def __init__(self, model: PreTrainedModel, muon_lr: float, adam_lr: float) -> None:
        matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "layers" in n]
        chosen = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        self._parts = [
            (torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.05), muon_lr),
            (torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0), adam_lr),
        ]
        self._model = model

    def step(self, scale: float) -> None:
        """One update at scale x the base learning rates; clears the gradients."""
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimiser, lr in self._parts:
            for group in optimiser.param_groups:
                group["lr"] = lr * scale
            optimiser.step()
        self._model.zero_grad(set_to_none=True)


def warmup_stable_decay(step: int, progress: float, decay_from: float = 0.4) -> float:
    """Learning-rate factor: 40 steps of warm-up, constant, then linear to 0.02 at progress 1."""
    decay = 1.0 if progress < decay_from else max(0.02, (1 - progress) / (1 - decay_from))
    return min(1.0, (step + 1) / 40) * decay


@torch.no_grad()
def exit_losses(model: LlamaForCausalLM, x: Tensor, exits: tuple[int, ...]) -> dict[int, float]:
    """Cross-entropy (nats a token) on x [R, T] after each of the named layers."""
    model.eval()
    hidden = model.model(x, output_hidden_states=True).hidden_states
    last = model.config.num_hidden_layers
    losses = {}
    for layer in exits:
        h = hidden[layer] if layer == last else model.model.norm(hidden[layer])
        logits = model.lm_head(h)[:, :-1].float()
        losses[layer] = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten()).item()
    model.train()
    return losses


@torch.no_grad()
def acceptance(target: LlamaForCausalLM, draft: LlamaForCausalLM, x: Tensor) -> tuple[float, float]:
    """Teacher-forced (alpha = 1 - TVD(p, q), greedy agreement) on x [R, T], temperature 1."""
    draft.eval()
    alpha = agreement = 0.0
    for row in x.split(4):
        p = target(row).logits.float().softmax(-1)
        q = draft(row).logits.float().softmax(-1)
        alpha += torch.minimum(p, q).sum(-1).mean(-1).sum().item()
        agreement += (p.argmax(-1) == q.argmax(-1)).float().mean(-1).sum().item()
    draft.train()
    return alpha / len(x), agreement / len(x)
