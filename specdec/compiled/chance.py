"""What chance decides in a round, as one graph: processors, softmax, coins, and acceptance of a chain.

It knows no model, only the logits of one, so that a package serves all models on a machine. One program does both
halves of a sampled round: a token is drafted by verifying a chain of no tokens with the draft's coins.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LogitsProcessor
from transformers.generation import logits_process as hf

from specdec.types import Law, Proposal
from specdec.verify import Purpose, rejection
from specdec.verify.coins import inverse_cdf, uniform

# The number of a processor that a graph takes as an input, so that another temperature needs no other graph.
_NUMBERS: dict[type, str] = {
    hf.TemperatureLogitsWarper: "temperature",
    hf.TopPLogitsWarper: "top_p",
    hf.MinPLogitsWarper: "min_p",
}
# Its indices are clamped before they are used, and torch 2.13's check of them does not compile.
OPTIONS: dict[str, Any] = {"assert_indirect_indexing": False}
_ROWS, _KEPT, _DISTRIBUTIONS, _VOCAB = 3, 5, 4, 4096  # sizes that the graph is traced at


@dataclass(frozen=True, slots=True)
class Recipe:
    """The processors of a call that a graph can take in.

    Args:
        name: tells one graph from another: the processors and what is constant in them.
        processors: in order.
        numbers: the inputs, one for each processor that has one.
    """

    name: str
    processors: Sequence[LogitsProcessor]
    numbers: list[float]

    @classmethod
    def of(cls, processors: Sequence[LogitsProcessor]) -> Recipe | str:
        """Of a call's processors; or the class of one that no graph takes."""
        parts, numbers = [], []
        for processor in processors:
            kind = type(processor)
            constants = dict(vars(processor))
            if kind in _NUMBERS:
                numbers.append(float(constants.pop(_NUMBERS[kind])))
            elif kind is not hf.TopKLogitsWarper:
                return kind.__name__
            parts.append(f"{kind.__name__} {sorted(constants.items())}")
        return cls("; ".join(parts), list(processors), numbers)

    @property
    def least_vocab(self) -> int:
        """A smaller vocabulary would need another graph."""
        return max([2, *(int(vars(p).get("top_k", 0)) for p in self.processors)]) + 1


@dataclass(frozen=True, slots=True)
class _NamedCoins:
    """KeyedCoins whose names are tensors; the next token's coin is that of a purpose and node."""

    seed: Tensor
    requests: Tensor
    lengths: Tensor
    purpose: Tensor
    node: Tensor

    def bernoulli(self, prob: Tensor) -> Tensor:
        nodes = torch.arange(prob.shape[1], device=prob.device)
        return uniform(self.seed, self.requests[:, None], self.lengths[:, None], int(Purpose.ACCEPT), nodes) < prob

    def categorical(self, weights: Tensor) -> Tensor:
        return inverse_cdf(weights, uniform(self.seed, self.requests, self.lengths, self.purpose, self.node))


class ChanceGraph(nn.Module):
    """Rejection sampling of a chain, from logits to committed tokens."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self._recipe = recipe

    def forward(
        self,
        logits: Tensor,
        tokens: Tensor,
        num_valid: Tensor,
        q: Tensor,
        is_given: Tensor,
        seed: Tensor,
        requests: Tensor,
        lengths: Tensor,
        purpose: Tensor,
        starts: Tensor,
        numbers: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One round, or one drafted token.

        Args:
            logits: [B, K, V] float32, behind each of the tokens.
            tokens: [B, K] int64: the last committed token, then the drafted ones.
            num_valid: [B] int64, how many of those count; less than K.
            q: [B, M, V] float32, what they were drawn from; the last one goes on for the rest.
            is_given: [1] bool: they were not drawn, and q says nothing.
            seed: [1] int64.
            requests, lengths: [B] int64, each row's index in the batch, and its committed tokens.
            purpose: [2] int64: purpose and node of the next token's coin.
            starts: [B] int64, as in `StepGraph.forward`.
            numbers: [P] float32, of the processors.

        Returns:
            outcome [B, 4 + K] int64: drafted tokens, accepted ones, 1 for a broken drafter, then the committed tokens;
            what follows the next token is undefined.
            ends [B] int64: the slot behind the last accepted token.
            probs [B, K, V] float32, the processed distributions.
        """
        kept, device = logits.shape[1], logits.device
        probs = self._scores(logits, numbers).softmax(-1)
        drafted = tokens.roll(-1, 1)  # behind the last one comes the first, which does not count
        steps = torch.arange(kept, device=device)
        valid = (steps < num_valid[:, None]) & (steps < kept - 1)
        known = torch.where(valid, drafted.clamp(0, probs.shape[2] - 1), 0)
        drawn_from = steps.clamp(max=q.shape[1] - 1)
        # The same rule serves tokens that were not drawn: theirs is a distribution of one token.
        alone = known[:, :, None] == torch.arange(probs.shape[2], device=device)
        q = torch.where(is_given, alone.to(q.dtype), q[:, drawn_from])
        index = steps.expand(known.shape[0], -1)
        proposal = Proposal(known, index - 1, valid, kept, 1, q, index, Law.IID)
        proposal, broken = proposal.repaired(probs.shape[2])
        broken = broken | ((known != drafted) & valid).any(1)
        coins = _NamedCoins(seed, requests, lengths, purpose[:1], purpose[1:])
        acceptance = rejection(F.pad(probs, (0, 0, 0, 1)), proposal, coins)
        counts = torch.stack([valid.sum(1), acceptance.num_accepted, broken.to(torch.int64)], dim=1)
        outcome = torch.cat([counts, acceptance.tokens(proposal)], dim=1)
        return outcome, starts + acceptance.num_accepted + 1, probs

    def _scores(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """As `Sampler.scores` without prefixes: transformers' own processors, around the graph's numbers."""
        flat = logits.reshape(-1, logits.shape[-1])
        no_prefix, count = flat.new_empty(1, 0, dtype=torch.int64), 0
        for processor in self._recipe.processors:
            name = _NUMBERS.get(type(processor))
            if name is not None:
                processor = copy.copy(processor)
                setattr(processor, name, numbers[count])
                count += 1
            flat = processor(no_prefix, flat)
        return flat.view(logits.shape)


def example(recipe: Recipe) -> tuple[Any, ...]:
    """Inputs to trace the graph at. Compiled code takes these dtypes for granted."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int64)

    vocab = max(_VOCAB, 2 * recipe.least_vocab)
    q = torch.full((_ROWS, _DISTRIBUTIONS, vocab), 1 / vocab, dtype=torch.float32)
    return (
        torch.zeros(_ROWS, _KEPT, vocab, dtype=torch.float32),
        zeros(_ROWS, _KEPT),
        zeros(_ROWS),
        q,
        torch.zeros(1, dtype=torch.bool),
        zeros(1),
        zeros(_ROWS),
        zeros(_ROWS),
        zeros(2),
        zeros(_ROWS),
        torch.full((len(recipe.numbers),), 0.5, dtype=torch.float32),
    )


def free_sizes(recipe: Recipe) -> tuple[Any, ...]:
    """Which sizes of `example`'s tensors are free, for torch.export."""
    rows, kept, drawn = (torch.export.Dim(n, min=2, max=1 << 20) for n in ("rows", "kept", "drawn"))
    vocab = torch.export.Dim("vocab", min=recipe.least_vocab, max=1 << 24)
    row = {0: rows}
    return (
        {0: rows, 1: kept, 2: vocab},
        {0: rows, 1: kept},
        row,
        {0: rows, 1: drawn, 2: vocab},
        None,
        None,
        row,
        row,
        None,
        row,
        None,
    )
