"""The sampled rules once more, plainly, every piece of them replaceable: what mutants are made of.

They share nothing with specdec.verify, so that a mutant stays what it is whatever happens to the kernels there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec.types import Acceptance, Law, Proposal
from specdec.verify import Coins


def _q_by_node(p: Tensor, proposal: Proposal, index: Callable[[Tensor], Tensor]) -> Tensor:
    """[B, N, V] the distribution that each node was drawn from."""
    if proposal.q is None:
        return F.one_hot(proposal.tokens, p.shape[2]).to(p.dtype)
    assert proposal.q_index is not None
    return torch.stack([q[i] for q, i in zip(proposal.q, index(proposal.q_index), strict=True)])


def _at(table: Tensor, index: Tensor) -> Tensor:
    return table[torch.arange(len(index)), index]


def eldest_first(parents: list[int]) -> list[int]:
    return list(range(len(parents)))


def youngest_first(parents: list[int]) -> list[int]:
    """Parents before children, but siblings in reverse."""
    depth: list[int] = []
    for parent in parents:
        depth.append(0 if parent < 0 else depth[parent] + 1)
    return sorted(range(len(parents)), key=lambda node: (depth[node], -node))


@dataclass(frozen=True)
class Rejection:
    """Alg. 1 of arXiv:2211.17192 over trees whose rows have the same parents; p and q of equal vocabularies."""

    ratio: Callable[..., Tensor] = lambda left_x, q_x, p_x: torch.where(q_x > 0, left_x / q_x, 0.0)
    residual: Callable[..., Tensor] = lambda left, q, p, x: (left - q).clamp(min=0)
    normalised: bool = True
    q_normalised: bool = True
    law: Callable[[Law], Law] = lambda law: law
    elders: Callable[[list[int]], list[int]] = lambda elders: elders
    q_index: Callable[[Tensor], Tensor] = lambda index: index
    present: Callable[[Tensor], Tensor] = lambda valid: valid
    verified: Callable[[list[int]], list[int]] = eldest_first
    walked: Callable[[list[int]], list[int]] = eldest_first
    reachable: Callable[..., Tensor] = lambda slot, parent: slot == parent + 1
    end: Callable[..., Tensor] = lambda slot, last: slot
    bonus: Callable[..., Tensor] = lambda p, q: p

    def __call__(self, p: Tensor, proposal: Proposal, coins: Coins) -> Acceptance:
        tokens, valid = proposal.tokens, self.present(proposal.valid)
        parents = proposal.parents[0].tolist()
        q = _q_by_node(p, proposal, self.q_index)
        left = list(p.unbind(1))
        left[-1] = self.bonus(left[-1], q[:, -1])
        probs = torch.zeros_like(tokens, dtype=p.dtype)
        done: list[int] = []
        for node in self.verified(parents):
            slot, x, here = parents[node] + 1, tokens[:, node, None], q[:, node]
            if self.law(proposal.law) is Law.WITHOUT_REPLACEMENT:
                for elder in self.elders([n for n in done if parents[n] == parents[node]]):
                    here = torch.where(valid[:, elder, None], here.scatter(1, tokens[:, elder, None], 0.0), here)
                if self.q_normalised:
                    here = here / here.sum(1, keepdim=True)
            prob = self.ratio(left[slot].gather(1, x), here.gather(1, x), p[:, slot].gather(1, x))
            probs[:, node] = prob[:, 0].clamp(max=1)
            rest = self.residual(left[slot], here, p[:, slot], x)
            total = rest.sum(1, keepdim=True)
            rest = torch.where(total == 0, left[slot], rest / total if self.normalised else rest)
            left[slot] = torch.where(valid[:, node, None], rest, left[slot])
            done.append(node)
        accepted = coins.bernoulli(torch.where(valid, probs, 0.0)) & valid
        slot = torch.zeros_like(tokens[:, 0])
        num_accepted = slot
        path = torch.full((len(tokens), proposal.depth + 1), -1)
        for node in self.walked(parents):
            goes = self.reachable(slot, parents[node]) & accepted[:, node] & (num_accepted < proposal.depth)
            path = torch.where(goes[:, None], path.scatter(1, num_accepted[:, None], node), path)
            num_accepted, slot = num_accepted + goes, torch.where(goes, node + 1, slot)
        weights = _at(torch.stack(left, 1), self.end(slot, len(parents)))
        return Acceptance(path[:, :-1], num_accepted, coins.categorical(weights))


def _longest(accepted: Tensor) -> Tensor:
    return (accepted * torch.arange(1, accepted.shape[1] + 1)).amax(1)


@dataclass(frozen=True)
class Block:
    """Alg. 2 of arXiv:2403.10444; p and q of equal vocabularies."""

    ratio: Callable[..., Tensor] = lambda p_x, q_x: p_x / q_x
    joint: Callable[..., Tensor] = lambda before, ratio: (before * ratio).clamp(max=1)
    h: Callable[..., Tensor] = lambda mass, joint: mass / (mass + 1 - joint)
    h_at: Callable[[int], int] = lambda node: node
    length: Callable[[Tensor], Tensor] = lambda valid: valid.sum(1)
    tau: Callable[[Tensor], Tensor] = _longest
    residual: Callable[..., Tensor] = lambda joint, p, q: (joint * p - q).clamp(min=0)
    q_behind: Callable[[int], int] = lambda node: node
    chosen: Callable[..., Tensor] = lambda tau, length: tau
    bonus: Callable[..., Tensor] = lambda tau: tau
    soft: bool = False

    def __call__(self, p: Tensor, proposal: Proposal, coins: Coins) -> Acceptance:
        num_nodes = proposal.num_nodes
        length = self.length(proposal.valid)
        q = _q_by_node(p, proposal, lambda index: index)
        if self.soft and proposal.q is None:
            q = p[:, :-1].nan_to_num()
        joint, residual, h = [torch.ones_like(p[:, 0, :1])], [], []
        for node in range(num_nodes + 1):
            if node:
                x = proposal.tokens[:, node - 1, None]
                joint.append(
                    self.joint(joint[-1], self.ratio(p[:, node - 1].gather(1, x), q[:, node - 1].gather(1, x)))
                )
            behind = q[:, self.q_behind(node)] if node < num_nodes else torch.zeros_like(p[:, 0])
            residual.append(self.residual(joint[-1], p[:, node], behind))
            mass = residual[-1].sum(1, keepdim=True)
            inside = torch.where(mass > 0, self.h(mass, joint[-1]), 0.0)
            h.append(torch.where((length == node)[:, None], joint[-1], inside))
        probs = torch.cat([h[self.h_at(node)] for node in range(1, num_nodes + 1)], 1)
        accepted = coins.bernoulli(torch.where(proposal.valid, probs.clamp(0, 1), 0.0))
        tau = self.tau(accepted & proposal.valid)
        nodes = torch.arange(num_nodes)
        weights = torch.where(
            (tau == length)[:, None], _at(p, self.bonus(tau)), _at(torch.stack(residual, 1), self.chosen(tau, length))
        )
        return Acceptance(torch.where(nodes < tau[:, None], nodes, -1), tau, coins.categorical(weights))
