"""Several drafters in one call: each row and round gets the proposal that promises most for what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from specdec.drafters.base import Drafter, DraftSession
from specdec.drafters.choosing import Choosing
from specdec.drafters.gains import Costs
from specdec.drafters.joined import Share, beside, merge
from specdec.drafters.trie import Trie, to_proposal
from specdec.errors import DrafterError, OptionError
from specdec.ranks import Ranks
from specdec.state import DecodeState
from specdec.types import Acceptance, Proposal


class MixedSession(DraftSession):
    """Asks, joins, and tells each session what became of its own proposal."""

    def __init__(self, sessions: Sequence[DraftSession], state: DecodeState, drafter: MixedDrafter) -> None:
        assert state.target is not None
        self._sessions = list(sessions)
        self._depths = drafter.depths
        # Who counts forwards runs a model; the others are asked every round.
        self._is_free = [type(s).forwards is DraftSession.forwards for s in sessions]
        # Where tokens are drawn a choice by the clock would change the text from run to run.
        # Nor may each of several processes that draft together go by its own.
        is_alone = drafter.ranks(state.target.model) is None
        self._costs = Costs(len(sessions), drafter.costs, reads_clock=is_alone and not state.sampler.do_sample)
        self._choosing = Choosing(self._is_free, state.batch_size, self._costs, state.target.layout.trees)
        self._shares: dict[int, Share] = {}  # of the last round, by drafter
        self._direct: int | None = None  # the drafter whose proposal was passed on as it was
        self._places: dict[int, list[dict[int, int]]] = {}  # where drafters' trees stand in the joined one
        self._begun = 0.0

    @property
    def forwards(self) -> int:
        return sum(session.forwards for session in self._sessions)

    @property
    def levels(self) -> bool:
        return any(session.levels for session in self._sessions)

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        self._shares, self._direct, self._places = {}, None, {}
        self._choosing.begin(state.host_tokens, limit)
        for drafter, is_free in enumerate(self._is_free):
            if is_free and self._ask(drafter, state, limit):
                self._shares[drafter].read(limit)
        picks = self._pick(state.batch_size)
        costly = self._choosing.costly([gain for _, gain in picks])
        if costly is not None and self._ask(costly, state, limit):
            proposal = self._with_costly(costly, picks, state, limit)
        else:
            proposal = self._join([chosen for chosen, _ in picks], state)
        self._set_observes()
        self._begun = perf_counter()
        return proposal

    def _ask(self, drafter: int, state: DecodeState, limit: Sequence[int]) -> bool:
        """Lets a drafter propose; False where it has nothing to say."""
        session, most = self._sessions[drafter], self._depths[drafter]
        own = list(limit) if most is None else [min(n, most) for n in limit]
        # Whether a drafter's tokens are used hangs on the others': they must be drawn apart, or a kept q is wrong. Of
        # those that run a model at most one speaks in a round, and graphs know one stream.
        state.draft_stream = 1 + drafter if self._is_free[drafter] else 0
        forwards, begun = session.forwards, perf_counter()
        proposal = session.propose(state, own)
        self._costs.drafted(drafter, session.forwards - forwards, perf_counter() - begun)
        name = type(session).__name__
        if not isinstance(proposal, Proposal):
            raise DrafterError(f"{name}.propose returned {type(proposal).__name__}, no Proposal.")
        proposal.check(state.batch_size)
        if proposal.depth > max(own):
            raise DrafterError(f"{name} proposed depth {proposal.depth}; at most {max(own)} was asked for.")
        if proposal.num_nodes:
            self._shares[drafter] = Share(proposal)
            return True
        if not self._is_free[drafter]:
            for row in range(state.batch_size):
                self._choosing.learn(row, {drafter: 0.0})
        return False

    def _pick(self, batch_size: int) -> list[tuple[list[int], float]]:
        """What each row gets of the proposals that there are, and the tokens to expect of it."""
        return [
            self._choosing.pick(row, {drafter: share.size(row) for drafter, share in self._shares.items()})
            for row in range(batch_size)
        ]

    def _with_costly(
        self, costly: int, picks: Sequence[tuple[list[int], float]], state: DecodeState, limit: Sequence[int]
    ) -> Proposal:
        """The round's proposal where a draft model has run."""
        if not any(chosen for chosen, _ in picks):
            return self._pass_on(costly)
        sampled = [share.proposal for share in self._shares.values() if share.proposal.q is not None]
        own = self._shares[costly].proposal
        if own.q is None or len(sampled) > 1:
            # Without q tokens may be looked at, joined and left out as one likes.
            self._shares[costly].read(limit)
            return self._join([chosen for chosen, _ in self._pick(state.batch_size)], state)
        # Drawn tokens are taken whole or not at all, by what was known before they were drawn.
        uses = [not chosen or self._choosing.expected(costly, row) >= gain for row, (chosen, gain) in enumerate(picks)]
        if all(uses):
            return self._pass_on(costly)
        given = self._joined([[] if use else chosen for use, (chosen, _) in zip(uses, picks, strict=True)])
        rest = to_proposal(given, state.device)
        return beside(own, rest, uses, state.vocab_size) if any(uses) else rest

    def _join(self, chosen: Sequence[Sequence[int]], state: DecodeState) -> Proposal:
        """The chosen drafters' trees as one proposal; a single one that serves all rows is passed on as it is."""
        used = {drafter for row in chosen for drafter in row}
        if not used:
            return Proposal.empty(state.batch_size, state.device)
        if len(used) == 1:
            (drafter,) = used
            serves_all = all(row or not self._shares[drafter].size(r) for r, row in enumerate(chosen))
            # A choice among several has looked at their nodes: q may be kept where there was none to make.
            if serves_all and (self._shares[drafter].proposal.q is None or len(self._shares) == 1):
                return self._pass_on(drafter)
        return to_proposal(self._joined(chosen), state.device)

    def _joined(self, chosen: Sequence[Sequence[int]]) -> list[Trie]:
        rows = [Trie() for _ in chosen]
        self._places = {drafter: [{} for _ in chosen] for drafter in self._shares}
        for row, drafters in enumerate(chosen):
            for drafter in drafters:
                trees = self._shares[drafter].trees
                assert trees is not None
                self._places[drafter][row] = merge(rows[row], trees[row])
        return rows

    def _pass_on(self, drafter: int) -> Proposal:
        self._direct = drafter
        return self._shares[drafter].proposal

    def _set_observes(self) -> None:
        """What the loop has to tell for all to be told what they want, and for the mix to learn."""
        wanted = {self._sessions[drafter].observes for drafter in self._shares}
        if "choices" in wanted:
            self.observes = "choices"
        elif "acceptance" in wanted or len(self._shares) > 1 or self._direct is None:
            self.observes = "acceptance"
        else:
            self.observes = "counts"

    def observe_counts(self, proposal: Proposal, num_accepted: Sequence[int]) -> None:
        """Of a single drafter that wants no more than this."""
        (drafter,) = self._shares
        if self._sessions[drafter].observes == "counts":
            self._sessions[drafter].observe_counts(proposal, num_accepted)
        self._learn(proposal, {drafter: list(map(float, num_accepted))})

    def observe(self, proposal: Proposal, acceptance: Acceptance, num_accepted: Sequence[int]) -> None:
        self._observe(proposal, acceptance, num_accepted, None)

    def observe_choices(
        self, proposal: Proposal, acceptance: Acceptance, num_accepted: Sequence[int], choices: Tensor
    ) -> None:
        self._observe(proposal, acceptance, num_accepted, choices)

    def _observe(
        self, proposal: Proposal, acceptance: Acceptance, num_accepted: Sequence[int], choices: Tensor | None
    ) -> None:
        committed: list[list[int]] = []
        right: dict[int, list[float]] = {}
        for drafter, share in self._shares.items():
            if drafter == self._direct:
                self._tell(drafter, proposal, acceptance, num_accepted, choices)
                right[drafter] = list(map(float, num_accepted))
                continue
            if not committed:
                tokens = acceptance.tokens(proposal).tolist()
                committed = [row[: n + 1] for row, n in zip(tokens, num_accepted, strict=True)]
            share.read([share.proposal.depth] * len(committed))
            own, counts = share.acceptance(committed, proposal.tokens.device)
            told = None
            if choices is not None:
                told = share.choices(choices, self._places.get(drafter, [{} for _ in committed]))
            self._tell(drafter, share.proposal, own, counts, told)
            right[drafter] = [
                share.right(row, tokens, self._choosing.expected(drafter, row)) for row, tokens in enumerate(committed)
            ]
        self._learn(proposal, right)

    def _tell(
        self,
        drafter: int,
        proposal: Proposal,
        acceptance: Acceptance,
        num_accepted: Sequence[int],
        choices: Tensor | None,
    ) -> None:
        session = self._sessions[drafter]
        if session.observes == "acceptance":
            session.observe(proposal, acceptance, num_accepted)
        elif session.observes == "counts":
            session.observe_counts(proposal, num_accepted)
        elif session.observes == "choices":
            assert choices is not None
            session.observe_choices(proposal, acceptance, num_accepted, choices)

    def _learn(self, proposal: Proposal, right: dict[int, list[float]]) -> None:
        """Takes in how many tokens of each proposal were right, row by row."""
        self._costs.stepped(proposal.num_nodes, perf_counter() - self._begun)
        for row in range(proposal.tokens.shape[0]):
            said = {d: n[row] for d, n in right.items() if self._shares[d].trees is None or self._shares[d].size(row)}
            self._choosing.learn(row, said)

    def select_rows(self, rows: Sequence[int], index: Tensor) -> None:
        for session in self._sessions:
            session.select_rows(rows, index)
        self._choosing.select_rows(rows)

    def close(self) -> None:
        _close(self._sessions)


def _close(sessions: Sequence[DraftSession]) -> None:
    """Closes all of them, also where one raises."""
    if sessions:
        try:
            sessions[0].close()
        finally:
            _close(sessions[1:])


class MixedDrafter(Drafter):
    """Several drafters: each row and round gets the proposal with the most tokens to expect for what it costs.

    Drafters without a model of their own (their session counts no `forwards`) are asked every round. At most one of the
    others runs, and only if the tokens to be expected, over all rows, are more per unit of time with it than without.
    What to expect is learned within the call, from how many of a drafter's tokens were right lately: in the row, and in
    rows whose text repeats itself as far as this one's. Free drafters learn from every round, used or not; one that
    runs a model and is not chosen is tried again after 8, 16, ... up to 256 rounds.

    Where the target verifies trees a row's proposals are joined, equal prefixes sharing nodes, as far as the tokens
    that a drafter adds pay for its nodes. Joining, and telling several drafters what became of theirs, reads tokens
    from the device: up to two small reads a round beside the loop's one.

    Exactness: a joined proposal has q = None, and what is in it depends on earlier rounds and on drafted tokens, never
    on this round's verification coins. Drafted tokens that come with q (a model's in a sampling call) keep it: a row
    takes them whole or not at all, by what was known before they were drawn, and rows that take something else beside
    them have q = 1 at their own tokens, which is the same rule. Several sampled proposals in one round lose their q.

    In greedy calls costs are measured by the clock; the text does not depend on them. In sampling calls the same seed
    must repeat: there a draft model's forward is taken to cost 0.15 of a target's unless `costs` says otherwise.

    Args:
        drafters: at least one; no MixedDrafter.
        costs: of one proposal of each drafter, in target forwards; None: measured, or taken as above.
        depths: the most levels of each drafter's proposals, None for no bound but the call's `num_draft_tokens`.

    Raises:
        OptionError: no drafters, something that is no drafter, a mix in a mix; costs or depths that do not fit.

    Example:
        >>> drafter = MixedDrafter([NgramDrafter(), ModelDrafter(draft)])  # doctest: +SKIP
        >>> specdec.generate(target, **inputs, drafter=drafter)  # doctest: +SKIP
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        *,
        costs: Sequence[float] | None = None,
        depths: Sequence[int | None] | None = None,
    ) -> None:
        if isinstance(drafters, Drafter) or not isinstance(drafters, Iterable):
            raise OptionError(f"MixedDrafter takes a list of drafters, got {type(drafters).__name__}: [drafter, ...].")
        self.drafters = tuple(drafters)
        if not self.drafters:
            raise OptionError("MixedDrafter needs at least one drafter, for example MixedDrafter([NgramDrafter()]).")
        for drafter in self.drafters:
            if not isinstance(drafter, Drafter):
                raise OptionError(
                    f"MixedDrafter takes drafters, and {type(drafter).__name__} is none: wrap a model in ModelDrafter, "
                    "and make one of a name with its class, as in SuffixDrafter()."
                )
            if isinstance(drafter, MixedDrafter):
                raise OptionError("a mix in a mix would choose twice: give all drafters to one MixedDrafter.")
        for name, values in (("costs", costs), ("depths", depths)):
            if values is not None and not isinstance(values, Sequence):
                raise OptionError(f"{name} must be a list, one of each drafter, got {values!r}.")
            if values is not None and len(values) != len(self.drafters):
                raise OptionError(f"MixedDrafter has {len(self.drafters)} drafters and {len(values)} {name}: one each.")
        if costs is not None and not all(isinstance(cost, int | float) and cost >= 0 for cost in costs):
            raise OptionError(f"costs are shares of a target forward, >= 0; got {list(costs)}.")
        self.costs = None if costs is None else tuple(map(float, costs))
        self.depths = (None,) * len(self.drafters) if depths is None else tuple(depths)
        if any(depth is not None and (type(depth) is not int or depth < 1) for depth in self.depths):
            raise OptionError(f"depths are at least 1, or None; got {list(self.depths)}.")

    @property
    def model(self) -> Any:
        """The first draft model among them, None if there is none."""
        return next((m for d in self.drafters if (m := getattr(d, "model", None)) is not None), None)

    def check(self, target: PreTrainedModel) -> None:
        for drafter in self.drafters:
            drafter.check(target)

    def ranks(self, target: PreTrainedModel) -> Ranks | None:
        return next((r for d in self.drafters if (r := d.ranks(target)) is not None), None)

    def start(self, state: DecodeState) -> MixedSession:
        sessions: list[DraftSession] = []
        try:
            for drafter in self.drafters:
                sessions.append(drafter.start(state))  # noqa: PERF401 - those before one that raises must be closed
        except BaseException:
            _close(sessions)
            raise
        return MixedSession(sessions, state, self)
