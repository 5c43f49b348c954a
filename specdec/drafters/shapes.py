"""Shapes of trees: which node hangs on which, decided before any token is known. No model, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from specdec.errors import OptionError
from specdec.types import MAX_NODES


@dataclass(frozen=True)
class Shape:
    """A tree of fixed shape, numbered depth by depth, siblings side by side and the likeliest first.

    Args:
        parents: of each node, -1 = child of the root. Any order in which parents stand before their children; `of`
            sorts it, and keeps the order of siblings.

    Example:
        >>> Shape.of([-1, 0, -1, 0]).parents
        (-1, -1, 0, 0)
    """

    parents: tuple[int, ...]

    @classmethod
    def of(cls, parents: Sequence[int]) -> Shape:
        """The shape of a list of parents.

        Raises:
            OptionError: no tree: empty, too large, or a node before its parent.
        """
        if not isinstance(parents, Sequence):
            raise OptionError(f"parents={parents!r}: a list with the parent of each node, as in [-1, -1, 0, 0].")
        if not parents:
            raise OptionError("a tree needs at least one node: parents=[-1] is the smallest.")
        if len(parents) > MAX_NODES:
            raise OptionError(f"a tree of {len(parents)} nodes: at most {MAX_NODES} can be verified together.")
        for node, parent in enumerate(parents):
            if isinstance(parent, bool) or not isinstance(parent, int) or not -1 <= parent < node:
                raise OptionError(
                    f"parents[{node}]={parent!r}: a parent is -1 (the root) or the number of an earlier node. "
                    "Number the nodes parents first, as in parents=[-1, -1, 0, 0]."
                )
        depth = _depths(parents)
        order = [-1]  # old numbers, breadth first
        for level in range(1, max(depth) + 1):
            place = {old: new for new, old in enumerate(order)}
            here = [node for node, d in enumerate(depth) if d == level]
            order += sorted(here, key=lambda node: place[parents[node]])
        number = {old: new - 1 for new, old in enumerate(order)}
        return cls(tuple(number[parents[old]] for old in order[1:]))

    @classmethod
    def of_widths(cls, widths: Sequence[int]) -> Shape:
        """Every node at depth d has widths[d] children, the root included.

        Raises:
            OptionError: a width below 1, or more nodes than can be verified together.

        Example:
            >>> Shape.of_widths([2, 1]).parents
            (-1, -1, 0, 1)
        """
        if not isinstance(widths, Sequence):
            raise OptionError(f"widths={widths!r}: a list with the number of children at each depth, as in [4, 2, 1].")
        if not widths or any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in widths):
            raise OptionError(f"widths={list(widths)!r}: one number of children >= 1 for each depth, as in [4, 2, 1].")
        parents: list[int] = []
        level = [-1]
        for width in widths:
            if len(parents) + len(level) * width > MAX_NODES:
                raise OptionError(f"widths={list(widths)!r} make more than {MAX_NODES} nodes: use smaller ones.")
            first = len(parents)
            parents += [parent for parent in level for _ in range(width)]
            level = list(range(first, len(parents)))
        return cls(tuple(parents))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Of each node; the root's children are at depth 1."""
        return tuple(_depths(self.parents))

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """How many elder siblings each node has."""
        seen: dict[int, int] = {}
        out = []
        for parent in self.parents:
            out.append(seen.get(parent, 0))
            seen[parent] = out[-1] + 1
        return tuple(out)

    @cached_property
    def num_children(self) -> tuple[int, ...]:
        """Of the root, then of each node."""
        out = [0] * (len(self.parents) + 1)
        for parent in self.parents:
            out[parent + 1] += 1
        return tuple(out)

    @property
    def depth(self) -> int:
        return self.depths[-1]

    @property
    def width(self) -> int:
        """Most children of one parent."""
        return max(self.num_children)

    def level(self, depth: int) -> list[int]:
        """The nodes of a depth; of depth 0 the root, -1."""
        return [-1] if depth == 0 else [node for node, d in enumerate(self.depths) if d == depth]

    def cut(self, depth: int) -> Shape:
        """The nodes down to a depth of 1 or more."""
        return self if depth >= self.depth else Shape(self.parents[: sum(d <= depth for d in self.depths)])


def _depths(parents: Sequence[int]) -> list[int]:
    out: list[int] = []
    for parent in parents:
        out.append(1 if parent < 0 else out[parent] + 1)
    return out


def check_acceptance(acceptance: Sequence[float]) -> tuple[float, ...]:
    """The vector, or OptionError where it holds no probabilities of exclusive events."""
    if not isinstance(acceptance, Sequence) or not all(isinstance(a, int | float) for a in acceptance):
        raise OptionError(f"acceptance={acceptance!r}: a list of probabilities by rank, as in [0.7, 0.15, 0.05].")
    values = tuple(float(a) for a in acceptance)
    if not values or not all(0 <= a <= 1 for a in values) or sum(values) > 1 + 1e-6:
        raise OptionError(
            f"acceptance={list(acceptance)!r}: one probability for each rank, that the child of this rank is the one "
            "that is accepted. One child is accepted at most, so they add up to 1 at most."
        )
    return values


def expected_accepted(shape: Shape, acceptance: Sequence[float]) -> float:
    """Expected accepted tokens a round, the target's own not counted: the sum of all nodes' chances to be on the path.

    Args:
        acceptance: [r] probability that the child of rank r is accepted, given that its parent was; 0 beyond the end.

    Example:
        >>> round(expected_accepted(Shape.of_widths([2, 1]), [0.5, 0.25]), 6)
        1.125
    """
    reach: list[float] = []
    for parent, rank in zip(shape.parents, shape.ranks, strict=True):
        chance = acceptance[rank] if rank < len(acceptance) else 0.0
        reach.append(chance * (1.0 if parent < 0 else reach[parent]))
    return sum(reach)


@lru_cache(maxsize=256)
def _optimal(acceptance: tuple[float, ...], num_nodes: int, max_depth: int) -> tuple[int, ...]:
    return tuple(_Programme(acceptance, num_nodes, max_depth).parents())


def optimal_tree(acceptance: Sequence[float], num_nodes: int, max_depth: int | None = None) -> Shape:
    """The tree of at most `num_nodes` nodes with the most expected accepted tokens.

    Sequoia's dynamic programme (arXiv:2402.12374, section 3.1), with its bound on the depth: a best tree's subtrees
    are best trees of their own sizes. Memory and time are O(depth * ranks * num_nodes ** 2), milliseconds for 64.
    Children have ranks 0, 1, ... without a gap, so that a vector may rise; nodes that cannot be accepted are left out.

    Args:
        acceptance: [r] probability that the child of rank r is accepted, given that its parent was.
        num_nodes: at least 1, the root not counted.
        max_depth: no limit but the number of nodes if omitted.

    Raises:
        OptionError: no probabilities, no nodes, or no depth.

    Example:
        >>> optimal_tree([0.6, 0.2], num_nodes=4).parents
        (-1, -1, 0, 2)
    """
    values = check_acceptance(acceptance)
    if not 1 <= num_nodes <= MAX_NODES:
        raise OptionError(f"num_nodes={num_nodes}: a tree has 1 to {MAX_NODES} nodes.")
    if max_depth is not None and max_depth < 1:
        raise OptionError(f"max_depth={max_depth}: a tree is at least 1 deep.")
    return Shape(_optimal(values, num_nodes, min(max_depth or num_nodes, num_nodes)))


class _Programme:
    """The dynamic programme, and the tree that its choices spell out.

    `_group[d][r][m]` is the most that the children of ranks r, r + 1, ... of one node give with at most m nodes in
    all, themselves and d - 1 levels below included; `_choice` the nodes that go to rank r's subtree, 0 = none from
    here on.
    """

    def __init__(self, acceptance: tuple[float, ...], num_nodes: int, max_depth: int) -> None:
        self._num_nodes, self._max_depth = num_nodes, max_depth
        sizes = np.arange(num_nodes + 1)
        left = sizes[:, None] - sizes[None, :]  # [m, s] nodes that are left when s of m are spent
        self._choice = np.zeros((max_depth + 1, len(acceptance), num_nodes + 1), dtype=np.int64)
        group = np.zeros(num_nodes + 1)  # of depth 0: there are no children
        for depth in range(1, max_depth + 1):
            subtree = np.concatenate([[0.0], 1.0 + group[:-1]])  # [s] with s nodes, the first its own root
            rest = np.zeros(num_nodes + 1)
            for rank in reversed(range(len(acceptance))):
                value = acceptance[rank] * subtree[None, :] + rest[left]
                value[:, 0] = 0.0  # no child of this rank, and so none of the next ones
                value[left < 0] = -1.0
                # Near ties go to the smaller subtree: rounding must not add nodes that give nothing.
                close = value >= value.max(1, keepdims=True) - 1e-12
                self._choice[depth, rank] = close.argmax(1)
                rest = value[sizes, self._choice[depth, rank]]
            group = rest

    def parents(self) -> list[int]:
        """Breadth first."""
        parents: list[int] = []
        level = [(-1, self._num_nodes)]  # a node and what its descendants may spend
        for depth in range(self._max_depth, 0, -1):
            below = []
            for parent, budget in level:
                for choice in self._choice[depth]:
                    spent = int(choice[budget])
                    if spent == 0:
                        break
                    below.append((len(parents), spent - 1))
                    parents.append(parent)
                    budget -= spent
            level = below
        return parents or [-1]
