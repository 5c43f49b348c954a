"""What is grown from counts: the best nodes, in an order that proposals need."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.drafters.suffix_array import Corpus, SuffixArray
from specdec.drafters.suffix_tree import Bounds, Branches, grow, to_proposal
from specdec.verify.tree import children_table

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=6)


def all_scores(texts: list[list[int]], context: list[int], depth: int) -> dict[tuple[int, ...], float]:
    """Every continuation of the context and its score, from the definition."""
    scores: dict[tuple[int, ...], float] = {(): 1.0}
    for size in range(1, depth + 1):
        for path in itertools.product(range(3), repeat=size):
            if path[:-1] not in scores:
                continue
            prefix = context + list(path[:-1])
            after = [t[i + len(prefix)] for t in texts for i in range(len(t) - len(prefix))
                     if t[i : i + len(prefix)] == prefix]  # fmt: skip
            if path[-1] in after:
                scores[path] = scores[path[:-1]] * after.count(path[-1]) / len(after)
    del scores[()]
    return scores


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    texts=TEXTS,
    depth=st.integers(0, 4),
    nodes=st.integers(0, 9),
    min_score=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    is_chain=st.booleans(),
)
def test_the_best_nodes(texts: list[list[int]], depth: int, nodes: int, min_score: float, is_chain: bool) -> None:
    context = texts[0][:1]
    corpus = Corpus([SuffixArray.build(texts)])
    length, places = corpus.find(context)
    if length == 0:
        return
    found = grow(corpus.followers, places, Bounds(depth, nodes, min_score), is_chain)
    scores = all_scores(texts, context, depth)
    paths: list[tuple[int, ...]] = []
    for node, (token, parent) in enumerate(zip(found.tokens, found.parents, strict=True)):
        assert parent < node
        paths.append(((*paths[parent], token)) if parent >= 0 else (token,))
        assert found.scores[node] == pytest.approx(scores[paths[-1]])
        assert found.depths[node] == len(paths[-1])
    assert len(set(paths)) == len(paths) <= nodes
    for path, parent in zip(paths, found.parents, strict=True):
        siblings = [scores[p] for p, q in zip(paths, found.parents, strict=True) if q == parent]
        assert siblings == sorted(siblings, reverse=True), "the likelier child comes first"
        best = max(v for p, v in scores.items() if p[:-1] == path[:-1])
        if is_chain:
            assert len(siblings) == 1 and scores[path] == pytest.approx(best)
    if not is_chain:
        passing = sorted((v for v in scores.values() if v >= min_score - 1e-12), reverse=True)
        assert found.scores == pytest.approx(passing[:nodes])


def test_ties_go_to_what_was_seen_last() -> None:
    corpus = Corpus([SuffixArray.build([[1, 5]]), SuffixArray.build([[1, 6], [1, 4]])])
    _, places = corpus.find([1])
    assert grow(corpus.followers, places, Bounds(1, 8, 0.0), is_chain=False).tokens == [4, 6, 5]


def branches(tokens: list[int], parents: list[int]) -> Branches:
    depths: list[int] = []
    for parent in parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return Branches(tokens, parents, depths, [1.0] * len(tokens))


def test_proposals() -> None:
    cpu = torch.device("cpu")
    tree, chain = branches([5, 6, 7, 8], [-1, -1, 0, 0]), branches([3, 4], [-1, 0])
    assert to_proposal([Branches(), Branches()], cpu).num_nodes == 0
    both = to_proposal([chain, Branches(), branches([9], [-1])], cpu)
    assert both.is_chain and not both.is_whole
    assert both.valid.tolist() == [[True, True], [False, False], [True, False]]
    assert to_proposal([chain, chain], cpu).is_whole
    mixed = to_proposal([tree, chain], cpu)
    mixed.check(2)
    assert (mixed.depth, mixed.width, mixed.q) == (2, 2, None)
    assert mixed.tokens.tolist() == [[5, 6, 7, 8], [3, 4, 0, 0]]
    assert children_table(mixed).tolist()[0][:2] == [[0, 1], [2, 3]]
    assert children_table(mixed).tolist()[1] == [[0, -1], [1, -1], [-1, -1], [-1, -1], [-1, -1]]
