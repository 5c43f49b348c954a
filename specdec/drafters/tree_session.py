"""One call's drafting of trees: a depth at a time, one forward of the draft each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.compiled import CompiledRunner
from specdec.drafters.branches import Branches
from specdec.drafters.model import ModelSession
from specdec.drafters.planning import Planner
from specdec.drafters.plans import NEVER, Candidates, Plan
from specdec.prompt import PromptInputs
from specdec.sampling import Prefixes
from specdec.state import DecodeState
from specdec.target import ModelRunner
from specdec.types import Acceptance, Proposal


class TreeSession(ModelSession):
    """Grows each round's tree on the draft's own cache, and moves the accepted path to its place there.

    The draft's tokens of a tree stand in one window behind the committed text. Behind an accepted path the last node
    may never have been fed: it is fed with the next round's first forward, like the token that the target chose.

    Args:
        planner: which tree grows.
    """

    observes = "acceptance"

    def __init__(
        self,
        runner: ModelRunner,
        state: DecodeState,
        prompt: PromptInputs | None,
        planner: Planner,
        min_confidence: float = 0.0,
    ) -> None:
        super().__init__(runner, state, prompt, min_confidence)
        self._planner = planner
        # A graph lets a window look at everything before its first slot: all nodes are fed again at each depth.
        self._feeds_all = isinstance(runner, CompiledRunner)
        self._floor = math.log(min_confidence) if min_confidence else None
        self._places = torch.zeros(state.batch_size, 0, dtype=torch.int64)  # [B, N] each node's among the fed ones

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        depth = self._depth(state, limit)
        if depth <= 0:
            return Proposal.empty(state.batch_size, state.device)
        plan = self._planner.plan(state, limit, depth)
        logits = self._begin(state)[:, None]
        self._commit([0] * state.batch_size, torch.zeros_like(self._pending))
        grown = _Grown(state)
        branches, values = grown.branches, torch.zeros(logits.shape[:2], device=state.device)
        for level in range(1, plan.depth + 1):
            new = plan.children(self._path_scores(state, logits, branches, values), values, level)
            if self._floor is not None:
                new = new.above(self._floor)
                if not bool((new.values != NEVER).any()):  # a host read
                    break
            first = len(branches)
            grown.add(new)
            if new.fed.shape[1] == 0:
                break
            values = new.values.gather(1, new.fed)
            window = branches.window(state.lengths, self._lengths, 0 if self._feeds_all else first)
            logits = self._forward(state, window, keep=new.fed.shape[1])
        if not grown.depth:
            return Proposal.empty(state.batch_size, state.device)
        proposal, self._places = grown.proposal(plan)
        return proposal

    def observe(self, proposal: Proposal, acceptance: Acceptance, num_accepted: Sequence[int]) -> None:
        if proposal.num_nodes == 0:
            return
        self._planner.learn(acceptance)
        # All but the last accepted node had a child, and so were fed; the last one may not have been.
        kept = [max(a - 1, 0) for a in num_accepted]
        steps = torch.arange(max(kept), device=acceptance.path.device)
        num_kept = (acceptance.num_accepted - 1).clamp(min=0)
        places = self._places.gather(1, acceptance.path[:, : max(kept)].clamp(min=0))
        self._cache.commit(num_kept, torch.where(steps < num_kept[:, None], places, -1))
        self._seen = [n + k for n, k in zip(self._lengths, kept, strict=True)]

    def _path_scores(self, state: DecodeState, logits: Tensor, branches: Branches, values: Tensor) -> Tensor:
        """The draft's scores [B, F, V] behind the newest depth, each under the processors on its own path."""
        sampler = state.sampler
        if not sampler.needs_prefix:
            return sampler.scores(logits, None)
        prefixes = state.prefixes(Proposal.empty(state.batch_size, state.device))
        assert prefixes is not None
        if not len(branches):
            return sampler.scores(logits, prefixes)
        # Constraints may have no answer for a text that they forbid: only nodes that are there are asked about.
        there = (values != NEVER).nonzero().tolist()
        sampler.host_reads += 1
        scores = torch.full_like(logits, NEVER, dtype=torch.float32)
        if not there:
            return scores
        paths = torch.stack(branches.path, 2)
        leaves = [[torch.cat([prefixes.paths[row][0], paths[row, node]])] for row, node in there]
        rows, nodes = torch.tensor(there, device=logits.device).unbind(1)
        requests = [prefixes.requests[row] for row, _ in there]
        scores[rows, nodes] = sampler.scores(logits[rows, nodes][:, None], Prefixes(leaves, requests))[:, 0]
        return scores


class _Grown:
    """The candidates so far, numbered as they came."""

    def __init__(self, state: DecodeState) -> None:
        self.branches = Branches(state.batch_size, state.device)
        self.depth = 0
        self._tokens: list[Tensor] = []
        self._parents: list[Tensor] = []
        self._values: list[Tensor] = []
        self._places: list[Tensor] = []  # [B, C] each candidate's number among the fed ones, -1 = not fed
        self._above: Tensor | None = None  # [B, F] the numbers of the candidates that were fed last
        self._size = 0

    def add(self, new: Candidates) -> None:
        """One more depth; those that are fed become branches."""
        self.depth += 1
        parents = torch.full_like(new.parents, -1) if self._above is None else self._above.gather(1, new.parents)
        first, num_fed = len(self.branches), new.fed.shape[1]
        places = torch.full_like(new.parents, -1)
        numbers = torch.arange(first, first + num_fed, device=places.device).expand(len(places), -1)
        self._places.append(places.scatter(1, new.fed, numbers))
        self._tokens.append(new.tokens)
        self._parents.append(parents)
        self._values.append(new.values)
        if num_fed:
            self.branches.add(new.tokens.gather(1, new.fed), new.parents.gather(1, new.fed))
        self._above = new.fed + self._size
        self._size += new.tokens.shape[1]

    def proposal(self, plan: Plan) -> tuple[Proposal, Tensor]:
        """What is proposed, and each node's number among the fed ones [B, N]."""
        tokens, parents, values, places = (
            torch.cat(parts, 1) for parts in (self._tokens, self._parents, self._values, self._places)
        )
        law, q, q_index = plan.drawn(self.depth)
        chosen = plan.nodes(values)
        if chosen is not None:
            nodes = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)
            number = torch.full_like(parents, -1).scatter(1, chosen, nodes)
            parents = parents.gather(1, chosen)
            parents = torch.where(parents < 0, -1, number.gather(1, parents.clamp(min=0)))
            tokens, values, places = (t.gather(1, chosen) for t in (tokens, values, places))
        size = tokens.shape[1]
        # A draft that makes no numbers is told so by the loop.
        tokens = torch.where(values.isnan(), -1, tokens)
        proposal = Proposal(
            tokens,
            parents,
            valid=values != NEVER,
            depth=min(self.depth, size),
            width=min(plan.width, size),
            q=q,
            q_index=q_index,
            law=law,
        )
        return proposal, places
