"""Logits processors -> the distribution that tokens are drawn from.

transformers' processors see one prefix per row. In a window every node has a prefix of its own: the
row's tokens (left padding included, as `model.generate()` would show them) and the path to the node.
Processors that ignore the prefix run once over all nodes; transformers' others once per prefix length.

Constraints (`prefix_allowed_tokens_fn`, grammars, a user's own processor) may not be asked about a text that
they forbid: a trie or a parser has no answer there. With one of those in the list nodes are processed depth by
depth, and what hangs on a forbidden draft token is not asked at all. Its probability is zero at its parent,
so that it is rejected whatever stands behind it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper

from specdec.processors import IGNORE_PREFIX, asks_any_prefix, for_rows, refuse_stateful


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The tokens before each node's successor; node 0 is the root, node i + 1 the proposal's node i."""

    paths: Sequence[Sequence[Tensor]]  # B rows of up to M int64 vectors, left padding included
    requests: Sequence[int]  # B, each row's index in the user's batch
    parents: Sequence[Sequence[int]] | None = None  # B rows of M - 1 parents (-1 = root); None = chains
    valid: Sequence[Sequence[bool]] | None = None  # B rows of M - 1; None = all

    def children(self, row: int, node: int) -> list[int]:
        """The path indices of the valid nodes below path index `node`."""
        below = range(1, len(self.paths[row]))
        parents = self.parents
        kin = (c for c in below if (c - 1 if parents is None else parents[row][c - 1] + 1) == node)
        return [c for c in kin if self.valid is None or self.valid[row][c - 1]]


class Sampler:
    """The processors of one call, applied to nodes.

    Args:
        processors: in order. Those that transformers does not define are taken for pure functions of
            (input_ids, scores) and called once per distinct prefix length; `processors.check_own` tests that.
        do_sample: False means greedy, temperature 0.
        batch_size: rows of the call.

    Raises:
        UnsupportedOptionError: a processor that keeps a state between calls.
    """

    def __init__(self, processors: Sequence[LogitsProcessor], do_sample: bool, batch_size: int = 1) -> None:
        for processor in processors:
            refuse_stateful(processor)
        self.processors = list(processors)
        self.do_sample = do_sample
        self.batch_size = batch_size
        self.needs_prefix = any(type(p) not in IGNORE_PREFIX for p in self.processors)
        self.host_reads = 0  # times that the host waited for the device to tell what is possible
        self.by_depth = not all(asks_any_prefix(p) for p in self.processors)

    @property
    def temperature(self) -> float | None:
        """What scores are divided by where nothing else is done to them; None where something is."""
        if not self.processors:
            return 1.0
        (first, *more) = self.processors
        return float(first.temperature) if type(first) is TemperatureLogitsWarper and not more else None

    def probs(self, logits: Tensor) -> Tensor:
        """Distributions [B, M, V] of every node, where no processor asks for a prefix."""
        return self.scores(logits, None).softmax(-1)

    def scores(self, logits: Tensor, prefixes: Prefixes | None) -> Tensor:
        """Processed scores of every node, float32 as in transformers.

        Args:
            logits: [B, M, V].
            prefixes: may be None if not `needs_prefix`.

        Returns:
            [B, M, V]; behind a draft token of probability zero, and at padding, unprocessed.
        """
        scores = logits.to(torch.float32)
        flat = scores.reshape(-1, scores.shape[-1])
        if prefixes is None:
            for processor in self.processors:
                flat = processor(flat.new_empty(len(flat), 0, dtype=torch.int64), flat)
            return flat.view(scores.shape)
        every = [(row, node) for row, paths in enumerate(prefixes.paths) for node in range(len(paths))]
        if not self.by_depth:
            return self._process(flat, every, prefixes, scores.shape[1]).view(scores.shape)
        scores = scores.clone()
        level = [(row, 0) for row in range(len(prefixes.paths))]
        while level:
            rows, nodes = (torch.tensor(i, device=scores.device) for i in zip(*level, strict=True))
            scores[rows, nodes] = self._process(scores[rows, nodes], level, prefixes, None)
            level = self._possible_children(level, scores, prefixes)
        return scores

    def _possible_children(
        self, level: list[tuple[int, int]], scores: Tensor, prefixes: Prefixes
    ) -> list[tuple[int, int]]:
        """The (row, path index) pairs below `level` that can be accepted at their parents."""
        below = [(row, node, child) for row, node in level for child in prefixes.children(row, node)]
        if not below:
            return []
        rows, nodes, children = zip(*below, strict=True)
        tokens = torch.stack([prefixes.paths[r][c][-1] for r, c in zip(rows, children, strict=True)])
        parents = scores[torch.tensor(rows, device=scores.device), torch.tensor(nodes, device=scores.device)]
        if self.do_sample:
            possible = parents.softmax(-1).gather(1, tokens[:, None])[:, 0] > 0
        else:
            possible = parents.argmax(-1) == tokens
        self.host_reads += 1
        return [(r, c) for r, c, ok in zip(rows, children, possible.tolist(), strict=True) if ok]

    def _process(self, flat: Tensor, nodes: list[tuple[int, int]], prefixes: Prefixes, stride: int | None) -> Tensor:
        """All processors over the scores [G, V] of the given (row, path index) pairs; stride: as flat has all nodes."""
        groups = None
        for processor in self.processors:
            if type(processor) in IGNORE_PREFIX:
                flat = processor(flat.new_empty(len(flat), 0, dtype=torch.int64), flat)
                continue
            groups = groups or _by_length(nodes, prefixes, stride)
            flat = flat.clone()
            for group in groups:
                one = for_rows(processor, group.requests, self.batch_size)
                flat[group.nodes] = one(group.input_ids, flat[group.nodes])
        return flat


@dataclass(frozen=True, slots=True)
class _Group:
    """Nodes whose prefixes have one length."""

    nodes: Tensor  # [G] int64, indices of the scores' rows
    input_ids: Tensor  # [G, length]
    requests: list[int]  # [G]


def _by_length(nodes: list[tuple[int, int]], prefixes: Prefixes, stride: int | None) -> list[_Group]:
    groups: dict[int, list[tuple[int, Tensor, int]]] = defaultdict(list)
    for index, (row, node) in enumerate(nodes):
        path = prefixes.paths[row][node]
        place = index if stride is None else row * stride + node
        groups[len(path)].append((place, path, prefixes.requests[row]))
    out = []
    for members in groups.values():
        places, paths, requests = zip(*members, strict=True)
        out.append(_Group(torch.tensor(places, device=paths[0].device), torch.stack(paths), list(requests)))
    return out
