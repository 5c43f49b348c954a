"""The only decoding loop: propose, forward, verify, commit.

Host syncs: one read per target forward, when the round's outcome (tokens, accepted counts) is fetched.
Prefix-dependent processors on trees add one for the parents, constraints one for the proposal's shape and one a depth
(a processor of the user's may add what it likes). Drafters that read host tokens add none, since
the outcome that they read is already there. `SpeculationStats.host_syncs` counts these reads. Small
host-to-device copies (a drafter's limits, n-gram proposals, groups of prefixes) are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec.cache import RollbackCache
from specdec.compiled import CompiledRunner
from specdec.controller import Controller
from specdec.drafters.base import DraftSession
from specdec.errors import DrafterError, NumericalError, SpecdecError
from specdec.feeding import feed_ahead, window_of
from specdec.prompt import PromptInputs
from specdec.ranks import Ranks
from specdec.recording import Recorder
from specdec.state import DecodeState
from specdec.stats import SpeculationStats
from specdec.stopping import Limits, Stopping
from specdec.target import ModelRunner, TargetOutput, at_nodes, kept_logits
from specdec.trace import Source, Trace
from specdec.types import Acceptance, Proposal, int_tensor
from specdec.verify import block, greedy, rejection
from specdec.verify.blocks import largest
from specdec.verify.choice import Form, form_of, judged
from specdec.window import Window, ancestor_matrix

Rule = Literal["rejection", "block"]
ADVANCE_WINDOW = 8  # docs/performance.md has what others cost


@dataclass(frozen=True, slots=True)
class Committed:
    """Tokens of one row that became final; usually one round's."""

    request: int  # the row's index in the user's batch
    tokens: list[int]
    sources: list[Source]  # where each token came from
    finished: bool

    @property
    def num_accepted(self) -> int:
        """How many of the tokens were drafted."""
        return self.sources.count(Source.ACCEPTED)


@dataclass(frozen=True, slots=True)
class Memory:
    """The target's cache and what it holds when a call begins.

    Args:
        cache: empty, or left by an earlier call.
        seen: the tokens of each row that it covers, less than the row has.
        keep_rows: rows that end stay in it (behind the others), since it is returned.
    """

    cache: RollbackCache
    seen: list[int]
    keep_rows: bool = False


@dataclass(frozen=True, slots=True)
class _Round:
    """What a round's forward gave.

    Args:
        outcome: [B, 3 + D + 1] int64: depth of each row's proposal; accepted tokens; whether the drafter broke its
            contract; the committed tokens, of which what follows the next token is undefined.
        proposal: as it was drafted, but for what had to be repaired.
        acceptance: of the proposal.
        pending: committed tokens of each row in the window.
        width: tokens a row of the window.
        choices: the target's likeliest token [B, N + 1] after the root and after each node; -1 where it was not asked.
        record: keeps what the caller wants to see, given the accepted tokens.
    """

    outcome: Tensor
    proposal: Proposal
    acceptance: Callable[[], Acceptance]
    pending: list[int]
    width: int
    choices: Callable[[], Tensor]
    record: Callable[[list[int]], None] | None = None


@dataclass(slots=True)
class Decoding:
    """One call: its parts, and `run`, which drives them to the end.

    Args:
        target: runs the target.
        state: prompt and growing output; rows are dropped from it as they finish.
        session: proposes; its `close` is called whatever happens.
        controller: chooses the number of draft tokens.
        limits: when rows end.
        rule: acceptance rule when sampling; greedy calls need none.
        on_commit: called with each row's new tokens, in order, as soon as they are final.
        memory: the target's cache; a new one if omitted.
        prompt: what the prompt brings besides token ids.
        recorder: keeps scores and the like.
        prefill_chunk: most prompt tokens a row in one forward; None means all at once.
        advance_window: tokens that a recurrent row feeds again at most before a window without drafts for it moves its
            snapshot on.
        ranks: the processes that make this call together, where target or draft are sharded: rank 0 decides.
    """

    target: ModelRunner
    state: DecodeState
    session: DraftSession
    controller: Controller
    limits: Limits
    rule: Rule = "rejection"
    on_commit: Callable[[Committed], None] | None = None
    memory: Memory | None = None
    prompt: PromptInputs | None = None
    recorder: Recorder | None = None
    prefill_chunk: int | None = None
    advance_window: int = ADVANCE_WINDOW
    ranks: Ranks | None = None
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    stopping: Stopping = field(init=False)
    _trace: Trace = field(init=False)
    _published: list[int] = field(init=False)
    _prefilling: bool = field(default=True, init=False)
    _round_begun: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        requests = range(self.state.batch_size)
        self._trace = Trace.empty(len(requests))
        self._published = [0 for _ in requests]
        scores = self.recorder.scores if self.recorder is not None else lambda _, __: None
        self.stopping = Stopping(self.limits, self.state.prompt, scores)
        if self.ranks is not None:
            self.stopping.settle = self.ranks.settle

    def run(self) -> list[list[int]]:
        """Decodes to the end; returns the new tokens of each request."""
        begun = perf_counter()
        outputs = self.stopping.outputs
        try:
            with torch.inference_mode():  # measured: 7 to 10 % less a forward than under no_grad, on a CPU
                self._decode()
        except SpecdecError as error:
            error.while_decoding = True
            raise
        finally:
            try:
                self.session.close()
            finally:
                self.target.release()
            self.stats.draft_calls = self.session.forwards
            self.stats.host_syncs += self.state.sampler.host_reads
            self.stats.new_tokens = sum(map(len, outputs))
            self.stats.snapshot_bytes = 0 if self.memory is None else self.memory.cache.snapshot_bytes
            self.stats.trace = self._trace
            self.stats.total_seconds = perf_counter() - begun
        return outputs

    def _decode(self) -> None:
        state = self.state
        if self.memory is None:
            cache = self.target.new_cache(state.batch_size, max(state.host_lengths) + 1)
            self.memory = Memory(cache, [0] * state.batch_size)
        cache, seen = self.memory.cache, self.memory.seen
        state.cache = cache
        self.stats.prompt_tokens = sum(state.prompt_lengths) - sum(seen)
        if self.ranks is not None:
            self.ranks.agree([])  # all have come so far, and rank 0's drafter as well
        while state.batch_size:
            if self._prefilling:
                whole = self.prompt is not None and self.prompt.once  # images belong to one forward
                chunk = None if whole else self.prefill_chunk or self.target.longest_window
                seen = feed_ahead(self.target, cache, state, seen, partial(self._feed, cache), chunk)
            proposal, limit = self._propose(seen)
            seen = self._step(cache, seen, proposal, limit)
            self._prefilling = False

    @property
    def _is_levelled(self) -> bool:
        """All rows must commit equally many tokens a round."""
        return self.state.batch_size > 1 and (self.target.layout.level or self.session.levels)

    def _forward(self, window: Window, cache: RollbackCache, keep: int | Sequence[int]) -> TargetOutput:
        hidden = self.recorder is not None and self.recorder.keeps_hidden
        return self.target.forward(window, cache, keep, self.prompt, is_prompt=self._prefilling, hidden_states=hidden)

    def _feed(self, cache: RollbackCache, window: Window) -> None:
        """A part of the prompt, before the round that ends it."""
        output = self._forward(window, cache, keep=1)
        if self.recorder is not None and output.hidden_states is not None:
            self.recorder.add_hidden(self.state.host_requests, output.hidden_states, _prompt_slots(window))

    def _propose(self, seen: list[int]) -> tuple[Proposal, list[int]]:
        """The round's proposal, nothing before the prompt is prefilled; and what each row may use of it."""
        state = self.state
        state.seen = seen
        self._round_begun = perf_counter()
        asked = 0 if self._prefilling else self._choose()
        # A bonus or recovered token always comes, so the last allowed token need not be drafted.
        room = [
            self.stopping.max_new_tokens - (n - p) - 1
            for n, p in zip(state.host_lengths, state.prompt_lengths, strict=True)
        ]
        limit = [min(asked, r) for r in room]
        if self.target.replays:
            # Windows are equally wide: what a row feeds again it cannot draft. The row with most of it stops drafting
            # at the bound, so that its window is kept whole and its states move on.
            pending = [n - s for n, s in zip(state.host_ends(self.target.layout.level), seen, strict=True)]
            longest = max(pending)
            width = longest if longest - 1 > self.advance_window else longest + asked
            limit = [min(most, width - p) for most, p in zip(limit, pending, strict=True)]
        if max(limit) <= 0:
            return Proposal.empty(state.batch_size, state.device), limit
        proposal = self._drafted(limit)
        if self.ranks is not None:
            proposal = self.ranks.share_proposal(proposal)
        return _within(proposal, limit), limit

    def _choose(self) -> int:
        """How many tokens to ask for."""
        asked = self.controller.choose()
        return asked if self.ranks is None else self.ranks.agree([asked])[0]

    def _drafted(self, limit: list[int]) -> Proposal:
        """What the session proposes, in the form that it must have."""
        state = self.state
        proposal = self.session.propose(state, limit)
        if not isinstance(proposal, Proposal):
            raise DrafterError(
                f"{type(self.session).__name__}.propose returned {type(proposal).__name__}, no Proposal."
            )
        proposal.check(state.batch_size, state.device)
        if proposal.depth > max(limit):
            raise DrafterError(
                f"{type(self.session).__name__} proposed depth {proposal.depth}; at most {max(limit)} was asked for."
            )
        return proposal

    def _step(self, cache: RollbackCache, seen: list[int], proposal: Proposal, limit: list[int]) -> list[int]:
        """One target forward and its consequences; returns the cache's lengths."""
        state = self.state
        drafting_done = perf_counter()
        if self._is_one_graph(proposal):
            round_ = self._run_graph(cache, seen, proposal)
        else:
            round_ = self._run(cache, seen, proposal, limit)
        host = round_.outcome.tolist()  # the round's host sync
        self.stats.host_syncs += 1
        self._check(host, proposal.depth)
        num_drafted, num_accepted = [h[0] for h in host], [h[1] for h in host]
        if not self._prefilling:
            self.stats.refed_tokens += sum(round_.pending) - len(round_.pending)
        self._account(num_drafted, num_accepted, round_.width, drafting_done)
        if round_.record is not None:
            round_.record(num_accepted)
        if proposal.num_nodes:
            self._tell(round_, num_accepted)
        host_new = [h[3 : 3 + a + 1] for h, a in zip(host, num_accepted, strict=True)]
        kept = cache.retained([p + a for p, a in zip(round_.pending, num_accepted, strict=True)])
        seen = [s + k for s, k in zip(seen, kept, strict=True)]
        state.extend_by(round_.outcome, host_new)
        staying = self._publish(host_new, num_accepted, num_drafted)
        if len(staying) < state.batch_size:
            staying = self._drop_rows(cache, staying)
            seen = [seen[r] for r in staying]
        return seen

    def _tell(self, round_: _Round, num_accepted: list[int]) -> None:
        """Lets the drafter know what became of its proposal, as far as it wants to."""
        if self.session.observes == "acceptance":
            self.session.observe(round_.proposal, round_.acceptance(), num_accepted)
        elif self.session.observes == "counts":
            self.session.observe_counts(round_.proposal, num_accepted)
        elif self.session.observes == "choices":
            self.session.observe_choices(round_.proposal, round_.acceptance(), num_accepted, round_.choices())

    def _is_one_graph(self, proposal: Proposal) -> bool:
        """Forward, acceptance and lengths are a compiled call, or two where chance decides; nobody sees the logits."""
        if not isinstance(self.target, CompiledRunner) or not proposal.is_chain or self.recorder is not None:
            return False
        if self._prefilling or self._is_levelled:
            return False
        if not self.state.sampler.do_sample:
            return not self.state.sampler.processors
        is_rejection = self.rule == "rejection" or proposal.num_nodes == 0
        # A q of half precision has a tolerance of its own.
        wide = proposal.q is None or (proposal.q.shape[2] == self.state.vocab_size and proposal.q.element_size() >= 4)
        return self.target.chance is not None and is_rejection and wide and proposal.is_row_by_row

    def _run_graph(self, cache: RollbackCache, seen: list[int], proposal: Proposal) -> _Round:
        """A chain, each row with one pending token: what `_run` does, in one call or two."""
        assert isinstance(self.target, CompiledRunner)
        state, width = self.state, 1 + proposal.num_nodes
        last = int_tensor([row[-1:] for row in state.host_tokens], state.device)
        names = state.coin_names() if state.sampler.do_sample else None
        outcome, choices = self.target.verify(last, proposal, cache, max(seen) + width, names)
        pending, accepted = [1] * state.batch_size, partial(_accepted, outcome, proposal.num_nodes)
        return _Round(outcome, proposal, accepted, pending, width, partial(_known_choices, choices, proposal))

    def _run(self, cache: RollbackCache, seen: list[int], proposal: Proposal, limit: list[int]) -> _Round:
        """The round's forward, whatever the window and the rule."""
        state, layout = self.state, self.target.layout
        ends = state.host_ends(layout.level)
        form = self._form(proposal)
        proposal, broken = proposal.repaired(state.vocab_size, checks_q=form is None)
        drafted, nodes = proposal, None
        if not (layout.trees or proposal.is_chain):
            proposal, nodes = proposal.first_chain()
        if self.target.replays:
            proposal = proposal.cut(limit)
        window = window_of(self.target, cache, state, seen, proposal, limit if self.target.replays else None)
        width = window.tokens.shape[1]
        pending = [n - s for n, s in zip(ends, seen, strict=True)]
        roots = [p - 1 for p in pending]  # each row's last committed token
        keep = kept_logits(roots, width, proposal.num_nodes)
        output = self._forward(window, cache, keep)
        logits = at_nodes(output.logits, keep, roots, proposal.num_nodes)
        if form is None:
            acceptance, scores = self._verify(logits, proposal)
            choices = partial(_choices, lambda: scores, proposal, drafted, nodes)
        else:
            acceptance, unfair = self._verify_large(form, logits, proposal)
            broken, scores = broken | unfair, logits
            choices = partial(_choices, partial(state.sampler.scores, logits, None), proposal, drafted, nodes)
        if self.ranks is not None:
            acceptance, broken = self.ranks.share_acceptance(acceptance, broken)
        path = F.pad(torch.where(acceptance.path >= 0, acceptance.path + 1, -1), (1, 0))  # node indices, 0 = root
        # A tree's path is moved together; a row of a tree has one pending token, the root.
        cache.commit(window.num_pending + acceptance.num_accepted, None if proposal.is_chain else path)
        counts = [_depths(proposal)[:, None], acceptance.num_accepted[:, None], broken[:, None]]
        outcome = torch.cat([*counts, acceptance.tokens(proposal)], dim=1)
        record = None
        if self.recorder is not None:
            record = partial(
                self._record, self.recorder, window, output, path, scores=scores.to(torch.float32), logits=logits
            )
        if nodes is not None:
            acceptance = replace(acceptance, path=_in_tree(acceptance.path, nodes))
        return _Round(outcome, drafted, lambda: acceptance, pending, width, choices, record)

    def _form(self, proposal: Proposal) -> Form | None:
        """How a sampled chain over a large vocabulary is judged; None where `_verify` does it."""
        sampler = self.state.sampler
        if not sampler.do_sample or sampler.needs_prefix or not proposal.is_chain:
            return None
        if self.rule == "block" and proposal.num_nodes:
            return None  # it weighs all nodes' residuals
        if self.recorder is not None:
            return None  # the scores of all nodes are wanted
        shape = (self.state.batch_size, proposal.num_nodes + 1, self.state.vocab_size)
        return form_of(self.state.device, shape, sampler.temperature)

    def _verify_large(self, form: Form, logits: Tensor, proposal: Proposal) -> tuple[Acceptance, Tensor]:
        """As `_verify`, without distributions of all nodes; also [B] bool, rows whose q is no distribution."""
        sampler = self.state.sampler
        coins, temperature = self.state.coins(), sampler.temperature
        acceptance, unfair = judged(form, logits, proposal, coins, sampler.probs, temperature)
        return self._levelled(acceptance, proposal), unfair

    def _verify(self, logits: Tensor, proposal: Proposal) -> tuple[Acceptance, Tensor]:
        """Applies the processors and the acceptance rule to node logits; also the processed scores [B, N + 1, V]."""
        state = self.state
        prefixes = state.prefixes(proposal, is_final=True)
        if prefixes is not None and not proposal.is_chain:
            self.stats.host_syncs += 1
        sampler = state.sampler
        # An argmax needs no copy in float32; float64 is rounded to it, as in transformers, where it may make ties.
        is_plain = not (sampler.do_sample or sampler.processors) and logits.element_size() <= 4
        scores = logits if is_plain else sampler.scores(logits, prefixes)
        if not sampler.do_sample:
            acceptance = greedy(scores, proposal)
        else:
            rule = block if self.rule == "block" and proposal.is_chain else rejection
            acceptance = rule(scores.softmax(-1), proposal, state.coins())
        return self._levelled(acceptance, proposal), scores

    def _levelled(self, acceptance: Acceptance, proposal: Proposal) -> Acceptance:
        if self._is_levelled:
            acceptance = acceptance.cut(proposal, acceptance.num_accepted.min())
        return acceptance

    def _account(self, num_drafted: list[int], num_accepted: list[int], width: int, drafting_done: float) -> None:
        """Counts the round and tells the controller what it cost."""
        draft_seconds, verify_seconds = drafting_done - self._round_begun, perf_counter() - drafting_done
        if self._prefilling:
            self.stats.prefill_seconds += draft_seconds + verify_seconds
            return
        self.stats.draft_seconds += draft_seconds
        self.stats.verify_seconds += verify_seconds
        self.stats.record_round(num_drafted, num_accepted)
        self.controller.record(num_drafted, num_accepted, width, draft_seconds, verify_seconds)

    def _check(self, host: list[list[int]], depth: int) -> None:
        """Raises if the drafter or the target produced something that is no token.

        Args:
            depth: of the proposal, as its drafter said.
        """
        # What breaks the target's distribution (a processor) breaks the draft's as well: the target's is told of.
        if any(tokens[accepted] < 0 for _, accepted, _, *tokens in host):
            raise NumericalError(
                "the target's probabilities are NaN, infinite or all zero at this position: check the logits "
                "processors, or load the model in bfloat16 or float32 instead of float16."
            )
        if any(broken or deepest > depth for deepest, _, broken, *_ in host):
            raise DrafterError(
                f"{type(self.session).__name__} proposed a token id outside 0..{self.state.vocab_size - 1}, a "
                "parent or q_index out of range, a q that is no distribution (a draft samples through the call's "
                "logits processors), or a tree of more levels or siblings than its depth and width say."
            )

    def _record(
        self,
        recorder: Recorder,
        window: Window,
        output: TargetOutput,
        path: Tensor,
        num_accepted: list[int],
        *,
        scores: Tensor,
        logits: Tensor,
    ) -> None:
        """Keeps what the caller wants to see; path [B, D + 1] are the committed tokens' nodes, 0 = root."""
        requests, counts = self.state.host_requests, [a + 1 for a in num_accepted]
        recorder.add(requests, path, counts, scores, logits)
        if output.hidden_states is None:
            return
        places = window.num_pending[:, None] - 1 + path
        drafted = [p[:c] for p, c in zip(places, counts, strict=True)]
        slots = _prompt_slots(window) if self._prefilling else drafted
        recorder.add_hidden(requests, output.hidden_states, slots)

    def _publish(self, host_new: list[list[int]], num_accepted: Sequence[int], num_drafted: Sequence[int]) -> list[int]:
        """Ends rows, hands on what is final; returns the rows that go on."""
        requests, stopping, trace = self.state.host_requests, self.stopping, self._trace
        for request, tokens, accepted, drafted in zip(requests, host_new, num_accepted, num_drafted, strict=True):
            taken = stopping.add(request, tokens)
            trace.record(request, tokens[:taken], accepted, drafted)
        stopping.close_round()
        for request, output in enumerate(stopping.outputs):
            trace.truncate(request, len(output))
            begin, end = self._published[request], stopping.settled(request)
            if begin < end:
                self._published[request] = end
                if self.on_commit is not None:
                    sources = trace.sources[request][begin:end]
                    self.on_commit(Committed(request, output[begin:end], sources, stopping.is_finished(request)))
        return [row for row, request in enumerate(requests) if not stopping.is_done(request)]

    def _drop_rows(self, cache: RollbackCache, staying: list[int]) -> list[int]:
        """The other rows of the batch are done; returns those that go on, in their new order."""
        state, memory = self.state, self.memory
        assert memory is not None
        if memory.keep_rows:
            staying = cache.set_aside([r for r in range(state.batch_size) if r not in staying])
        index = torch.tensor(staying, dtype=torch.int64, device=state.device)
        if staying and not memory.keep_rows:
            cache.select_rows(index)
        state.select_rows(staying, index)
        if staying:
            self.session.select_rows(staying, index)
            if self.prompt is not None:
                self.prompt = self.prompt.select_rows(index)
        return staying


def _prompt_slots(window: Window) -> list[Tensor]:
    """Each row's committed tokens in a window of the prompt, padding in front left out."""
    first = torch.zeros_like(window.num_pending)
    if window.columns is not None:
        first = ((~window.columns).sum(1) - window.slots[:, 0]).clamp(min=0)
    return [torch.arange(a, b) for a, b in torch.stack([first, window.num_pending], 1).tolist()]


def _in_tree(path: Tensor, nodes: Tensor) -> Tensor:
    """[B, D] indices in a chain, -1 padded -> the tree's own, by nodes [B, N]."""
    return torch.where(path >= 0, nodes.gather(1, path.clamp(min=0)), -1)


def _choices(scores: Callable[[], Tensor], verified: Proposal, drafted: Proposal, nodes: Tensor | None) -> Tensor:
    """[B, N + 1] argmax after the root and each drafted node, from scores [B, M + 1, V] of the verified ones.

    Args:
        nodes: [B, M] the verified chain's nodes in the drafted tree; None where all of it was verified.
    """
    choice = largest(scores())
    behind = torch.where(verified.valid, choice[:, 1:], -1)
    if nodes is not None:
        unasked = torch.full_like(drafted.tokens, -1)
        # A chain that has ended repeats a node: its -1 must not overwrite what was asked.
        behind = unasked.scatter_reduce(1, nodes, behind, reduce="amax")
    return torch.cat([choice[:, :1], behind], dim=1)


def _known_choices(choices: Tensor, proposal: Proposal) -> Tensor:
    """[B, N + 1] a compiled round's choices, -1 behind nodes that do not count."""
    return torch.cat([choices[:, :1], torch.where(proposal.valid.cumprod(1).bool(), choices[:, 1:], -1)], dim=1)


def _accepted(outcome: Tensor, num_nodes: int) -> Acceptance:
    """What a compiled round says about a chain of so many nodes, as drafters see it."""
    num_accepted, tokens = outcome[:, 1], outcome[:, 3:]
    steps = torch.arange(num_nodes, device=outcome.device)
    path = torch.where(steps < num_accepted[:, None], steps, -1)
    return Acceptance(path, num_accepted, tokens.gather(1, num_accepted[:, None])[:, 0])


def _within(proposal: Proposal, limit: Sequence[int]) -> Proposal:
    """The proposal without nodes that lie deeper than limit[b]: behind them a model may have no positions left."""
    if proposal.num_nodes == 0 or min(limit) >= proposal.depth:
        return proposal
    if proposal.is_chain:
        return proposal.cut(limit)
    room = int_tensor(limit, proposal.tokens.device)[:, None]
    return replace(proposal, valid=proposal.valid & (ancestor_matrix(proposal).sum(-1) <= room), is_whole=False)


def _depths(proposal: Proposal) -> Tensor:
    """[B] the deepest valid node of each row."""
    if proposal.is_chain:
        return proposal.valid.sum(1)
    return torch.where(proposal.valid, ancestor_matrix(proposal).sum(-1), 0).amax(1)
