"""The rollback cache: after any sequence of windows and commits, logits equal those of a fresh forward."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import VOCAB_SIZE, tiny
from torch import Tensor

from specdec.cache import LayerKind, RollbackCache
from specdec.target import ModelRunner
from specdec.types import Proposal
from specdec.window import build_window, plan


class Machine:
    """A runner, a cache, and the committed tokens that it should hold."""

    def __init__(self, batch_size: int, seed: int) -> None:
        self.runner = ModelRunner(tiny("llama"))
        self.random = torch.Generator().manual_seed(seed)
        self.rows = [self.draw(3 + b) for b in range(batch_size)]
        self.cache = self.runner.new_cache(batch_size, capacity=1)
        self.seen = [0] * batch_size

    def draw(self, num: int) -> list[int]:
        return torch.randint(0, VOCAB_SIZE, (num,), generator=self.random).tolist()

    def step(self, parents: list[int], keep: list[int], new: int) -> Tensor:
        """Verifies a tree, keeps `keep[b]` nodes of row b's first path, then appends `new` tokens; node logits."""
        batch_size = len(self.rows)
        tokens = torch.tensor([self.draw(len(parents)) for _ in self.rows]).view(batch_size, len(parents))
        proposal = Proposal(
            tokens=tokens,
            parents=torch.tensor(parents, dtype=torch.int64).expand(batch_size, -1),
            valid=torch.ones_like(tokens, dtype=torch.bool),
            depth=len(parents),
            width=max((parents.count(p) for p in parents), default=0),
        )
        shape = plan(self.seen, [len(r) for r in self.rows], proposal)
        longest = max(map(len, self.rows))
        committed = torch.tensor([r + [0] * (longest - len(r)) for r in self.rows])
        lengths = torch.tensor([len(r) for r in self.rows])
        window = build_window(committed, lengths, self.cache.lengths, proposal, shape)
        logits = self.runner.forward(window, self.cache, keep=shape.width).logits
        index = (window.num_pending - 1)[:, None] + torch.arange(len(parents) + 1)
        nodes = logits.gather(1, index[:, :, None].expand(-1, -1, logits.shape[2]))
        paths = [self._path(parents, keep[b]) for b in range(batch_size)]
        pending = window.num_pending.tolist()
        kept = [list(range(p)) + [p + n for n in path] for p, path in zip(pending, paths, strict=True)]
        wide = max(map(len, kept))
        table = torch.tensor([k + [-1] * (wide - len(k)) for k in kept])
        self.cache.commit(torch.tensor([len(k) for k in kept]), None if proposal.is_chain else table)
        self.seen = [s + len(k) for s, k in zip(self.seen, kept, strict=True)]
        self._compare(nodes, tokens, parents)
        for b, path in enumerate(paths):
            self.rows[b] += [int(tokens[b, n]) for n in path] + self.draw(new)
        return nodes

    @staticmethod
    def _path(parents: list[int], length: int) -> list[int]:
        """The last node's ancestors from the root, cut to `length`: never the first slots of the window."""
        node, path = len(parents) - 1, []
        while node >= 0:
            path.append(node)
            node = parents[node]
        return path[::-1][:length]

    def _compare(self, nodes: Tensor, tokens: Tensor, parents: list[int]) -> None:
        for b, row in enumerate(self.rows):
            for n in range(-1, len(parents)):
                path, m = [], n
                while m >= 0:
                    path.append(int(tokens[b, m]))
                    m = parents[m]
                fresh = self.runner.model(torch.tensor([row + path[::-1]])).logits[0, -1]
                torch.testing.assert_close(nodes[b, n + 1], fresh, rtol=0, atol=1e-6)  # rope is float32 inside

    def select(self, rows: list[int]) -> None:
        self.cache.select_rows(torch.tensor(rows))
        self.rows = [list(self.rows[r]) for r in rows]
        self.seen = [self.seen[r] for r in rows]


TREES = [[], [-1], [-1, 0, 1], [-1, -1, 0, 1, 3], [-1, 0, 0, -1, 3, 4]]
STEP = st.tuples(st.sampled_from(TREES), st.lists(st.integers(0, 4), min_size=4, max_size=4), st.integers(1, 2))
SELECT = st.lists(st.integers(0, 3), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(program=st.lists(st.one_of(STEP, SELECT), min_size=2, max_size=5), seed=st.integers(0, 99))
@torch.no_grad()
def test_any_program_equals_a_fresh_forward(program: list[object], seed: int) -> None:
    """Chains, trees, partial acceptance, rows that leave, repeat and permute, growth: no trace of the rejected."""
    machine = Machine(batch_size=3, seed=seed)
    machine.step([], [0] * 4, new=1)
    for command in program:
        if isinstance(command, tuple):
            parents, keep, new = command
            machine.step(parents, keep, new)
        else:
            assert isinstance(command, list)
            machine.select([r % len(machine.rows) for r in command])
    machine.step([-1, 0], [0] * 4, new=0)


@torch.no_grad()
def test_chain_commit_copies_nothing() -> None:
    """Committing a chain, whatever was rejected, leaves every byte of keys and values alone."""
    machine = Machine(batch_size=2, seed=0)
    machine.step([], [0, 0], new=1)
    machine.step([-1, 0, 1], [2, 0], new=1)
    layer = machine.cache.layers[0]
    before, pointer, version = layer.keys.clone(), layer.keys.data_ptr(), layer.keys._version
    machine.cache.commit(torch.tensor([1, 2]))
    assert layer.keys.data_ptr() == pointer
    assert layer.keys._version == version
    assert torch.equal(layer.keys, before)


@torch.no_grad()
def test_grows_geometrically_at_static_addresses() -> None:
    """Addresses change only when the capacity doubles, and memory stays within twice what is used."""
    machine = Machine(batch_size=1, seed=0)
    addresses, capacities = set(), set()
    while len(machine.rows[0]) < 230:
        machine.step([], [0], new=10)
        addresses.add(machine.cache.layers[0].keys.data_ptr())
        capacities.add(machine.cache.capacity)
    assert capacities == {64, 128, 256}
    assert len(addresses) <= len(capacities)
    layer = machine.cache.layers[0]
    per_slot = 2 * 3 * layer.keys.shape[1] * layer.keys.shape[3] * 8
    assert machine.cache.cache_bytes == 256 * per_slot


@torch.no_grad()
def test_attention_reads_views_of_the_buffer() -> None:
    """What update() returns is the buffer itself up to the extent: no copy of the cache in a step."""
    cache = RollbackCache([LayerKind()], batch_size=2, device=torch.device("cpu"), capacity=64)
    states = torch.randn(2, 3, 4, 8)
    cache.begin(torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]]), extent=4)
    keys, values = cache.update(states, states, 0)
    layer = cache.layers[0]
    assert keys.data_ptr() == layer.keys.data_ptr()
    assert values.data_ptr() == layer.values.data_ptr()
    assert torch.equal(keys, states)
    cache.commit(torch.tensor([1, 3]))
    assert cache.seen.tolist() == [1, 3]
