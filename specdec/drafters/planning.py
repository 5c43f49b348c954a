"""Which tree a session grows next: a given shape, the best shape for what was accepted so far, or as the draft goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from specdec.drafters.plans import DynamicPlan, Plan, SampledPlan, StaticPlan
from specdec.drafters.shapes import Shape, optimal_tree
from specdec.state import DecodeState
from specdec.types import Acceptance, Law


class Planner:
    """One session's choice of trees."""

    def plan(self, state: DecodeState, limit: Sequence[int], depth: int) -> Plan:
        """The plan of a round, at most `depth` deep, limit[b] in row b."""
        raise NotImplementedError

    def learn(self, acceptance: Acceptance) -> None:
        """What became of the last plan's tree."""


class DynamicPlanner(Planner):
    """See `DynamicPlan`."""

    def __init__(self, num_nodes: int, expand: int | None, branch: int) -> None:
        self._num_nodes, self._expand, self._branch = num_nodes, expand, branch

    def plan(self, state: DecodeState, limit: Sequence[int], depth: int) -> Plan:
        return DynamicPlan(self._num_nodes, self._expand, self._branch, limit, depth, state.device)


class ShapePlanner(Planner):
    """Shapes that are fixed before a round.

    Args:
        shape: the one to use, by the depth that is allowed.
        law: how children are chosen when the call samples; GIVEN are the likeliest.
    """

    def __init__(self, shape: Callable[[int], Shape], law: Law = Law.GIVEN) -> None:
        self._shape, self._law = shape, law

    def plan(self, state: DecodeState, limit: Sequence[int], depth: int) -> StaticPlan:
        shape = self._shape(depth)
        if self._law is Law.GIVEN or not state.sampler.do_sample:
            return StaticPlan(shape, limit, state.device)
        return SampledPlan(shape, limit, state, self._law)


_PRIOR_VISITS = 6.0  # that are imagined before the first
_PRIOR = (0.55, 0.3)  # acceptance of rank 0, and each next rank's share of the one before
_ROUNDS = 8  # between two looks at the counts, each a host read


class LearningPlanner(ShapePlanner):
    """Optimal trees for the acceptance by rank that this session has measured so far.

    A shape follows from earlier rounds only, and this round's coins are independent of those: it stays exact.

    Args:
        num_nodes: of a tree.
        num_ranks: children that one parent may get.
    """

    def __init__(self, num_nodes: int, num_ranks: int, law: Law, device: torch.device) -> None:
        super().__init__(self._best, law)
        self._num_nodes = num_nodes
        self._hits = torch.zeros(num_ranks, dtype=torch.float64, device=device)  # accepted children by rank
        self._visits = torch.zeros(num_ranks + 1, dtype=torch.float64, device=device)  # by the number of children
        self._prior = [_PRIOR[0] * _PRIOR[1] ** rank for rank in range(num_ranks)]
        self.acceptance = list(self._prior)
        self._rounds = 0
        self._last: StaticPlan | None = None

    def plan(self, state: DecodeState, limit: Sequence[int], depth: int) -> StaticPlan:
        self._last = super().plan(state, limit, depth)
        return self._last

    def learn(self, acceptance: Acceptance) -> None:
        assert self._last is not None
        shape, device = self._last.shape, self._hits.device
        path = acceptance.path[:, : shape.depth]
        ranks = torch.tensor(shape.ranks, device=device)[path.clamp(min=0)]
        self._hits.index_add_(0, ranks.flatten(), (path >= 0).flatten().double())
        visited = torch.nn.functional.pad(path + 1, (1, 0))  # the root, and each accepted node
        children = torch.tensor(shape.num_children, device=device)[visited]
        steps = torch.arange(visited.shape[1], device=device)
        # Below its limit, and where drafting stopped for want of confidence, a node had no children.
        tried = (steps <= acceptance.num_accepted[:, None]) & (steps < self._last.limit) & (steps < path.shape[1])
        self._visits.index_add_(0, children.flatten(), tried.flatten().double())
        self._rounds += 1
        if self._rounds % _ROUNDS == 0:
            self._measure()

    def _measure(self) -> None:
        hits, visits = torch.stack([self._hits, self._visits[1:].flip(0).cumsum(0).flip(0)]).tolist()
        every = zip(hits, visits, self._prior, strict=True)
        self.acceptance = [(h + _PRIOR_VISITS * p) / (v + _PRIOR_VISITS) for h, v, p in every]

    def _best(self, depth: int) -> Shape:
        # Ranks seen at different times may add up to more than 1.
        total = max(1.0, sum(self.acceptance))
        return optimal_tree([a / total for a in self.acceptance], self._num_nodes, depth)
