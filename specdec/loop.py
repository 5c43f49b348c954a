"""The only decoding loop: propose, forward, verify, commit.

Host syncs: one read per target forward, when the round's outcome (tokens, accepted counts) is fetched.
Prefix-dependent processors on trees add one for the parents. Drafters that read host tokens add none, since
the outcome that they read is already there. `SpeculationStats.host_syncs` counts these reads. Small
host-to-device copies (a drafter's limits, n-gram proposals, groups of prefixes) are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec.cache import RollbackCache
from specdec.controller import Controller
from specdec.drafters.base import DraftSession
from specdec.errors import DrafterError, NumericalError
from specdec.state import DecodeState
from specdec.stats import SpeculationStats
from specdec.target import ModelRunner
from specdec.types import Acceptance, Proposal
from specdec.verify import block, greedy, rejection
from specdec.window import ancestor_matrix, build_window, plan

Rule = Literal["rejection", "block"]


@dataclass(frozen=True, slots=True)
class Committed:
    """Tokens that one round added to one row; all but the last of a row's round were drafted."""

    request: int  # the row's index in the user's batch
    tokens: list[int]
    num_accepted: int  # how many of them, from the first, are accepted draft tokens
    finished: bool


@dataclass(slots=True)
class Limits:
    """When a row is done, and what it is padded with then."""

    max_new_tokens: int
    eos_token_ids: Collection[int]
    pad_token_id: int = 0


@dataclass(slots=True)
class Decoding:
    """One call: its parts, and `run`, which drives them to the end.

    Args:
        target: runs the target.
        state: prompt and growing output; rows are dropped from it as they finish.
        session: proposes; its `close` is called whatever happens.
        controller: chooses the number of draft tokens.
        limits: EOS ids and length.
        rule: acceptance rule when sampling; greedy calls need none.
        on_commit: called with each row's new tokens, in order, as soon as they are final.
    """

    target: ModelRunner
    state: DecodeState
    session: DraftSession
    controller: Controller
    limits: Limits
    rule: Rule = "rejection"
    on_commit: Callable[[Committed], None] | None = None
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    _round_begun: float = field(default=0.0, init=False)

    def run(self) -> list[list[int]]:
        """Decodes to the end; returns the new tokens of each request."""
        begun = perf_counter()
        outputs: list[list[int]] = [[] for _ in range(self.state.batch_size)]
        try:
            with torch.inference_mode():  # measured: 7 to 10 % less a forward than under no_grad, on a CPU
                self._decode(outputs)
        finally:
            try:
                self.session.close()
            finally:
                self.target.release()
            self.stats.draft_calls = self.session.forwards
            self.stats.new_tokens = sum(map(len, outputs))
            self.stats.total_seconds = perf_counter() - begun
        return outputs

    def _decode(self, outputs: list[list[int]]) -> None:
        state = self.state
        self.stats.prompt_tokens = sum(state.prompt_lengths)
        cache = self.target.new_cache(state.batch_size, max(state.host_lengths) + 1)
        seen = [0] * state.batch_size  # cache.lengths, known on the host
        while state.batch_size:
            proposal = self._propose(prefilling=seen[0] == 0)
            seen = self._step(cache, seen, proposal, outputs)

    def _propose(self, prefilling: bool) -> Proposal:
        """The round's proposal; nothing before the prompt is prefilled."""
        state = self.state
        nothing = Proposal.empty(state.batch_size, state.device)
        self._round_begun = perf_counter()
        asked = 0 if prefilling else self.controller.choose()
        # A bonus or recovered token always comes, so the last allowed token need not be drafted.
        room = [
            self.limits.max_new_tokens - (n - p) - 1
            for n, p in zip(state.host_lengths, state.prompt_lengths, strict=True)
        ]
        limit = [min(asked, r) for r in room]
        if max(limit) <= 0:
            return nothing
        proposal = self.session.propose(state, limit)
        if not isinstance(proposal, Proposal):
            raise DrafterError(
                f"{type(self.session).__name__}.propose returned {type(proposal).__name__}, no Proposal."
            )
        proposal.check(state.batch_size)
        if proposal.depth > max(limit):
            raise DrafterError(
                f"{type(self.session).__name__} proposed depth {proposal.depth}; at most {max(limit)} was asked for."
            )
        return proposal

    def _step(self, cache: RollbackCache, seen: list[int], proposal: Proposal, outputs: list[list[int]]) -> list[int]:
        """One target forward and its consequences; returns the cache's lengths."""
        state, lengths = self.state, self.state.host_lengths
        drafting_done = perf_counter()
        proposal, broken = proposal.repaired(state.vocab_size)
        shape = plan(seen, lengths, proposal)
        window = build_window(state.tokens, state.lengths, cache.lengths, proposal, shape)
        first = min(n - s for n, s in zip(lengths, seen, strict=True)) - 1  # first position whose logits matter
        logits = self.target.forward(window, cache, keep=shape.width - first)
        logits = _at_nodes(logits, window.num_pending - 1 - first, proposal.num_nodes, seen, lengths)
        acceptance = self._verify(logits, proposal)
        # A tree's path is moved together; it stands behind the one pending token of a prefilled row.
        keep = None if proposal.is_chain else F.pad(torch.where(acceptance.path >= 0, acceptance.path + 1, -1), (1, 0))
        cache.commit(window.num_pending + acceptance.num_accepted, keep)
        new = acceptance.tokens(proposal)
        outcome = [_depths(proposal)[:, None], acceptance.num_accepted[:, None], broken[:, None], new]
        host = torch.cat(outcome, dim=1).tolist()  # the round's host sync
        self.stats.host_syncs += 1
        self._check(host)
        num_accepted = [h[1] for h in host]
        self._account([h[0] for h in host], num_accepted, drafting_done, prefilling=seen[0] == 0)
        if proposal.num_nodes:
            self.session.observe(proposal, acceptance, num_accepted)
        host_new = [h[3 : 3 + a + 1] for h, a in zip(host, num_accepted, strict=True)]
        seen = [n + a for n, a in zip(lengths, num_accepted, strict=True)]
        state.extend(new, acceptance.num_accepted + 1, host_new)
        staying = self._emit(host_new, num_accepted, outputs)
        if len(staying) < state.batch_size:
            index = torch.tensor(staying, dtype=torch.int64, device=state.device)
            state.select_rows(staying, index)
            if staying:
                cache.select_rows(index)
                self.session.select_rows(staying, index)
            seen = [seen[r] for r in staying]
        return seen

    def _verify(self, logits: Tensor, proposal: Proposal) -> Acceptance:
        """Applies the processors and the acceptance rule to node logits [B, N + 1, V]."""
        state = self.state
        prefixes = state.prefixes(proposal)
        if prefixes is not None and not proposal.is_chain:
            self.stats.host_syncs += 1
        if not state.sampler.do_sample:
            return greedy(state.sampler.scores(logits, prefixes), proposal)
        rule = block if self.rule == "block" and proposal.is_chain else rejection
        return rule(state.sampler.probs(logits, prefixes), proposal, state.coins())

    def _account(self, num_drafted: list[int], num_accepted: list[int], drafting_done: float, prefilling: bool) -> None:
        """Counts the round and tells the controller what it cost."""
        draft_seconds, verify_seconds = drafting_done - self._round_begun, perf_counter() - drafting_done
        if prefilling:
            self.stats.prefill_seconds += draft_seconds + verify_seconds
            return
        self.stats.draft_seconds += draft_seconds
        self.stats.verify_seconds += verify_seconds
        self.stats.record_round(num_drafted, num_accepted)
        self.controller.record(num_drafted, num_accepted, draft_seconds, verify_seconds)

    def _check(self, host: list[list[int]]) -> None:
        """Raises if the drafter or the target produced something that is no token."""
        for _, accepted, broken, *tokens in host:
            if broken:
                raise DrafterError(
                    f"{type(self.session).__name__} proposed a token id outside 0..{self.state.vocab_size - 1}, a "
                    "parent or q_index out of range, or a q that is no distribution."
                )
            if tokens[accepted] < 0:
                raise NumericalError(
                    "the target's probabilities are NaN, infinite or all zero at this position: check the logits "
                    "processors, or load the model in bfloat16 or float32 instead of float16."
                )

    def _emit(self, host_new: list[list[int]], num_accepted: list[int], outputs: list[list[int]]) -> list[int]:
        """Truncates at EOS and the length limit, publishes; returns the rows that go on."""
        staying = []
        for row, (tokens, accepted) in enumerate(zip(host_new, num_accepted, strict=True)):
            request = self.state.host_requests[row]
            output = outputs[request]
            tokens = tokens[: self.limits.max_new_tokens - len(output)]
            for i, token in enumerate(tokens):
                if token in self.limits.eos_token_ids:
                    tokens = tokens[: i + 1]
                    break
            output.extend(tokens)
            finished = len(output) >= self.limits.max_new_tokens or tokens[-1] in self.limits.eos_token_ids
            if not finished:
                staying.append(row)
            if self.on_commit is not None:
                self.on_commit(Committed(request, tokens, min(accepted, len(tokens)), finished))
        return staying


def _at_nodes(logits: Tensor, root: Tensor, num_nodes: int, seen: list[int], lengths: list[int]) -> Tensor:
    """Picks each row's root and nodes, [B, N + 1, V], from the kept logits [B, K, V]; root [B] is the root's index."""
    pending = [n - s for n, s in zip(lengths, seen, strict=True)]
    if min(pending) == max(pending):
        return logits[:, : num_nodes + 1]
    index = root[:, None] + torch.arange(num_nodes + 1, device=logits.device)
    return logits.gather(1, index[:, :, None].expand(-1, -1, logits.shape[2]))


def _depths(proposal: Proposal) -> Tensor:
    """[B] the deepest valid node of each row."""
    if proposal.is_chain:
        return proposal.valid.sum(1)
    return torch.where(proposal.valid, ancestor_matrix(proposal).sum(-1), 0).amax(1)
