"""Acceptance rules: pure tensor functions of p, the proposal and the coins. No model, no cache.

All take p (or logits) as [B, N + 1, V]: index 0 is the target's distribution at the root, index i + 1
the one after node i. Draft distributions may be narrower or wider than V (padded vocabularies): what
one side lacks has probability zero there.

Cost: O(width * B * N * V) elementwise; nothing loops over batch or vocabulary in Python.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec.types import Acceptance, Law, Proposal
from specdec.verify.blocks import largest
from specdec.verify.coins import Coins
from specdec.verify.tree import accepted_prefix, children_table, walk


def greedy(logits: Tensor, proposal: Proposal) -> Acceptance:
    """Temperature 0: a node is accepted if it is its parent's argmax (ties go to the first, as in torch.argmax).

    Args:
        logits: [B, N + 1, V] processed target scores.
        proposal: [B, N] nodes; q is not looked at.

    Returns:
        What is accepted; next_token is -1 where a logit is NaN.
    """
    choice = best(logits)  # [B, N + 1]
    if proposal.is_chain:
        path, num_accepted = accepted_prefix((proposal.tokens == choice[:, :-1]) & proposal.valid)
        return Acceptance(path, num_accepted, choice.gather(1, num_accepted[:, None]).squeeze(1))
    accepted = proposal.tokens == choice.gather(1, proposal.parents + 1)
    path, num_accepted, end = walk(children_table(proposal), accepted, proposal.depth)
    return Acceptance(path, num_accepted, choice.gather(1, end[:, None]).squeeze(1))


def best(logits: Tensor) -> Tensor:
    """[...] int64 argmax of [..., V]; -1 where one of them is NaN, which argmax takes for the largest."""
    choice = largest(logits)[..., None]
    return torch.where(logits.gather(-1, choice).isnan(), -1, choice).squeeze(-1)


def rejection(p: Tensor, proposal: Proposal, coins: Coins) -> Acceptance:
    """Rejection sampling over a chain or tree (Alg. 1 of arXiv:2211.17192; siblings as in arXiv:2305.09781).

    At a node with target distribution p, start with r = p. For each child x in order: accept with
    probability min(1, r(x) / q(x)), else r <- norm(max(r - q, 0)). After an acceptance go on from that
    child; when no child is accepted, draw the next token from r. The output has exactly the law p.

    Args:
        p: [B, N + 1, V] target distributions.
        proposal: chain or tree of any law.
        coins: where every random choice comes from.
    """
    p, q = widened(p, proposal.q)
    if proposal.is_chain:
        return _rejection_chain(p, q, proposal, coins)
    return _rejection_tree(p, q, proposal, coins)


def _rejection_chain(p: Tensor, q: Tensor | None, proposal: Proposal, coins: Coins) -> Acceptance:
    """The only residual that a chain needs is that of the node where it ends: [B, V] instead of [B, N, V]."""
    batch_size, num_nodes = proposal.tokens.shape
    if num_nodes == 0:
        return Acceptance(proposal.tokens, proposal.tokens.new_zeros(batch_size), coins.categorical(p[:, 0]))
    ratio, valid = _ratio(p[:, :-1], q, proposal)
    path, num_accepted = accepted_prefix(coins.bernoulli(torch.where(valid, ratio.clamp(max=1.0), 0.0)))
    here = _pick(p, num_accepted)
    rejected = num_accepted.clamp(max=num_nodes - 1)  # the node that failed, where one did
    if q is None:
        token = proposal.tokens.gather(1, rejected[:, None])
        rest = here.scatter(1, token, here.gather(1, token) * 0)  # NaN stays NaN
    else:
        assert proposal.q_index is not None
        drawn_from = proposal.q_index.gather(1, rejected[:, None]).squeeze(1)
        rest = (here - _pick(q, drawn_from)).clamp(min=0.0)
    ended = num_accepted == valid.sum(1)  # nothing failed: the bonus token comes from p
    weights = torch.where(ended[:, None], here, _normalise(rest, otherwise=here))
    return Acceptance(path, num_accepted, coins.categorical(weights))


def _rejection_tree(p: Tensor, q: Tensor | None, proposal: Proposal, coins: Coins) -> Acceptance:
    """Siblings of one rank at a time, all parents at once."""
    children, residual = children_table(proposal), p
    probs = p.new_zeros(proposal.tokens.shape)  # [B, N] probability of acceptance when its turn comes
    for rank in range(proposal.width):
        child = children[:, :, rank]  # [B, N + 1]
        has_child = child >= 0
        node = child.clamp(min=0)
        token = proposal.tokens.gather(1, node)
        r_x = residual.gather(2, token[:, :, None]).squeeze(2)
        if q is None:
            prob = r_x
            rest = residual.scatter(2, token[:, :, None], r_x[:, :, None] * 0)  # NaN stays NaN
        else:
            assert proposal.q_index is not None
            row = proposal.q_index.gather(1, node)
            q_here = q.gather(1, row[:, :, None].expand(-1, -1, q.shape[2]))  # [B, N + 1, V]
            if proposal.law is Law.WITHOUT_REPLACEMENT:
                q_here = _without(q_here, proposal.tokens, children[:, :, :rank])
            q_x = q_here.gather(2, token[:, :, None]).squeeze(2)
            # A token that q could not draw (siblings beyond its support, a broken draft) counts as absent.
            has_child = has_child & (q_x > 0)
            prob = (r_x / q_x).clamp(max=1.0)
            rest = (residual - q_here).clamp(min=0.0)
        probs = _scatter_nodes(probs, node, prob, has_child)
        residual = torch.where(has_child[:, :, None], _normalise(rest, otherwise=residual), residual)
    path, num_accepted, end = walk(children, coins.bernoulli(probs), proposal.depth)
    return Acceptance(path, num_accepted, coins.categorical(_pick(residual, end)))


def block(p: Tensor, proposal: Proposal, coins: Coins) -> Acceptance:
    """Block verification of a chain (Alg. 2 of arXiv:2403.10444): accepts at least as much as `rejection`.

    With P_0 = 1 and P_i = min(1, P_(i-1) p(x_i) / q(x_i)), node i is accepted by its own coin with
    probability h_i = P_n if it is the last of the chain, else S_i / (S_i + 1 - P_i), where
    S_i = sum_x max(P_i p(x) - q(x), 0) at node i. The longest accepted node counts, whatever the coins
    before it said; the next token comes from norm(max(P_i p - q, 0)), or from p at the chain's end.

    Args:
        p: [B, N + 1, V] target distributions.
        proposal: chains only; rows may differ in length.
        coins: where every random choice comes from.
    """
    if not proposal.is_chain:
        raise ValueError("block verification is defined on chains; use rejection() for trees")
    wide_p, q = widened(p, proposal.q)
    batch_size, num_nodes = proposal.tokens.shape
    if num_nodes == 0:
        path, num_accepted = proposal.tokens, proposal.tokens.new_zeros(batch_size)
        return Acceptance(path, num_accepted, coins.categorical(wide_p[:, 0]))
    ratio, valid = _ratio(wide_p[:, :-1], q, proposal)
    if q is None:
        q = F.one_hot(proposal.tokens, wide_p.shape[2]).to(wide_p.dtype)
    else:
        assert proposal.q_index is not None
        q = q.gather(1, proposal.q_index[:, :, None].expand(-1, -1, q.shape[2]))
    joint = [torch.ones_like(ratio[:, 0])]  # P_i
    for i in range(num_nodes):
        joint.append((joint[-1] * ratio[:, i]).clamp(max=1.0))
    reach = torch.stack(joint, dim=1)  # [B, N + 1]
    length = valid.sum(1)  # [B]
    steps = torch.arange(num_nodes + 1, device=length.device)
    is_end = steps == length[:, None]
    # A row's chain ends at `length`: from there on nothing is drafted, so q = 0 and the residual is p.
    q_next = torch.cat([q, q.new_zeros(batch_size, 1, q.shape[2])], dim=1)
    q_next = torch.where((steps >= length[:, None])[:, :, None], 0.0, q_next)
    residual = (reach[:, :, None] * wide_p - q_next).clamp(min=0.0)
    mass = residual.sum(-1)
    h = torch.where(is_end, reach, mass / (mass + 1 - reach).clamp(min=torch.finfo(mass.dtype).tiny))
    accepted = coins.bernoulli(torch.where(valid, h[:, 1:], 0.0))  # [B, N]
    num_accepted = torch.where(accepted, steps[1:], 0).amax(1)
    path = torch.where(steps[:-1] < num_accepted[:, None], steps[:-1], -1)
    # Where nothing is left, at the end of the chain or by rounding, p is the answer.
    left = mass.gather(1, num_accepted[:, None])
    use_p = (num_accepted == length)[:, None] | (left == 0)
    weights = torch.where(use_p, _pick(wide_p, num_accepted), _pick(residual, num_accepted))
    # A node whose p is no distribution would be rejected in silence, and the step back to an earlier one biased.
    # Behind a token of probability zero nothing was computed: nobody gets there.
    broken = (~(wide_p.sum(-1) > 0) & (steps <= length[:, None]) & (reach > 0)).any(1)
    return Acceptance(path, num_accepted, torch.where(broken, -1, coins.categorical(weights)))


def widened(p: Tensor, q: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Pads the narrower vocabulary with zeros."""
    if q is None:
        return p, None
    q = q.to(p.dtype)
    missing = p.shape[2] - q.shape[2]
    # Padding by nothing would copy both.
    return F.pad(p, (0, -missing)) if missing < 0 else p, F.pad(q, (0, missing)) if missing > 0 else q


def _pick(table: Tensor, index: Tensor) -> Tensor:
    """table [B, M, V] at index [B] -> [B, V]."""
    return table.gather(1, index[:, None, None].expand(-1, 1, table.shape[2])).squeeze(1)


def _ratio(p: Tensor, q: Tensor | None, proposal: Proposal) -> tuple[Tensor, Tensor]:
    """p(x) / q(x) [B, N] of a chain's own tokens; p is [B, N, V], q [B, M, V] or None for one-hot.

    Also [B, N], the nodes that count: a token that q could not draw ends the chain.
    """
    p_x = p.gather(2, proposal.tokens[:, :, None]).squeeze(2)
    if q is None:
        return p_x, proposal.valid.cumprod(1).bool()
    assert proposal.q_index is not None
    q_x = q.flatten(1).gather(1, proposal.q_index * q.shape[2] + proposal.tokens)
    return p_x / q_x, (proposal.valid & (q_x > 0)).cumprod(1).bool()


def _normalise(rest: Tensor, otherwise: Tensor) -> Tensor:
    """norm(rest) over the vocabulary; `otherwise` where nothing is left.

    Nothing is left where r = q: that child is accepted for sure but for rounding, and r is then the answer.
    """
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, otherwise)


def _without(q: Tensor, tokens: Tensor, elders: Tensor) -> Tensor:
    """q [B, M, V] given that it drew none of the elder siblings [B, M, S] (node indices, -1 = none)."""
    if elders.shape[2] == 0:
        return q
    batch_size, slots, num_elders = elders.shape
    token = tokens.gather(1, elders.clamp(min=0).flatten(1)).view(batch_size, slots, num_elders)
    keep = torch.where(elders >= 0, 0.0, q.gather(2, token))
    return _normalise(q.scatter(2, token, keep), otherwise=q)


def _scatter_nodes(target: Tensor, node: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """target [B, N] with value [B, M] written at node [B, M] where mask holds."""
    padded = F.pad(target, (0, 1))  # an extra column takes the masked writes
    return padded.scatter(1, torch.where(mask, node, target.shape[1]), value)[:, :-1]
