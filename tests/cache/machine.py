"""The rollback state machine: a cache holds its rows' texts, whatever was tried on it.

Programs of hypothesis drive one cache as the loop and a drafter do. All logits that come out are compared with plain
forwards over the same tokens, lengths with the host's count of them, sizes with what the text needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import families
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput

from specdec.cache import rollback, sliding
from specdec.cache.layers import FullAttentionLayer
from specdec.cache.recurrent import RecurrentLayer
from specdec.drafters.model import ModelSession
from specdec.feeding import feed_ahead, window_of
from specdec.loop import ADVANCE_WINDOW
from specdec.probe import probe
from specdec.prompt import Encoded, PromptInputs
from specdec.sampling import Sampler
from specdec.state import DecodeState
from specdec.target import ModelRunner, TargetOutput, at_nodes, kept_logits
from specdec.types import Acceptance, Proposal
from specdec.window import Window

GRANULE, SLACK = 8, 3  # small, so that a text of 40 tokens outgrows buffers and rings several times
ROOM = 250  # most tokens of a row
ENCODED = 5  # states that an encoder is said to have made
# Largest error relative to the logits' deviation.
TOLERANCE = {"attention": 1e-5, "sliding": 1e-5, "moe": 1e-4, "recurrent": 1e-3, "encoder-decoder": 1e-5}

ROWS = 4  # at most
STEPS = 24  # of a program
COUNTS = st.lists(st.integers(0, 9), min_size=ROWS, max_size=ROWS)  # one a row
LOST = st.sampled_from([False] * 6 + [True])  # an exception comes before the commit


class Watched(ModelRunner):
    """Notes what its forwards ask of the cache."""

    extent = 0  # slots
    width = 0  # of the widest window with drafts

    def forward(self, window: Window, *args: Any, **kwargs: Any) -> TargetOutput:
        self.extent = max(self.extent, window.extent)
        if window.num_nodes:
            self.width = max(self.width, window.tokens.shape[1])
        return super().forward(window, *args, **kwargs)


class Session(ModelSession):
    """Drafts from the machine's own cache, and shows the logits [B, V] of each step."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.runner, machine.state, machine.prompt)
        self._cache, self._seen = machine.cache, machine.seen
        self.logits: list[Tensor] = []

    @property
    def seen(self) -> list[int]:
        return self._seen

    def _scores(self, state: DecodeState, logits: Tensor, drafted: list[Tensor]) -> Tensor:
        self.logits.append(logits)
        return super()._scores(state, logits, drafted)


class Machine(RuleBasedStateMachine):
    """Rows of text, and a cache that has `seen` so many slots of each."""

    name: str  # of the family

    def __init__(self) -> None:
        super().__init__()
        self.runner = Watched(families.family(self.name))
        probe(self.runner)
        self.layout = self.runner.layout
        self.rounding = 20 if self.runner.dtype == torch.float32 else 1

    @initialize(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3), seed=st.integers(0, 99))
    def begin(self, lengths: list[int], seed: int) -> None:
        if not self.layout.padded:
            lengths = lengths[:1] * len(lengths)
        self.random = torch.Generator().manual_seed(seed)
        batch_size, longest = len(lengths), max(lengths)
        mask = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
        ids = self._draw(batch_size, longest)
        sampler = Sampler(LogitsProcessorList(), False, batch_size)
        self.state = DecodeState(ids, ids, mask, ROOM, self.runner.vocab_size, sampler, None)
        self.prompt: PromptInputs | None = None
        if self.runner.is_encoder_decoder:
            size = batch_size, ENCODED, self.runner.model.config.d_model
            hidden = torch.randn(size, generator=self.random, dtype=self.runner.dtype)
            heard = torch.arange(ENCODED) < ENCODED - torch.arange(batch_size)[:, None]
            self.encoded = Encoded(hidden, heard.long())
            self.prompt = PromptInputs(self.state.lengths, encoded=self.encoded)
        self.most_rows, self.state_bytes = batch_size, 0
        self._restart()

    @rule(counts=COUNTS)
    def append(self, counts: list[int]) -> None:
        """Tokens are committed that the cache has not seen."""
        counts = counts[:1] * ROWS if self.layout.level else counts
        self._extend([self._draw(count).tolist() for count in counts[: self.state.batch_size]])

    @rule(chunk=st.none() | st.integers(1, 9))
    def feed(self, chunk: int | None) -> None:
        """The cache sees all that is committed."""

        def forward(window: Window) -> None:
            self.runner.forward(window, self.cache, 1, self.prompt)

        self.seen = feed_ahead(self.runner, self.cache, self.state, self.seen, forward, chunk)
        self._commit(self._look(Proposal.empty(self.state.batch_size, self.state.device)))
        self._extend([[] for _ in self.seen], bonus=1)

    @precondition(lambda self: not self.layout.stepwise)
    @rule(num_nodes=st.integers(1, 9), limits=COUNTS, picks=COUNTS, is_lost=LOST)
    def verify_chain(self, num_nodes: int, limits: list[int], picks: list[int], is_lost: bool) -> None:
        """Drafts are verified behind what is pending, and each row accepts some of the first."""
        pending = self._pending()
        most = [min(limit, num_nodes) for limit, _ in zip(limits, pending, strict=False)]
        if self.runner.replays:  # as in Decoding._propose
            longest = max(pending)
            width = longest if longest - 1 > ADVANCE_WINDOW else longest + num_nodes
            most = [min(limit, width - p) for limit, p in zip(most, pending, strict=True)]
        nothing = Proposal.empty(len(pending), self.state.device)
        proposal = Proposal.chain(self._draw(len(pending), num_nodes)).cut(most) if max(most) else nothing
        self._verify(proposal, picks, is_lost, most if self.runner.replays else None)

    @precondition(lambda self: self.layout.trees)
    @rule(draws=st.lists(COUNTS, min_size=2, max_size=9), limits=COUNTS, picks=COUNTS, is_lost=LOST)
    def verify_tree(self, draws: list[list[int]], limits: list[int], picks: list[int], is_lost: bool) -> None:
        """Each row has a tree of its own shape, and accepts a path to any of its nodes."""
        tokens = self._draw(self.state.batch_size, len(draws))
        parents = torch.tensor(draws)[:, : len(tokens)].T % torch.arange(1, len(draws) + 1) - 1
        width = max(own.count(parent) for own in parents.tolist() for parent in own)
        tree = replace(Proposal.chain(tokens), parents=parents, width=width)
        tree = replace(tree, depth=max(len(path) for paths in _paths(tree) for path in paths))
        self._verify(tree.cut(limits[: len(tokens)]), picks, is_lost)

    @rule(limits=COUNTS, picks=COUNTS, is_lost=LOST)
    def draft(self, limits: list[int], picks: list[int], is_lost: bool) -> None:
        """Tokens are drafted one by one, and each row accepts some of the first."""
        limits = limits[: self.state.batch_size]
        session = Session(self)
        self.runner.width = max(self.runner.width, max(self._pending()) + max(limits))
        proposal = session.propose(self.state, limits)
        self.seen = session.seen
        if not proposal.num_nodes:
            return
        tokens = proposal.tokens.tolist()
        texts = [text + new[:-1] for text, new in zip(self.state.host_tokens, tokens, strict=True)]
        self._compare(range(len(texts)), texts, list(torch.stack(session.logits, 1)))
        if is_lost:
            self._restart()
            return
        accepted = self._picked([limit + 1 for limit in limits], picks)
        counts = torch.tensor(accepted)
        session.observe(proposal, Acceptance(torch.empty(0), counts, torch.empty(0)), accepted)
        self.seen = session.seen
        self._extend([new[:count] for new, count in zip(tokens, accepted, strict=True)], bonus=1)

    @rule(rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS))
    def select(self, rows: list[int]) -> None:
        """Rows leave, repeat, permute."""
        rows = [row % self.state.batch_size for row in rows]
        index = torch.tensor(rows)
        self.cache.select_rows(index)
        self.state.select_rows(rows, index)
        self.state.host_tokens = [list(text) for text in self.state.host_tokens]  # of rows that repeat, too
        self.prompt = self.prompt and self.prompt.select_rows(index)
        self.seen = [self.seen[row] for row in rows]
        self.most_rows = max(self.most_rows, len(rows))

    @invariant()
    def cache_is_as_long_and_as_large_as_it_should(self) -> None:
        cache, runner, window = self.cache, self.runner, families.WINDOW
        assert cache.lengths.tolist() == self.seen
        assert cache.capacity == max(GRANULE, 1 << (runner.extent - 1).bit_length())
        state_bytes = 0
        for layer in cache.layers:
            if isinstance(layer, FullAttentionLayer) and layer.is_initialized:
                ring = max(window + SLACK, window - 1 + runner.width)
                slots = min(cache.capacity, ring) if layer.is_sliding else cache.capacity
                for buffer in (layer.keys, layer.values):
                    assert buffer.shape[0] <= self.most_rows
                    assert buffer.shape[2] <= slots
            if isinstance(layer, RecurrentLayer):
                assert not layer.snapshots
                state_bytes += layer.state_bytes
        self.state_bytes = self.state_bytes or state_bytes // len(self.seen)
        assert state_bytes in (0, self.state_bytes * len(self.seen))  # none before the first forward

    def _restart(self) -> None:
        """An empty cache."""
        self.cache = self.runner.new_cache(self.state.batch_size, capacity=1)
        self.seen = [0] * self.state.batch_size
        self.runner.extent = self.runner.width = 0

    def _draw(self, *size: int) -> Tensor:
        return torch.randint(self.runner.vocab_size, size, generator=self.random)

    def _pending(self) -> list[int]:
        ends = self.state.host_ends(self.layout.level)
        return [end - seen for end, seen in zip(ends, self.seen, strict=True)]

    def _picked(self, counts: Iterable[int], picks: list[int]) -> list[int]:
        """Of so many things each row's choice, the same for rows that must be level."""
        out = [pick % count for pick, count in zip(picks, counts, strict=False)]
        return [min(out)] * len(out) if self.layout.level else out

    def _extend(self, new: list[list[int]], bonus: int = 0) -> None:
        """The texts go on, each with so many tokens more that nobody drafted."""
        new = [tokens + self._draw(bonus).tolist() for tokens in new]
        self.state.extend(_padded(new, 0), torch.tensor([len(tokens) for tokens in new]), new)

    def _verify(self, proposal: Proposal, picks: list[int], is_lost: bool, most: list[int] | None = None) -> None:
        """One window, of which each row accepts one path; most: nodes that each row uses at most."""
        pending = self._look(proposal, most)
        if is_lost and self.runner.replays:
            self._restart()
            return
        if is_lost:  # attention stands where it stood
            self.cache.restore(self.seen)
            self.cache.lengths = self.cache.lengths.clone()  # restore works in inference mode, as the loop does
            self._look(proposal, most)
        paths = _paths(proposal)
        accepted = [own[i] for own, i in zip(paths, self._picked(map(len, paths), picks), strict=True)]
        table = [[*range(p), *(p + node for node in path)] for p, path in zip(pending, accepted, strict=True)]
        self._commit([len(indices) for indices in table], None if proposal.is_chain else _padded(table, -1))
        self._extend([proposal.tokens[row, path].tolist() for row, path in enumerate(accepted)], bonus=1)

    def _look(self, proposal: Proposal, most: list[int] | None = None) -> list[int]:
        """One window, of which every root and valid node is compared; returns what was pending."""
        pending = self._pending()
        window = window_of(self.runner, self.cache, self.state, self.seen, proposal, most)
        roots = [p - 1 for p in pending]
        keep = kept_logits(roots, window.tokens.shape[1], proposal.num_nodes)
        output = self.runner.forward(window, self.cache, keep, self.prompt)
        nodes = at_nodes(output.logits, keep, roots, proposal.num_nodes)
        rows, texts, logits = [], [], []
        for row, paths in enumerate(_paths(proposal)):
            inner = [path[:-1] for path in paths if path]
            for path in (path for path in paths if path not in inner):
                rows.append(row)
                texts.append(self.state.host_tokens[row] + proposal.tokens[row, path].tolist())
                logits.append(nodes[row, [0, *(node + 1 for node in path)]])
        self._compare(rows, texts, logits)
        return pending

    def _commit(self, kept: list[int], keep: Tensor | None = None) -> None:
        self.cache.commit(torch.tensor(kept), keep)
        self.seen = [s + r for s, r in zip(self.seen, self.cache.retained(kept), strict=True)]

    def _compare(self, rows: Sequence[int], texts: list[list[int]], logits: list[Tensor]) -> None:
        """The logits [n, V] behind the last n tokens of each text, of the given rows, are those of a plain forward."""
        inputs: dict[str, object] = {f"{self.runner.prefix}input_ids": _padded(texts, 0)}
        if self.prompt is not None:
            index = torch.tensor([self.state.host_requests[row] for row in rows])
            encoded = self.encoded.select_rows(index)
            inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=encoded.hidden)
            inputs["attention_mask"] = encoded.mask
        plain = self.runner.model(**inputs, use_cache=False).logits
        for text, own, expected in zip(texts, logits, plain, strict=True):
            difference = own - expected[len(text) - len(own) : len(text)]
            error = float(difference.abs().max() / plain.std())
            assert error < TOLERANCE[families.ARCHITECTURES[self.name].kind] * self.rounding, error


def _padded(rows: list[list[int]], fill: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=torch.int64)


def _paths(proposal: Proposal) -> list[list[list[int]]]:
    """What each row may accept: nothing, or the nodes down to any valid one."""
    out = []
    for parents, count in zip(proposal.parents.tolist(), proposal.valid.sum(1).tolist(), strict=True):
        paths: list[list[int]] = [[]]
        for node in range(count):
            paths.append([*paths[parents[node] + 1], node])
        out.append(paths)
    return out


@torch.no_grad()
def run_programs(name: str, examples: int) -> None:
    """Random programs of 24 steps on a family's memory, its buffers so small that they are outgrown."""
    # Before buffers are small: what breaks only then must break the programs, not let the probe give up trees.
    probe(ModelRunner(families.family(name)))
    granule, slack = rollback._GRANULE, sliding.SLACK
    rollback._GRANULE, sliding.SLACK = GRANULE, SLACK
    try:
        machine = type(name, (Machine,), {"name": name})  # hypothesis seeds by the class's name
        asked = settings(max_examples=examples, stateful_step_count=STEPS, deadline=None, derandomize=True)
        run_state_machine_as_test(machine, settings=asked)
    finally:
        rollback._GRANULE, sliding.SLACK = granule, slack
