"""Target and draft compared token by token: how alike they are, and how likely a drafted token is accepted."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

_MOST = 2**24  # probabilities in memory at once; a vocabulary of 128k takes 128 tokens at a time
NAMES = ("alpha", "share", "greedy", "kl", "target_entropy", "draft_entropy", "rank", "p", "q")


@dataclass(frozen=True, slots=True)
class TokenMeasures:
    """One figure a token of a text, each [T] on the CPU.

    Attributes:
        alpha: float64, sum of min(p, q) = 1 - TVD(p, q): the chance that a token drafted here is accepted (Theorem 3.5
            of arXiv:2211.17192). Greedy: do the arg-maxes agree?
        share: float64, min(1, q(x) / p(x)) of the text's token x: given that it was written, the chance that it was a
            draft's accepted one. Greedy: is it the draft's arg-max?
        greedy: bool, do the arg-maxes agree?
        kl: float64, KL(p || q) in nats, over the ids that both models have; infinite where q lacks what p has.
        target_entropy, draft_entropy: float64, in nats.
        rank: int64, how many tokens the draft finds likelier than the text's.
        p, q: float64, both models' probability of the text's token.
    """

    alpha: Tensor
    share: Tensor
    greedy: Tensor
    kl: Tensor
    target_entropy: Tensor
    draft_entropy: Tensor
    rank: Tensor
    p: Tensor
    q: Tensor


def measure(target: Tensor, draft: Tensor, tokens: Tensor, temperature: float) -> TokenMeasures:
    """Compares two models' logits over a text.

    At temperature 0 acceptance is that of greedy decoding, while divergence, entropies, p and q are those of the
    distributions at temperature 1: those of arg-maxes would say nothing.

    Args:
        target: [T, V] logits in front of each token.
        draft: [T, Vq]; a vocabulary padded otherwise than the target's is cut or filled up.
        tokens: [T] int64, the text.

    Example:
        >>> same = torch.tensor([[0.0, 1.0]])
        >>> float(measure(same, same, torch.tensor([1]), 1.0).alpha)
        1.0
    """
    size = max(1, _MOST // target.shape[1])
    parts = [
        _measure(t, d, x, temperature)
        for t, d, x in zip(target.split(size), draft.split(size), tokens.split(size), strict=True)
    ]
    return TokenMeasures(*(torch.cat([getattr(p, f.name) for p in parts]).cpu() for f in fields(TokenMeasures)))


def _measure(target: Tensor, draft: Tensor, tokens: Tensor, temperature: float) -> TokenMeasures:
    target, draft = target.double(), draft.to(target.device).double()[:, : target.shape[1]]
    width = draft.shape[1]
    draft = F.pad(draft, (0, target.shape[1] - draft.shape[1]), value=-torch.inf)
    scale = temperature if temperature > 0 else 1.0
    log_p, log_q = (target / scale).log_softmax(-1), (draft / scale).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    choice = draft.argmax(-1)
    greedy = choice == target.argmax(-1)
    x = tokens[:, None]
    mine, theirs = draft.gather(1, x), torch.arange(draft.shape[1], device=draft.device)
    # Of equally likely tokens the first one counts as likelier, as arg-max and top-k have it.
    rank = ((draft > mine) | ((draft == mine) & (theirs < x))).sum(-1)
    if temperature > 0:
        alpha = torch.minimum(p, q).sum(-1).clamp(max=1.0)
        share = (log_q - log_p).gather(1, x)[:, 0].clamp(max=0.0).exp()
    else:
        alpha, share = greedy.double(), (choice == tokens).double()
    return TokenMeasures(
        alpha=alpha,
        share=share,
        greedy=greedy,
        kl=_divergence(target[:, :width] / scale, draft[:, :width] / scale),
        target_entropy=_entropy(p, log_p),
        draft_entropy=_entropy(q, log_q),
        rank=rank,
        p=p.gather(1, x)[:, 0],
        q=q.gather(1, x)[:, 0],
    )


def _divergence(target: Tensor, draft: Tensor) -> Tensor:
    log_p, log_q = target.log_softmax(-1), draft.log_softmax(-1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def _entropy(probs: Tensor, logprobs: Tensor) -> Tensor:
    return -torch.where(probs > 0, probs * logprobs, 0.0).sum(-1)
