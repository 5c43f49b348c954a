"""A model whose windows run as a compiled graph, over the same cache as the uncompiled ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from specdec.cache import RollbackCache
from specdec.compiled.arena import Arena
from specdec.compiled.build import Run
from specdec.compiled.graph import MemoryShape
from specdec.compiled.sampled import Chance, Names
from specdec.prompt import PromptInputs
from specdec.stats import GraphUse
from specdec.target import ModelRunner, TargetOutput
from specdec.types import Proposal
from specdec.window import Window

_KEPT_WIDTH = 32  # constants of windows up to this width are kept
_LEAST_SLOTS = 512  # of a cache that grows by doubling: each size is recorded anew, and so few slots cost a GPU nothing
_CHUNK = 512  # a prompt's window: scores of all its tokens against all slots stand in memory at once


class Buffers(Protocol):
    """What a graph reads and writes: a cache, or some layers of one."""

    def buffers(self) -> list[Tensor]:
        """Keys and values [B, H, capacity, D] of each layer in turn."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A compiled step.

    Args:
        run: the package's entry.
        memory: see `Package.memory`.
        widest: windows of more tokens are run uncompiled, which is faster there; None if it never is.
        fine: any number of slots will do; otherwise few numbers are wanted, powers of two.
        arena: lends caches their memory, where it must lie at addresses that recur.
    """

    run: Run
    memory: Sequence[MemoryShape]
    widest: int | None = None
    fine: bool = True
    arena: Arena | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """What all windows of one shape have in common: each token looks at those before it, and follows the last."""

    offsets: Tensor  # [B, W]
    related: Tensor  # [B, W, W]
    steps: Tensor  # [W]
    none_valid: Tensor  # [B]
    all_valid: Tensor  # [B]

    @classmethod
    def of(cls, batch_size: int, width: int, device: torch.device) -> Chain:
        steps = torch.arange(width, device=device)
        related = (steps[None] <= steps[:, None]).expand(batch_size, -1, -1).contiguous()
        none = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return cls(steps.expand(batch_size, -1).contiguous(), related, steps, none, none + (width - 1))


class CompiledRunner(ModelRunner):
    """Runs the windows of one call through a graph.

    Args:
        runner: the same model, uncompiled.
        graph: its compiled step.
        use: counts calls and seconds.

    Attributes:
        chance: decides sampled rounds; None where torch's own operations do.
    """

    chance: Chance | None = None

    def __init__(self, runner: ModelRunner, graph: Graph, use: GraphUse) -> None:
        vars(self).update(vars(runner))
        self._graph = graph
        self._use = use
        self._chains: dict[tuple[int, int], Chain] = {}
        self.longest_window = _CHUNK

    def new_cache(self, batch_size: int, capacity: int, most: int | None = None) -> RollbackCache:
        """A cache whose layers all keep everything; windows are a matter of masks in the graph."""
        kinds = [replace(kind, window=None) for kind in self.kinds]
        fine, memory, dtype, device = self._graph.fine, self._graph.memory, self.dtype, self.device
        if fine:
            cache = RollbackCache(kinds, batch_size, device, capacity, fine, most=most)
            cache.allocate(memory, dtype)
            return cache
        arena = self._graph.arena or Arena()

        def lent(rows: int, slots: int) -> list[Tensor]:
            shapes = [(rows, heads, slots, width) for heads, *widths in memory for width in widths]
            return arena.lend(shapes, dtype, device)

        return RollbackCache(kinds, batch_size, device, max(capacity, _LEAST_SLOTS), doubling=True, lender=lent)

    def forward(
        self,
        window: Window,
        cache: RollbackCache,
        keep: int | Sequence[int],
        prompt: PromptInputs | None = None,
        *,
        is_prompt: bool = False,
        hidden_states: bool = False,
    ) -> TargetOutput:
        """As the uncompiled runner's, which takes over where the graph does not serve."""
        width = window.tokens.shape[1]
        too_wide = self._graph.widest is not None and width > self._graph.widest
        if too_wide or hidden_states or prompt is not None:
            return super().forward(window, cache, keep, prompt, is_prompt=is_prompt, hidden_states=hidden_states)
        cache.begin(window.slots, window.extent, window.level, None, window.is_kept)
        starts = window.slots[:, 0]
        related = None
        if window.mask is not None and window.ancestors is not None:
            related = window.mask.gather(2, window.slots[:, None, :].expand(-1, width, -1))
        wanted = range(width - keep, width) if isinstance(keep, int) else keep
        kept = torch.tensor(list(wanted), device=self.device)
        offsets = window.positions - starts[:, None]
        _, _, logits = self.run(window.tokens, starts, cache, keep=kept, offsets=offsets, related=related)
        return TargetOutput(logits, None)

    def verify(
        self, last: Tensor, proposal: Proposal, cache: RollbackCache, extent: int, names: Names | None = None
    ) -> tuple[Tensor, Tensor]:
        """Verification of a chain behind one committed token: greedy in one graph, else with `chance` in two.

        The cache's lengths are those of what is kept afterwards.

        Args:
            last: [B, 1] int64, each row's last committed token, which the cache lacks.
            extent: slots in use afterwards.
            names: of the round's coins, if chance decides.

        Returns:
            outcome [B, 4 + N] int64, see `StepGraph.forward`; and the target's choices [B, N + 1].
        """
        cache.reserve(extent)
        drafted = proposal.tokens
        if not proposal.is_whole:  # what does not count may be any number
            drafted = torch.where(proposal.valid, drafted, 0)
        tokens = torch.cat([last, drafted], dim=1) if proposal.num_nodes else last
        num_valid = None
        if proposal.num_nodes:
            num_valid = self._chain(*tokens.shape).all_valid if proposal.is_whole else proposal.valid.cumprod(1).sum(1)
        starts = cache.lengths
        outcome, ends, logits = self.run(tokens, starts, cache, num_valid=num_valid)
        choices = outcome[:, 3:]
        if names is not None:
            assert self.chance is not None
            count = self._chain(*tokens.shape).none_valid if num_valid is None else num_valid
            outcome, ends = self.chance.judge(logits, tokens, count, proposal.q, names, starts)
        cache.lengths = ends
        return outcome, choices

    def run(
        self,
        tokens: Tensor,
        starts: Tensor,
        cache: Buffers,
        *,
        keep: Tensor | None = None,
        num_valid: Tensor | None = None,
        offsets: Tensor | None = None,
        related: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One call of the graph; see `StepGraph.forward`. What is omitted is that of a chain, all of it kept."""
        batch_size, width = tokens.shape
        chain = self._chain(batch_size, width)
        inputs = [
            tokens.contiguous(),
            chain.offsets if offsets is None else offsets.contiguous(),
            chain.related if related is None else related.contiguous(),
            starts.contiguous(),
            chain.none_valid if num_valid is None else num_valid,
            chain.steps if keep is None else keep,
            *cache.buffers(),
        ]
        begun = perf_counter()
        outcome, ends, logits = self._graph.run(inputs)
        self._use.seconds += perf_counter() - begun
        self._use.calls += 1
        return outcome, ends, logits

    def _chain(self, batch_size: int, width: int) -> Chain:
        key = (batch_size, width)
        chain = self._chains.get(key)
        if chain is None:
            chain = Chain.of(batch_size, width, self.device)
            if width <= _KEPT_WIDTH:
                self._chains[key] = chain
        return chain
