"""A call played again without a cache: what was drafted is taken as given, all that was decided is decided anew.

A drafter is wrapped so that each round's proposal is written down. The player goes through the text round by round:
plain forwards over whole texts give p; the rule is its plain reading in Python floats (`verify/scalar.py`); the coins
are named as the papers' coins would be, by request, length, purpose and node. Of specdec it takes what was proposed,
what the target's windows can hold (`Recording`), and the hash behind the coins: no cache, no window, no mask, no
padding in front, no cut and no rule of the loop's.

The loop turns logits into distributions in float32, as transformers does; here it is done in float64. A coin that fell
between the two would be decided otherwise, which is a matter of the last bits: choose another seed where that happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec.types import Proposal
from specdec.verify.coins import Purpose, uniform

Rows = list[list[float]]  # distributions
Plain = Callable[..., tuple[list[int], int]]  # a rule of verify/scalar.py


@dataclass(frozen=True)
class Round:
    """One proposal as the drafter made it, and how much of it each row may use.

    Args:
        requests, lengths: of each row, its index in the batch and its committed tokens.
    """

    requests: list[int]
    lengths: list[int]
    proposal: Proposal
    limit: list[int]


@dataclass(frozen=True)
class Drafted:
    """One row's part of a proposal, as `verify/scalar.py` reads it; q has one distribution a node."""

    nodes: dict[str, list[Any]]
    q: Rows | None
    law: specdec.Law
    is_chain: bool

    def paths(self) -> list[list[int]]:
        """The tokens to the root and to each node; nodes that do not count stand for the root."""
        out: list[list[int]] = [[]]
        for token, parent, valid in zip(*(self.nodes[n] for n in ("tokens", "parents", "valid")), strict=True):
            out.append([*out[parent + 1], token] if valid else [])
        return out


class Recording(specdec.Drafter):
    """Another drafter, whose proposals are kept in `rounds`."""

    def __init__(self, inner: specdec.Drafter) -> None:
        self._inner = inner
        self.rounds: list[Round] = []
        self.depth = inner.depth
        self.trees = self.replays = self.levels = False  # what the target's windows are like

    def check(self, target: PreTrainedModel) -> None:
        self._inner.check(target)

    def start(self, state: specdec.DecodeState) -> specdec.DraftSession:
        assert state.target is not None
        layout = state.target.layout
        self.trees, self.replays, self.levels = layout.trees, state.target.replays, layout.level
        session = self._inner.start(state)
        propose = session.propose

        def kept(state: specdec.DecodeState, limit: Sequence[int]) -> Proposal:
            before = list(state.host_requests), list(map(len, state.host_tokens))
            proposal = propose(state, limit)
            self.rounds.append(Round(*before, proposal, list(limit)))
            return proposal

        session.propose = kept  # type: ignore[method-assign]
        self.levels = self.levels or session.levels
        return session


class Player:
    """Decides every round of a call again.

    Args:
        model: the target.
        inputs: of the call, as `generate` takes them.
        temperature: the call's.
        seed: of its coins.
        rule: in its plain reading; chains only if `rule` is block verification, trees by `of_trees` then.
        suppressed: tokens that may not be drawn.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Tensor],
        temperature: float,
        seed: int,
        rule: Plain,
        of_trees: Plain,
        suppressed: Sequence[int] = (),
    ) -> None:
        self._model: Any = model
        self._inputs = inputs
        self._temperature, self._seed = temperature, seed
        self._rule, self._of_trees, self._suppressed = rule, of_trees, list(suppressed)
        self.accepted = 0

    def play(
        self, recorded: Recording, prompts: Sequence[list[int]], num_new: int, eos: int | None = None
    ) -> list[list[int]]:
        """The text of each row, prompts included; rows may leave at `eos`."""
        rounds = {(q, n): r for r in recorded.rounds for q, n in zip(r.requests, r.lengths, strict=True)}
        texts = [list(prompt) for prompt in prompts]
        ends = [len(prompt) + num_new for prompt in prompts]
        while running := [q for q, (text, end) in enumerate(zip(texts, ends, strict=True)) if len(text) < end]:
            told = {q: rounds.get((q, len(texts[q]))) for q in running}
            drafted = {q: _drafted(recorded, told[q], q) for q in running}
            p = self._distributions(texts, drafted)
            new = {q: self._decide(q, len(texts[q]), drafted[q], p[q]) for q in running}
            slowest = min(map(len, new.values())) if recorded.levels else None
            for q in running:
                texts[q] += new[q][:slowest]
                if eos in texts[q][len(prompts[q]) :]:
                    ends[q] = texts[q].index(eos, len(prompts[q])) + 1
                del texts[q][ends[q] :]
        return texts

    def _decide(self, request: int, length: int, drafted: Drafted, p: Rows) -> list[int]:
        """What the round commits of one row."""
        coins = self._coins(request, length, len(drafted.nodes["tokens"]))
        rule = self._rule if drafted.is_chain else self._of_trees
        path, token = rule(p, drafted.q, drafted.nodes, drafted.law, *coins)
        self.accepted += len(path)
        return [*(drafted.nodes["tokens"][node] for node in path), token]

    def _coins(self, request: int, length: int, num_nodes: int) -> tuple[list[float], float]:
        row, at = torch.tensor([request]), torch.tensor([length])
        accept = [float(uniform(self._seed, row, at, int(Purpose.ACCEPT), node)) for node in range(num_nodes)]
        return accept, float(uniform(self._seed, row, at, int(Purpose.NEXT_TOKEN), 0))

    @torch.no_grad()
    def _distributions(self, texts: Sequence[list[int]], drafted: dict[int, Drafted]) -> dict[int, Rows]:
        """p of each row, at its root and behind every valid node: from whole texts, padded behind their ends."""
        every: list[tuple[int, list[int]]] = []
        for request, own in drafted.items():
            every += [(request, texts[request] + path) for path in own.paths()]
        longest = max(len(text) for _, text in every)
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for _, text in every])
        logits = self._logits(torch.tensor([request for request, _ in every]), ids)
        behind = torch.stack([row[len(text) - 1] for row, (_, text) in zip(logits, every, strict=True)])
        scores = behind.double() / self._temperature
        scores[:, self._suppressed] = -torch.inf
        p = scores.softmax(-1).tolist()
        return {q: [one for one, (request, _) in zip(p, every, strict=True) if request == q] for q in drafted}

    def _logits(self, requests: Tensor, ids: Tensor) -> Tensor:
        if not self._model.config.is_encoder_decoder:
            return self._model(ids, use_cache=False).logits
        own = {name: value[requests] for name, value in self._inputs.items()}
        return self._model(**own, decoder_input_ids=ids, use_cache=False).logits


def _drafted(recorded: Recording, told: Round | None, request: int) -> Drafted:
    """What the round verifies of a row."""
    if told is None or not told.proposal.num_nodes:
        return Drafted({"tokens": [], "parents": [], "valid": []}, None, specdec.Law.GIVEN, True)
    row, proposal = told.requests.index(request), told.proposal
    parts = {"tokens": proposal.tokens[row], "parents": proposal.parents[row], "valid": proposal.valid[row]}
    nodes: dict[str, list[Any]] = {name: part.tolist() for name, part in parts.items()}
    q: Rows | None = None
    if proposal.q is not None and proposal.q_index is not None:
        q = proposal.q[row, proposal.q_index[row]].double().tolist()  # one a node
    law, is_chain = proposal.law, proposal.is_chain
    if not (recorded.trees or is_chain):
        nodes, q = _eldest(nodes, q)
        law, is_chain = specdec.Law.GIVEN if q is None else specdec.Law.IID, True
    if is_chain:  # ends at its first gap, and where the row's limit is
        most = told.limit[row] if recorded.replays else len(nodes["valid"])
        nodes["valid"] = [all(nodes["valid"][: i + 1]) and i < most for i in range(len(nodes["valid"]))]
    if q is not None:
        nodes["q_index"] = list(range(len(q)))
    _without_the_impossible(nodes, q, law)
    return Drafted(nodes, q, law, is_chain)


def _eldest(nodes: dict[str, list[Any]], q: Rows | None) -> tuple[dict[str, list[Any]], Rows | None]:
    """What a memory of one branch verifies of a tree: from the root on, each node's eldest child, while they count."""
    path, node = [], -1
    while node in nodes["parents"] and nodes["valid"][nodes["parents"].index(node)]:
        node = nodes["parents"].index(node)
        path.append(node)
    chain = {"tokens": [nodes["tokens"][n] for n in path], "parents": list(range(-1, len(path) - 1))}
    return {**chain, "valid": [True] * len(path)}, None if q is None else [q[n] for n in path]


def _without_the_impossible(nodes: dict[str, list[Any]], q: list[list[float]] | None, law: specdec.Law) -> None:
    """A token that its q could not draw counts as absent, and so does what hangs on it; see `verify.rejection`."""
    drawn: dict[int, list[int]] = {}
    for node, (token, parent) in enumerate(zip(nodes["tokens"], nodes["parents"], strict=True)):
        if parent >= 0 and not nodes["valid"][parent]:
            nodes["valid"][node] = False
        if q is None or not nodes["valid"][node]:
            continue
        elders = drawn.setdefault(parent, [])
        again = law is specdec.Law.WITHOUT_REPLACEMENT and token in elders
        nodes["valid"][node] = q[nodes["q_index"][node]][token] > 0 and not again
        elders.append(token)


def seed_of(generator_seed: int) -> int:
    """generate() draws the seed of its coins from the generator that it is given."""
    return int(torch.randint(-(2**63), 2**63 - 1, (), generator=torch.Generator().manual_seed(generator_seed)))
