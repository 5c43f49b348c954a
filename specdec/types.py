"""The data that travels round the loop: what is proposed, what is accepted, what is committed."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from specdec.errors import DrafterError

Compile = bool | Literal["auto"]  # whether steps run as compiled graphs
MAX_NODES = 1024  # of a row's proposal: a window holds them all, and its mask the square of their number


class Law(enum.Enum):
    """How the children of one parent were chosen; decides the acceptance rule's residuals.

    GIVEN: fixed before any of the round's randomness was drawn, or top-k, or retrieved (q one-hot).
    IID: drawn independently from the parent's q.
    WITHOUT_REPLACEMENT: drawn in order from q, each given that it differs from its elder siblings.
    """

    GIVEN = "given"
    IID = "iid"
    WITHOUT_REPLACEMENT = "without_replacement"


@dataclass(frozen=True, slots=True)
class Proposal:
    """A tree of draft tokens per row; a chain is a tree of width 1, plain decoding one of size 0.

    Nodes are numbered parents first. `depth` and `width` are upper bounds that a drafter knows
    without looking at device memory: they size loops, never results.

    Contract of exactness: with `q=None` any choice is exact that does not depend on the verification
    coins. A `q` may be given only where a node's presence and order depend neither on its own token
    nor on later siblings or descendants: dropping a token *after* seeing that it is unlikely is biased.

    Example:
        >>> Proposal.chain(torch.tensor([[5, 7, 9]])).num_nodes
        3
    """

    tokens: Tensor  # [B, N] int64
    parents: Tensor  # [B, N] int64; -1 = child of the root; parents[b, i] < i
    valid: Tensor  # [B, N] bool; False = padding; descendants of an invalid node are invalid
    depth: int  # longest path, N for a chain
    width: int  # most children of one parent, 1 for a chain
    q: Tensor | None = None  # [B, M, Vq] draft distributions, one per expanded parent
    q_index: Tensor | None = None  # [B, N] int64, the row of q that each token was drawn from
    law: Law = Law.GIVEN
    is_whole: bool = False  # all nodes are valid, as the host knows

    @property
    def num_nodes(self) -> int:
        return self.tokens.shape[1]

    @property
    def is_chain(self) -> bool:
        return self.width <= 1

    @property
    def is_row_by_row(self) -> bool:
        """A chain as `Proposal.chain` makes it, as the host knows: node i was drawn from row i of q, if from any."""
        if self.q is None:
            return self.is_chain
        batch_size, num_nodes = self.tokens.shape
        kept = _kept_chain_parts(batch_size, num_nodes, self.tokens.device)
        return self.is_chain and self.q.shape[1] == num_nodes and self.q_index is kept[0]

    @classmethod
    def empty(cls, batch_size: int, device: torch.device) -> Proposal:
        """Nothing to propose: the step is ordinary decoding."""
        none, _, never = (_chain_parts if torch.compiler.is_compiling() else _kept_chain_parts)(batch_size, 0, device)
        return cls(none, none, never, depth=0, width=0, is_whole=True)

    @classmethod
    def chain(cls, tokens: Tensor, valid: Tensor | None = None, q: Tensor | None = None) -> Proposal:
        """A chain per row.

        Args:
            tokens: [B, N] int64.
            valid: [B, N] bool, True on a prefix of each row; all True if omitted.
            q: [B, N, V], the distribution that each token was sampled from; None if the tokens were
                not sampled (argmax, retrieval).
        """
        batch_size, num_nodes = tokens.shape
        parts = _chain_parts if torch.compiler.is_compiling() else _kept_chain_parts
        nodes, parents, everything = parts(batch_size, num_nodes, tokens.device)
        return cls(
            tokens=tokens,
            parents=parents,
            valid=everything if valid is None else valid,
            depth=num_nodes,
            width=min(1, num_nodes),
            q=q,
            q_index=None if q is None else nodes,
            law=Law.GIVEN if q is None else Law.IID,
            is_whole=valid is None,
        )

    def first_chain(self) -> tuple[Proposal, Tensor]:
        """The chain of first children, for a memory that holds one branch only, and its nodes [B, depth] in the tree.

        An eldest child was drawn from its parent's q whatever the law of its siblings is, so q stays right; where it
        is not there the chain ends, since a younger sibling was drawn from what the elder ones had left.
        """
        node = torch.full_like(self.tokens[:, 0], -1)
        is_there = torch.ones_like(node, dtype=torch.bool)
        nodes, valid = [], []
        for _ in range(self.depth):
            is_child = self.parents == node[:, None]
            eldest = is_child.to(torch.int8).argmax(1)  # the first of the largest
            is_there = is_there & is_child.any(1) & self.valid.gather(1, eldest[:, None])[:, 0]
            node = eldest
            nodes.append(node)
            valid.append(is_there)
        path = torch.stack(nodes, 1)
        q_index = None if self.q_index is None else self.q_index.gather(1, path)
        chain = Proposal.chain(self.tokens.gather(1, path), torch.stack(valid, 1))
        law = Law.GIVEN if self.q is None else Law.IID
        return replace(chain, q=self.q, q_index=q_index, law=law), path

    def cut(self, limit: Sequence[int]) -> Proposal:
        """The first limit[b] nodes of row b's chain."""
        if min(limit) >= self.num_nodes:
            return self
        steps = torch.arange(self.num_nodes, device=self.tokens.device)
        valid = self.valid & (steps < torch.tensor(limit, device=self.tokens.device)[:, None])
        return replace(self, valid=valid, is_whole=False)

    def check(self, batch_size: int, device: torch.device | None = None) -> None:
        """Raises DrafterError if shapes, dtypes or devices break the contract; never looks at values.

        Args:
            batch_size: rows that it must have.
            device: where it must be, anywhere if omitted.
        """
        self._check_tensors(device)
        if self.num_nodes > MAX_NODES:
            raise DrafterError(
                f"a proposal of {self.num_nodes} nodes a row: at most {MAX_NODES} can be verified together."
            )
        expected = (batch_size, self.num_nodes)
        for name, dtype in (("tokens", torch.int64), ("parents", torch.int64), ("valid", torch.bool)):
            tensor: Tensor = getattr(self, name)
            if tensor.shape != expected or tensor.dtype != dtype:
                raise DrafterError(
                    f"Proposal.{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; "
                    f"expected {expected} and {dtype}. Build chains with Proposal.chain()."
                )
        bounds = (self.depth, self.width)
        if self.num_nodes and not all(type(b) is int and 1 <= b <= self.num_nodes for b in bounds):
            raise DrafterError(
                f"Proposal.depth={self.depth!r} and width={self.width!r} cannot bound a tree of {self.num_nodes} nodes"
                ": depth is its longest path, width the most children of one parent."
            )
        if (self.q is None) != (self.law is Law.GIVEN) or (self.q is None) != (self.q_index is None):
            raise DrafterError(
                f"a proposal of law {self.law.name} came with q={'given' if self.q is not None else None} and "
                f"q_index={'given' if self.q_index is not None else None}: sampled tokens need q and q_index, "
                "tokens that were not sampled must have neither."
            )
        if self.q_index is not None and (self.q_index.shape != expected or self.q_index.dtype != torch.int64):
            raise DrafterError(f"Proposal.q_index must be int64 {expected}, got {tuple(self.q_index.shape)}.")
        if self.q is None:
            return
        if self.q.dim() != 3 or self.q.shape[0] != batch_size or (self.num_nodes and 0 in self.q.shape):
            raise DrafterError(f"Proposal.q has shape {tuple(self.q.shape)}; expected [{batch_size}, M, V].")
        if not self.q.is_floating_point():
            raise DrafterError(f"Proposal.q holds {self.q.dtype}; probabilities are floats.")

    def _check_tensors(self, device: torch.device | None) -> None:
        """Raises DrafterError for a field that is no tensor, or one elsewhere."""
        for name in ("tokens", "parents", "valid", "q", "q_index"):
            given: Any = getattr(self, name)
            if given is None and name in ("q", "q_index"):
                continue
            if not isinstance(given, Tensor):
                raise DrafterError(f"Proposal.{name} must be a tensor, got {type(given).__name__}.")
            if device is not None and given.device != device:
                raise DrafterError(f"Proposal.{name} is on {given.device}; make it on state.device, {device}.")
        if self.tokens.dim() != 2:
            raise DrafterError(f"Proposal.tokens has shape {tuple(self.tokens.shape)}; expected [B, N].")

    def repaired(self, vocab_size: int, checks_q: bool = True) -> tuple[Proposal, Tensor]:
        """A proposal that no kernel can trip over, and [B] bool: what had to be repaired breaks the contract.

        Works on the device without a sync; the loop reads the flags with the round's outcome. Token ids,
        parents and q_index out of range are clamped, those of a chain are set right; a chain ends at its first invalid
        node, which is no breach; a q that is no distribution, and more siblings than `width`, can only be told.

        Args:
            vocab_size: the target's.
            checks_q: False where the rule looks at q itself (`verify.parts`): this reads all of it.
        """
        if self.num_nodes == 0:
            return self, torch.zeros(self.tokens.shape[0], dtype=torch.bool, device=self.tokens.device)
        nodes = torch.arange(self.num_nodes, device=self.tokens.device)
        tokens = self.tokens.clamp(0, vocab_size - 1)
        if self.is_chain:
            parents, valid = (nodes - 1).expand_as(self.parents), self.valid.cumprod(1).bool()
        else:
            parents, valid = torch.minimum(self.parents.clamp(min=-1), nodes - 1), self.valid
        broken = ((tokens != self.tokens) | (parents != self.parents)) & valid
        if not self.is_chain:
            # A sibling too many would be lost, and what was drawn after it judged by a wrong law.
            siblings = (parents[:, :, None] == parents[:, None, :]) & valid[:, None, :]
            broken = broken | ((siblings.sum(2) > self.width) & valid)
        q_index = self.q_index
        if self.q is not None and q_index is not None:
            q_index = q_index.clamp(0, self.q.shape[1] - 1)
            broken = broken | ((q_index != self.q_index) & valid)
            if checks_q:
                tolerance = q_tolerance(self.q)
                fair = (self.q >= 0).all(-1) & ((self.q.sum(-1) - 1).abs() < tolerance)  # [B, M]; NaN is not
                broken = broken | (~fair.gather(1, q_index) & valid)
        return replace(self, tokens=tokens, parents=parents, valid=valid, q_index=q_index), broken.any(1)


def q_tolerance(q: Tensor) -> float:
    """How far the sum of a distribution may be from 1 in q's dtype."""
    return 2e-2 if q.dtype in (torch.bfloat16, torch.float16) else 1e-3


def int_tensor(values: Sequence[Any], device: torch.device) -> Tensor:
    """Nested lists of integers as int64: on the CPU a few times as fast as torch.tensor, on a GPU without waiting."""
    return torch.from_numpy(np.array(values, dtype=np.int64)).to(device, non_blocking=device.type == "cuda")


def _chain_parts(batch_size: int, num_nodes: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, parents and validity [B, N] of whole chains; never written to."""
    nodes = torch.arange(num_nodes, device=device).expand(batch_size, num_nodes)
    return nodes, nodes - 1, torch.ones(batch_size, num_nodes, dtype=torch.bool, device=device)


_kept_chain_parts = lru_cache(maxsize=64)(_chain_parts)  # four operations a round less


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What verification decided. All on the target's device."""

    path: Tensor  # [B, D] int64, accepted nodes from the root down, -1 padded
    num_accepted: Tensor  # [B] int64
    next_token: Tensor  # [B] int64, the recovered or bonus token; -1 if p was not a distribution

    def cut(self, proposal: Proposal, most: Tensor) -> Acceptance:
        """The same, ended after `most` accepted tokens ([B] or scalar int64) of a chain at the latest.

        A row that accepted more commits one of them as its next token. The output's law stays the target's if `most`
        does not depend on the row's own tokens: the beginning of an output with that law has it, too.
        """
        if proposal.num_nodes == 0:
            return self
        num_accepted = torch.minimum(self.num_accepted, most)
        depth = self.path.shape[1]
        drafted = proposal.tokens.gather(1, self.path.clamp(min=0))
        beyond = drafted.gather(1, num_accepted.clamp(max=depth - 1)[:, None])[:, 0]
        is_kept = torch.arange(depth, device=self.path.device) < num_accepted[:, None]
        next_token = torch.where(self.num_accepted > num_accepted, beyond, self.next_token)
        return Acceptance(torch.where(is_kept, self.path, -1), num_accepted, next_token)

    def tokens(self, proposal: Proposal) -> Tensor:
        """The committed tokens [B, D + 1]: accepted ones, then next_token; what follows is undefined."""
        if proposal.num_nodes == 0:
            return self.next_token[:, None]
        accepted = proposal.tokens.gather(1, self.path.clamp(min=0))
        out = torch.cat([accepted, self.next_token[:, None]], dim=1)
        return out.scatter(1, self.num_accepted[:, None], self.next_token[:, None])
