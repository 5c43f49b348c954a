"""The rejection rule of a chain over a large vocabulary, in parts: each row is read once, up to where it stops.

`rules.rejection` takes distributions of all positions at once. Over 128 thousand tokens those are hundreds of megabytes
of float32, written and read again by every operation, and most of them lie behind a row's first rejection. Here a few
rows of logits at a time become distributions that stay in the processor's cache: the drafted token's probability is
taken, its coin is flipped, and a row that stops draws its next token from what is still there. A row that goes on does
so at the next position. Nothing of size [B, N + 1, V] is made.

The arithmetic of a row is that of `rules.rejection`, so that the same coins give the same tokens. The host decides who
goes on, which on a GPU would be a sync a position: `verify.kernels` is the form for those. Greedy rounds have nothing
to gain: their one pass is an argmax (`blocks.largest`), and rows that go on would have to be copied together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.types import Acceptance, Proposal, q_tolerance
from specdec.verify.coins import PartCoins
from specdec.verify.rules import widened
from specdec.verify.tree import accepted_prefix

Probs = Callable[[Tensor], Tensor]  # logits [R, n, V] -> their distributions, row by row
_PART = 1 << 19  # numbers worked on at a time: 2 MB of float32


def rejection_in_parts(logits: Tensor, proposal: Proposal, coins: PartCoins, probs: Probs) -> tuple[Acceptance, Tensor]:
    """`rules.rejection` of a chain (Alg. 1 of arXiv:2211.17192), from logits.

    Args:
        logits: [B, N + 1, V] in the dtype that the model gave; what lies behind a row's end is not looked at.
        proposal: a chain, sampled (q [B, M, Vq]) or given. Its q need not have been checked.
        coins: where every random choice comes from, asked part by part.
        probs: the call's processors and softmax.

    Returns:
        What is accepted; and [B] bool, rows where a q that was looked at is no distribution. One behind the row's first
        rejection had no say, and is not looked at.

    Example:
        >>> from specdec.verify import KeyedCoins
        >>> logits = torch.tensor([[[0.0, 9.0, 0.0], [9.0, 0.0, 0.0]]])
        >>> coins = KeyedCoins(0, torch.tensor([0]), torch.tensor([5]))
        >>> chain = Proposal.chain(torch.tensor([[1]]))
        >>> rejection_in_parts(logits, chain, coins, lambda x: x.softmax(-1))[0].tokens(chain).tolist()
        [[1, 0]]
    """
    batch_size, num_nodes = proposal.tokens.shape
    tolerance = 0.0 if proposal.q is None else q_tolerance(proposal.q)
    judge = _Judge(logits, proposal, proposal.valid.cumprod(1).bool(), coins, probs, tolerance)
    found = _Found.nothing(proposal)
    going, first = list(range(batch_size)), 0
    while going:
        # Each thread has a row of its own, so that one row alone looks at several positions at once.
        last = min(first + max(1, torch.get_num_threads() // len(going)), num_nodes + 1)
        size = max(torch.get_num_threads(), _PART // ((last - first) * logits.shape[2]))
        parts = [going[at : at + size] for at in range(0, len(going), size)]
        going = [row for part in parts for row in judge.part(part, first, last, found)]
        first = last
    return found.acceptance(num_nodes), found.unfair


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known about each row; written as rows stop."""

    num_accepted: Tensor  # [B] int64
    next_token: Tensor  # [B] int64
    unfair: Tensor  # [B] bool

    @classmethod
    def nothing(cls, proposal: Proposal) -> _Found:
        batch_size, device = proposal.tokens.shape[0], proposal.tokens.device
        zeros = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return cls(zeros, zeros - 1, torch.zeros(batch_size, dtype=torch.bool, device=device))

    def stop(self, rows: Tensor, num_accepted: Tensor, next_token: Tensor) -> None:
        self.num_accepted[rows] = num_accepted
        self.next_token[rows] = next_token

    def acceptance(self, num_nodes: int) -> Acceptance:
        steps = torch.arange(num_nodes, device=self.num_accepted.device)
        path = torch.where(steps < self.num_accepted[:, None], steps, -1)
        return Acceptance(path, self.num_accepted, self.next_token)


@dataclass(frozen=True, slots=True)
class _Judge:
    """Judges some rows' drafted tokens at some positions."""

    logits: Tensor  # [B, N + 1, V]
    proposal: Proposal
    valid: Tensor  # [B, N] bool
    coins: PartCoins
    probs: Probs
    tolerance: float  # of a sum of q

    def part(self, going: Sequence[int], first: int, last: int, found: _Found) -> list[int]:
        """Positions first..last-1 of the rows `going`: writes down those that stop, returns the others."""
        rows = torch.tensor(going, device=self.logits.device)
        tokens, valid = self.proposal.tokens[rows, first:last], self.valid[rows, first:last]
        p, q = widened(self.probs(_taken(self.logits, going, first, last)), self._q(going, first, last))
        p_x = _at(p[:, : tokens.shape[1]], tokens)
        if q is None:
            ratio = p_x
        else:
            found.unfair[rows] |= (valid & ~_is_fair(q, self.tolerance)).any(1)
            q_x = _at(q, tokens)
            ratio, valid = p_x / q_x, (valid & (q_x > 0)).cumprod(1).bool()  # what q could not draw ends the chain
        count = torch.zeros_like(rows)
        if tokens.shape[1]:
            accepted = self.coins.bernoulli(torch.where(valid, ratio.clamp(max=1.0), 0.0), rows, first)
            count = accepted_prefix(accepted & valid)[1]
        stops = (count < last - first).nonzero()[:, 0]
        ended = (count == valid.sum(1))[stops]  # nothing failed: the bonus token comes from p
        for part, failed in ((stops[ended], False), (stops[~ended], True)):
            if len(part):
                at = count[part]
                weights = _places(p, part, at)
                if failed:
                    other = tokens[part].gather(1, at[:, None]) if q is None else _places(q, part, at)
                    weights = _left(weights, other, is_given=q is None)
                found.stop(rows[part], first + at, self.coins.categorical(weights, rows[part]))
        stopped = set(stops.tolist())
        return [row for i, row in enumerate(going) if i not in stopped]

    def _q(self, going: Sequence[int], first: int, last: int) -> Tensor | None:
        """[R, n, Vq] what the rows' nodes first..last-1 were drawn from, as far as there are nodes."""
        q, q_index = self.proposal.q, self.proposal.q_index
        if q is None:
            return None
        assert q_index is not None
        index = q_index[:, first:last].tolist()
        nodes = list(range(first, min(last, self.proposal.num_nodes)))
        if all(index[row] == nodes for row in going):
            return _taken(q, going, first, first + len(nodes))
        return torch.stack([q[row, index[row]] for row in going])


def _taken(table: Tensor, rows: Sequence[int], first: int, last: int) -> Tensor:
    """table[rows, first:last]; a view where the rows are neighbours, else one copy of each of them."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return table[rows[0] : rows[-1] + 1, first:last]
    return torch.stack([table[row, first:last] for row in rows])


def _at(table: Tensor, tokens: Tensor) -> Tensor:
    """table [R, n, V] at tokens [R, n]."""
    return table.gather(2, tokens[:, :, None]).squeeze(2)


def _places(table: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    """table [R, n, V] at (rows, at) [S] -> [S, V]."""
    if table.shape[1] == 1 and len(rows) == len(table):
        return table[:, 0]
    return torch.stack([table[row, place] for row, place in zip(rows.tolist(), at.tolist(), strict=True)])


def _left(here: Tensor, other: Tensor, is_given: bool) -> Tensor:
    """What a rejection leaves of p [S, V]: norm(max(p - q, 0)), or p without the token [S, 1] that was given."""
    # Without a token NaN stays NaN.
    rest = here.scatter(1, other, here.gather(1, other) * 0) if is_given else (here - other).clamp_(min=0.0)
    total = rest.sum(-1, keepdim=True)
    is_left = total > 0  # else r = q, where p is the answer, as in `rules`
    rest = rest.div_(total)
    return rest if bool(is_left.all()) else torch.where(is_left, rest, here)


def _is_fair(q: Tensor, tolerance: float) -> Tensor:
    """[R, n] is q [R, n, V] a distribution? NaN is not."""
    return (q.amin(-1) >= 0) & ((q.sum(-1) - 1).abs() < tolerance)
