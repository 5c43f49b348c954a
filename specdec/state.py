"""The tokens of a call as they grow: what every drafter may look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specdec.cache import RollbackCache
from specdec.prompt import Encoded, left_aligned
from specdec.sampling import Prefixes, Sampler
from specdec.stats import GraphUse
from specdec.target import ModelRunner
from specdec.types import Compile, Proposal, int_tensor
from specdec.verify.coins import KeyedCoins

HOST = torch.device("cpu")


class DecodeState:
    """Committed tokens of the unfinished rows, on the device and on the host.

    Args:
        prompt: [B, P] int64, what processors and stopping criteria see in front of the output: the prompt as the user
            gave it, padding included.
        ids: [B, T] int64, the tokens that the model sees, padding included; the same tensor in most calls.
        mask: [B, T] bool, False on padding.
        max_tokens: most tokens a row will ever hold, padding not counted.
        vocab_size: the target's; no token at or above it may be proposed.
        sampler: how logits become the call's distribution; drafters sample through it as well.
        seed: of the call's coins; None when greedy.

    Attributes:
        tokens: [B, C] int64 on the device, without padding in front, right-padded; see `lengths`.
        lengths: [B] int64 on the device.
        host_tokens: the same tokens as lists, one per row.
        requests: [B] int64, each row's index in the user's batch.
        prompt: [requests, P], all of them, also of rows that have left.
        encoded: what the target's encoder made of its input, of all requests; None for decoder-only targets.
        compile: whether models run as compiled graphs in this call.
        graphs: which of them do.
        draft_stream: which of several drafters draws now: none's tokens may say anything about another's.
        max_new_tokens: most that a row may still become.
        target: runs the target; for drafters that use its layers.
        cache: the target's, from the first proposal on. A drafter may open windows on it and must commit none: what
            it writes behind `seen` is free.
        seen: the tokens of each row that the cache covers, as the host knows.
    """

    def __init__(
        self,
        prompt: Tensor,
        ids: Tensor,
        mask: Tensor,
        max_tokens: int,
        vocab_size: int,
        sampler: Sampler,
        seed: int | None,
    ) -> None:
        device = ids.device
        rows = ids.tolist()
        keep = mask.tolist()
        self.host_tokens = [[t for t, k in zip(r, m, strict=True) if k] for r, m in zip(rows, keep, strict=True)]
        self.prompt_lengths = [len(r) for r in self.host_tokens]
        capacity = max(max_tokens, max(self.prompt_lengths)) + 1
        self._tokens = torch.zeros(len(rows), capacity, dtype=torch.int64, device=device)
        self._lengths = torch.tensor(self.prompt_lengths, device=device)
        packed = left_aligned(ids, mask)
        behind = torch.arange(packed.shape[1], device=device) >= self._lengths[:, None]
        self._tokens[:, : packed.shape[1]] = packed.masked_fill(behind, 0)
        self._unwritten: list[Callable[[], tuple[Tensor, Tensor]]] = []  # rounds that nobody has asked about yet
        self.requests = torch.arange(len(rows), device=device)
        self.host_requests = list(range(len(rows)))
        longest = max(self.prompt_lengths)
        self._host_offsets = [longest - n for n in self.prompt_lengths]
        self._offsets = longest - self._lengths
        self.vocab_size = vocab_size
        self.sampler = sampler
        self.seed = seed
        self._coins: KeyedCoins | None = None
        self._names: tuple[Tensor, Tensor, Tensor] | None = None
        self.draft_stream = 0
        self.prompt = prompt
        self.encoded: Encoded | None = None
        self.compile: Compile = False
        self.graphs = GraphUse()
        self.max_new_tokens = 0
        self.target: ModelRunner | None = None
        self.cache: RollbackCache | None = None
        self.seen: Sequence[int] = [0] * len(rows)

    @property
    def batch_size(self) -> int:
        return len(self.host_tokens)

    @property
    def device(self) -> torch.device:
        return self._tokens.device

    @property
    def tokens(self) -> Tensor:
        self._write()
        return self._tokens

    @property
    def lengths(self) -> Tensor:
        self._write()
        return self._lengths

    @property
    def host_lengths(self) -> list[int]:
        return [len(r) for r in self.host_tokens]

    def offsets(self, level: bool) -> Tensor | None:
        """[B] int64, the slot of each row's first token where rows must be level; None where that is slot 0."""
        return self._offsets if level and any(self._host_offsets) else None

    def ends(self, level: bool) -> Tensor:
        """[B] int64, the slot behind each row's last token."""
        offsets = self.offsets(level)
        return self.lengths if offsets is None else self.lengths + offsets

    def host_ends(self, level: bool) -> list[int]:
        """The same on the host."""
        if not level:
            return self.host_lengths
        return [len(r) + o for r, o in zip(self.host_tokens, self._host_offsets, strict=True)]

    def coins(self) -> KeyedCoins:
        """This round's coins: keyed by request and committed length."""
        assert self.seed is not None
        if self._coins is None:
            requests, lengths = int_tensor(self.host_requests, HOST), int_tensor(self.host_lengths, HOST)
            self._coins = KeyedCoins(self.seed, requests, lengths, self.device)
        self._coins.stream = self.draft_stream
        return self._coins

    def coin_names(self) -> tuple[Tensor, Tensor, Tensor]:
        """What names this round's coins to a compiled graph: the seed [1], each row's request [B] and length [B]."""
        assert self.seed is not None
        if self._names is None:
            seed, lengths = int_tensor([self.seed], self.device), int_tensor(self.host_lengths, self.device)
            self._names = seed, self.requests, lengths
        return self._names

    def extend(self, new: Tensor, num_new: Tensor, host_new: Sequence[Sequence[int]]) -> None:
        """Appends num_new [B] of new [B, D + 1] to each row; host_new are the same tokens on the host."""
        self._extend(lambda: (new, num_new), host_new)

    def extend_by(self, outcome: Tensor, host_new: Sequence[Sequence[int]]) -> None:
        """Appends a round's tokens: outcome [B, 3 + D + 1] int64, [:, 1] accepted ones, [:, 3:] the tokens."""
        self._extend(lambda: (outcome[:, 3:], outcome[:, 1] + 1), host_new)

    def _extend(self, new: Callable[[], tuple[Tensor, Tensor]], host_new: Sequence[Sequence[int]]) -> None:
        self._unwritten.append(new)  # compiled rounds ask for none of it
        self._coins = self._names = None
        for row, values in zip(self.host_tokens, host_new, strict=True):
            row.extend(values)

    def _write(self) -> None:
        """Brings the device's tokens up to date."""
        for unwritten in self._unwritten:
            new, num_new = unwritten()
            steps = torch.arange(new.shape[1], device=self.device)
            last = self._tokens.shape[1] - 1
            where = (self._lengths[:, None] + steps).clamp(max=last)
            # Clamped writes may collide in the last column, which no row's length ever reaches.
            where = torch.where(steps < num_new[:, None], where, last)
            self._tokens.scatter_(1, where, new)
            self._lengths = self._lengths + num_new
        self._unwritten.clear()

    def select_rows(self, rows: Sequence[int], index: Tensor) -> None:
        """Keeps the given rows, in that order; index is the same on the device."""
        if rows:
            self._write()
        self._unwritten.clear()
        self._tokens, self._lengths, self.requests = self._tokens[index], self._lengths[index], self.requests[index]
        self._offsets, self._host_offsets = self._offsets[index], [self._host_offsets[r] for r in rows]
        self._coins = self._names = None
        self.host_tokens = [self.host_tokens[r] for r in rows]
        self.prompt_lengths = [self.prompt_lengths[r] for r in rows]
        self.host_requests = [self.host_requests[r] for r in rows]

    def prefixes(self, proposal: Proposal, is_final: bool = False) -> Prefixes | None:
        """The tokens before every node's successor (root first), padding included; None if no processor asks.

        Args:
            is_final: the proposal will be verified as it is, so that constraints need to know its invalid nodes.
        """
        if not self.sampler.needs_prefix:
            return None
        chain = proposal.is_chain
        parents = None if chain else proposal.parents.tolist()
        valid = None
        if is_final and self.sampler.by_depth and proposal.num_nodes:
            valid = proposal.valid.tolist()
            self.sampler.host_reads += 1
        out, tokens = [], self.tokens
        for row, request in enumerate(self.host_requests):
            new = tokens[row, self.prompt_lengths[row] : len(self.host_tokens[row])]
            paths: list[Tensor] = [torch.cat([self.prompt[request], new])]
            for node in range(proposal.num_nodes):
                parent = node - 1 if parents is None else parents[row][node]
                paths.append(torch.cat([paths[parent + 1], proposal.tokens[row, node : node + 1]]))
            out.append(paths)
        return Prefixes(out, self.host_requests, parents, valid)
