"""The rounds of a drafter that looks at the text only: what it proposes on the target's own text, no target run.

Nothing is left to chance: of drafts that were not drawn (q is None) the text's own token is accepted wherever it was
proposed, greedy or sampled, since the rule's remainder excludes what was proposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList

from specdec.drafters import Drafter
from specdec.errors import OptionError
from specdec.profile.rounds import Rounds
from specdec.sampling import Sampler
from specdec.state import DecodeState
from specdec.target import ModelRunner
from specdec.types import Proposal, int_tensor


def replayed_rounds(
    drafter: Drafter,
    target: ModelRunner,
    prompt: Sequence[int],
    text: Sequence[int],
    num_draft_tokens: int,
    max_new_tokens: int,
    *,
    do_sample: bool = False,
) -> Rounds:
    """The rounds that the loop takes to write `text` behind `prompt`.

    Args:
        drafter: one whose proposals follow from the tokens alone.
        target: says whether trees can be verified.
        text: new tokens, the first of which the prompt's forward gives.

    Raises:
        OptionError: it proposed tokens with a q, or wanted to see more than tokens.
    """
    whole = [*prompt, *text]
    device = torch.device("cpu")
    ids = int_tensor([whole[: len(prompt)]], device)
    sampler = Sampler(LogitsProcessorList(), do_sample, 1)
    most = len(prompt) + max_new_tokens
    state = DecodeState(ids, ids, torch.ones_like(ids, dtype=torch.bool), most, target.vocab_size, sampler, 0)
    state.target, state.max_new_tokens = target, max_new_tokens
    session: Any = drafter.start(state)
    if session.observes != "nothing":
        raise OptionError(f"{type(drafter).__name__} drafts by more than the text: its rounds can only be measured.")
    rounds = drafted = accepted = drafting = 0
    position = 0

    def extend(count: int) -> None:
        new = text[position : position + count]
        state.extend(int_tensor([new], device), int_tensor([len(new)], device), [list(new)])

    try:
        extend(1)
        position = 1
        while position < len(text):
            room = min(num_draft_tokens, max_new_tokens - position - 1)
            proposal = session.propose(state, [room]) if room > 0 else Proposal.empty(1, device)
            if proposal.q is not None:
                raise OptionError(f"{type(drafter).__name__} draws its drafts: its rounds can only be measured.")
            depth, kept = _followed(proposal, text[position:])
            rounds, drafted, accepted = rounds + 1, drafted + depth, accepted + kept
            drafting += depth > 0
            extend(kept + 1)
            position += kept + 1
    finally:
        session.close()
    return Rounds(float(rounds), float(drafted), float(accepted), float(drafting))


def _followed(proposal: Proposal, text: Sequence[int]) -> tuple[int, int]:
    """Depth of a proposal for one row, and for how many tokens it follows the text."""
    tokens, parents = proposal.tokens[0].tolist(), proposal.parents[0].tolist()
    valid = proposal.valid[0].tolist()
    depths: list[int] = []
    followed = {-1: 0}  # node -> tokens of the text that the path to it holds
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        depths.append((depths[parent] if parent >= 0 else 0) + 1 if valid[node] else 0)
        along = followed.get(parent)
        if valid[node] and along is not None and along < len(text) and text[along] == token:
            followed[node] = along + 1
    return max(depths, default=0), max(followed.values())
