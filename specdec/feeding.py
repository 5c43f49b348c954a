"""What rows feed before a round's window can begin: long prompts in chunks, recurrent rows until they are level."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from specdec.cache import RollbackCache
from specdec.state import DecodeState
from specdec.target import ModelRunner
from specdec.types import Proposal
from specdec.window import Window, build_window


def window_of(
    runner: ModelRunner,
    cache: RollbackCache,
    state: DecodeState,
    seen: Sequence[int],
    proposal: Proposal,
    most: Sequence[int] | None = None,
) -> Window:
    """The window of all that the cache lacks of `state`, and of a proposal; most: nodes that each row uses at most."""
    level = runner.layout.level
    shape = runner.plan(seen, state.host_ends(level), proposal, most)
    return build_window(state.tokens, state.ends(level), cache.lengths, proposal, shape, state.offsets(level))


def feed_ahead(
    runner: ModelRunner,
    cache: RollbackCache,
    state: DecodeState,
    seen: list[int],
    forward: Callable[[Window], object],
    chunk: int | None = None,
) -> list[int]:
    """Feeds what must be in the cache before all rows' last tokens can stand in one window.

    Args:
        seen: tokens of each row that the cache covers.
        forward: runs the model over a window.
        chunk: most tokens of a row in one forward; None means all at once.

    Returns:
        The tokens that the cache covers now.
    """
    level = runner.layout.level
    while True:
        pending = [n - s for n, s in zip(state.host_ends(level), seen, strict=True)]
        part = next_part(pending, chunk, runner.replays, runner.layout.stepwise and any(seen))
        if part is None:
            return seen
        nothing = Proposal.empty(state.batch_size, state.device)
        ends = [s + p for s, p in zip(seen, part, strict=True)]
        lengths = torch.tensor(ends, device=state.device)
        shape = runner.plan(seen, ends, nothing)
        forward(build_window(state.tokens, lengths, cache.lengths, nothing, shape, state.offsets(level)))
        cache.commit(lengths - cache.lengths)
        seen = [s + r for s, r in zip(seen, cache.retained(part), strict=True)]


def next_part(pending: Sequence[int], chunk: int | None, replays: bool, one_by_one: bool) -> list[int] | None:
    """How many of its pending tokens each row feeds next; None if the round's window can begin.

    Args:
        pending: committed tokens of each row that the cache lacks, at least one.
        replays: windows must hold no padding: rows that are ahead wait until all have equally many left.
        one_by_one: a forward takes one token.

    Example:
        >>> next_part([9, 4, 1], None, True, False)
        [3, 3, 0]
    """
    longest = max(pending)
    ready = longest == 1 if one_by_one else not replays or min(pending) == longest
    if ready and (chunk is None or longest <= chunk):
        return None
    if not replays and not one_by_one:
        assert chunk is not None
        return [min(chunk, p - 1) for p in pending]
    width = 1 if one_by_one else min(p - 1 for p in pending if p > 1)
    if chunk is not None:
        width = min(width, chunk)
    return [width if p > width else 0 for p in pending]
