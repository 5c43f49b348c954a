"""Processes that hold one model's shards (tensor parallelism): rank 0 decides, and tells the others.

Every rank makes the same call, and every sharded forward needs all of them. What they would decide for themselves may
differ: the last bits of logits, clocks, seeds, a drafter's mind. So the loop's decisions are rank 0's: they are made
known at a *meeting*, one small sum over the ranks. All meetings have one form, whatever they are about, so that a rank
that has failed can come to the next one and say so: nobody waits for it in vain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from specdec.errors import InputError, OptionError, RankError
from specdec.types import Acceptance, Proposal, int_tensor

_INLINE = 64  # integers that a meeting carries; what is longer follows in a second message


class Ranks:
    """The processes that share a model, as one of them sees them.

    Args:
        group: a process group of torch.distributed.
        device: where messages must be for the group's backend.

    Attributes:
        rank: this one's place in the group.
        size: how many there are.
    """

    def __init__(self, group: Any, device: torch.device) -> None:
        self._group = group
        self._device = device
        self.rank: int = torch.distributed.get_rank(group)
        self.size: int = torch.distributed.get_world_size(group)
        self._is_lost = False  # the connection is

    @property
    def leads(self) -> bool:
        """Is this the rank that decides?"""
        return self.rank == 0

    def meets_same(self, other: Ranks) -> bool:
        """Are these the same processes?"""
        ours, theirs = (torch.distributed.get_process_group_ranks(r._group) for r in (self, other))
        return ours == theirs

    def meet(self, said: Tensor) -> Tensor:
        """What rank 0 says: int64 [N]. All ranks must come; what the others bring is not looked at.

        Raises:
            RankError: a rank came to say that it has failed.
        """
        head = self._blank()
        if self.leads:
            head[self.size] = said.numel()
            head[self.size + 1 : self.size + 1 + said.numel()] = said[:_INLINE]
        failed, num = self._sum(head)
        if failed:
            names = " and ".join(map(str, failed))
            raise RankError(
                f"rank {names} of the {self.size} that share the model failed in this call, so that it cannot go on "
                f"here either. The error that rank {names} raised says why."
            )
        inline = head[self.size + 1 : self.size + 1 + num]
        if num <= _INLINE:
            return inline
        rest = said[_INLINE:].to(self._device) if self.leads else head.new_empty(num - _INLINE)
        return torch.cat([inline, self.lead(rest)])

    def agree(self, values: Sequence[int]) -> list[int]:
        """Rank 0's integers (of which the others bring as many)."""
        agreed: list[int] = self.meet(int_tensor(list(values), self._device)).tolist()
        return agreed

    def settle(self, flags: Sequence[bool]) -> list[bool]:
        """Rank 0's answers."""
        return [bool(flag) for flag in self.agree(list(flags))]

    def lead(self, tensor: Tensor) -> Tensor:
        """Rank 0's values of a tensor that all ranks have, in shape and dtype; nobody can fail in between."""
        shared = tensor.to(self._device).contiguous()
        try:
            torch.distributed.broadcast(shared, group=self._group, group_src=0)
        except BaseException:
            self._is_lost = True
            raise
        return shared.to(tensor.device)

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """A call that all ranks make: one that raises says so at the others' next meeting, at the latest the last."""
        try:
            yield
            self.agree([])
        except RankError:
            raise
        except BaseException as error:
            if not getattr(error, "specdec_is_told", False):  # by a call inside this one
                with suppress(AttributeError):
                    error.specdec_is_told = True  # type: ignore[attr-defined]
                self._fail()
            raise

    def check_same(self, prompt: Sequence[Tensor], options: Sequence[object]) -> None:
        """A call's first meeting: is it one call?

        Args:
            prompt: what must be the same on all ranks: ids and mask.
            options: likewise, with a `repr` that tells them apart.

        Raises:
            InputError, OptionError: this rank makes another call than rank 0.
        """
        own = [_digest(*(t.cpu().numpy().tobytes() for t in prompt)), _digest(repr(list(options)).encode())]
        first = self.agree(own)
        if first[0] != own[0]:
            raise InputError(
                f"rank {self.rank} was given another prompt than rank 0. The ranks that share a model decode the same "
                "prompts together: give each of them the same input."
            )
        if first[1] != own[1]:
            raise OptionError(
                f"rank {self.rank} was given other options than rank 0 (drafter, lengths, do_sample). The ranks that "
                "share a model make one call together: give each of them the same arguments."
            )

    def share_proposal(self, proposal: Proposal) -> Proposal:
        """Rank 0's proposal; without q on the others, which do not judge it."""
        batch_size = proposal.tokens.shape[0]
        tables = [proposal.tokens, proposal.parents, proposal.valid]
        shape = [proposal.num_nodes, proposal.depth, proposal.width, proposal.is_whole]
        said = torch.cat([int_tensor(shape, proposal.tokens.device), *(t.flatten().long() for t in tables)])
        heard = self.meet(said).to(proposal.tokens.device)
        if self.leads:
            return proposal
        nodes, depth, width, is_whole = heard[:4].tolist()
        tokens, parents, valid = heard[4:].view(3, batch_size, nodes)
        return Proposal(tokens, parents, valid.bool(), depth=depth, width=width, is_whole=bool(is_whole))

    def share_acceptance(self, acceptance: Acceptance, broken: Tensor) -> tuple[Acceptance, Tensor]:
        """Rank 0's verdict: what was accepted, and which rows [B] broke the drafter's contract."""
        columns = [acceptance.num_accepted, acceptance.next_token, broken]
        said = torch.cat([acceptance.path, *(c.long()[:, None] for c in columns)], dim=1)
        heard = self.meet(said.flatten()).view(said.shape).to(said.device)
        *path, num_accepted, next_token, repaired = heard.unbind(1)
        paths = torch.stack(path, 1) if path else acceptance.path
        return replace(acceptance, path=paths, num_accepted=num_accepted, next_token=next_token), repaired.bool()

    def _fail(self) -> None:
        """Tells the others, who are on their way to a meeting."""
        if self._is_lost:
            return
        head = self._blank()
        head[self.rank] = 1
        with suppress(RuntimeError):  # what has gone wrong here is the news
            self._sum(head)

    def _blank(self) -> Tensor:
        """A flag for each rank, the message's length, the message."""
        return torch.zeros(self.size + 1 + _INLINE, dtype=torch.int64, device=self._device)

    def _sum(self, head: Tensor) -> tuple[list[int], int]:
        """Adds up all ranks' heads; the ranks that have failed, and the message's length."""
        try:
            torch.distributed.all_reduce(head, group=self._group)
        except BaseException:
            self._is_lost = True
            raise
        *flags, num = head[: self.size + 1].tolist()
        return [rank for rank, flag in enumerate(flags) if flag], num


def ranks_of(model: nn.Module) -> Ranks | None:
    """The processes that share a model which transformers has sharded; None for one that is whole here.

    Example:
        >>> ranks_of(torch.nn.Linear(1, 1)) is None
        True
    """
    found: Any = model
    if (getattr(found, "_tp_size", None) or 1) < 2:
        return None
    mesh = found._device_mesh
    names = mesh.mesh_dim_names or ()
    device = torch.device(mesh.device_type)  # the process's own, where there are several
    return Ranks(mesh.get_group("tp") if "tp" in names else mesh.get_group(), device)


def _digest(*parts: bytes) -> int:
    """64 bits that tell byte strings apart."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(digest.digest(), "little", signed=True)
