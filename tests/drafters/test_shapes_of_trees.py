"""Shapes of trees: numbering, refusals, and the best tree for an acceptance vector against brute force."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from specdec import OptionError
from specdec.drafters.shapes import Shape, expected_accepted, optimal_tree
from specdec.types import MAX_NODES


def test_numbering() -> None:
    """Depth by depth, siblings side by side and in the user's order."""
    shape = Shape.of([-1, 0, 1, -1, 3, 0])  # 0 has children 1 and 5, 3 has 4, 1 has 2
    assert shape.parents == (-1, -1, 0, 0, 1, 2)
    assert shape.depths == (1, 1, 2, 2, 2, 3)
    assert shape.ranks == (0, 1, 0, 1, 0, 0)
    assert shape.num_children == (2, 2, 1, 1, 0, 0, 0)
    assert (shape.depth, shape.width) == (3, 2)
    assert shape.level(0) == [-1] and shape.level(2) == [2, 3, 4]
    assert shape.cut(2).parents == (-1, -1, 0, 0, 1)
    assert shape.cut(9) is shape


def test_widths() -> None:
    shape = Shape.of_widths([2, 3, 1])
    assert shape.num_children == (2, 3, 3, *[1] * 6, *[0] * 6)
    assert shape == Shape.of(shape.parents)


@pytest.mark.parametrize("parents", [[], [0], [-1, 1], [-1, 2, 0], [-2], [-1, 0.0], [-1] * (MAX_NODES + 1), [True]])
def test_no_trees(parents: list[int]) -> None:
    with pytest.raises(OptionError):
        Shape.of(parents)


@pytest.mark.parametrize("widths", [[], [0], [2, -1], [2.0], [32, 32, 1], [10**9]])
def test_no_widths(widths: list[int]) -> None:
    with pytest.raises(OptionError):
        Shape.of_widths(widths)


NOTHING = [
    *(([], 3, None), ([1.2], 3, None), ([-0.1], 3, None), ([0.6, 0.6], 3, None), ([float("nan")], 3, None)),
    *(([0.5], 0, None), ([0.5], MAX_NODES + 1, None), ([0.5], 3, 0)),
]


@pytest.mark.parametrize(("acceptance", "num_nodes", "depth"), NOTHING)
def test_nothing_to_optimise(acceptance: list[float], num_nodes: int, depth: int | None) -> None:
    with pytest.raises(OptionError):
        optimal_tree(acceptance, num_nodes, depth)


def expected_by_walks(parents: Sequence[int], acceptance: Sequence[float]) -> float:
    """Every walk from the root with its probability: at each node one child is accepted, or none."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)

    def mean(node: int) -> float:
        below = list(itertools.zip_longest(children.get(node, []), acceptance))
        return sum(a * (1 + mean(child)) for child, a in below if child is not None and a is not None)

    return mean(-1)


def all_trees(num_nodes: int) -> Iterator[list[int]]:
    """Every numbering of every tree of up to so many nodes."""
    for size in range(1, num_nodes + 1):
        yield from map(list, itertools.product(*(range(-1, node) for node in range(size))))


VECTORS = [(0.6, 0.2), (0.5, 0.25, 0.125), (0.3, 0.3, 0.3), (0.1, 0.5), (0.9,), (0.0, 0.7), (0.4, 0.0, 0.4)]


@pytest.mark.parametrize("acceptance", VECTORS)
def test_the_best_of_all_small_trees(acceptance: tuple[float, ...]) -> None:
    """Brute force over all trees of up to 6 nodes, for each bound on nodes and depth."""
    scored: dict[tuple[int, int], float] = {}
    for parents in all_trees(6):
        shape = Shape.of(parents)
        score = expected_by_walks(shape.parents, acceptance)
        assert score == pytest.approx(expected_accepted(shape, acceptance))
        key = (len(parents), shape.depth)
        scored[key] = max(scored.get(key, 0.0), score)
    for num_nodes, depth in itertools.product(range(1, 7), range(1, 7)):
        best = max(score for (n, d), score in scored.items() if n <= num_nodes and d <= depth)
        tree = optimal_tree(acceptance, num_nodes, depth)
        assert Shape.of(tree.parents) == tree, "numbered as any other shape"
        assert len(tree.parents) <= num_nodes and tree.depth <= depth
        assert expected_accepted(tree, acceptance) == pytest.approx(best, abs=1e-12)


def best_first(acceptance: Sequence[float], num_nodes: int, max_depth: int) -> float:
    """The `num_nodes` likeliest paths, one by one: right where the vector falls, as no child beats an elder sibling."""
    heap, total = [(-acceptance[0], 1, 0, 1.0)], 0.0  # chance, depth, rank, the parent's chance
    for _ in range(num_nodes):
        chance, depth, rank, above = heapq.heappop(heap)
        total -= chance
        if rank + 1 < len(acceptance):
            heapq.heappush(heap, (-above * acceptance[rank + 1], depth, rank + 1, above))
        if depth < max_depth:
            heapq.heappush(heap, (chance * acceptance[0], depth + 1, 0, -chance))
        if not heap:
            break
    return total


@pytest.mark.parametrize(("num_nodes", "depth"), [(7, 7), (24, 5), (48, 3), (64, 12)])
def test_large_trees_equal_best_first_expansion(num_nodes: int, depth: int) -> None:
    random = np.random.default_rng(num_nodes)
    for ranks in (1, 2, 6):
        acceptance = sorted(random.dirichlet(np.ones(ranks + 1))[:-1], reverse=True)
        tree = optimal_tree(acceptance, num_nodes, depth)
        assert expected_accepted(tree, acceptance) == pytest.approx(best_first(acceptance, num_nodes, depth))


def test_nodes_that_give_nothing_are_left_out() -> None:
    assert optimal_tree([0.5, 0.0], 9, 3).parents == (-1, 0, 1)
    assert optimal_tree([0.0], 9).parents == (-1,)
