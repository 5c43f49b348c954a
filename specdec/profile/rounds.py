"""How many rounds the loop needs for a text, from what a draft would have had accepted of it: no loop is run.

The mean acceptance over a text is not the loop's: rounds begin more often where drafts fail, and fewer of a round's
drafts are looked at there. But given the text, the beginnings of rounds are a Markov chain. A round that begins at
token s goes on over token t with probability share[t], that the draft's token was the accepted one there; where it
was not, the target wrote the token and the next round begins behind it. All of that is one pass over the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rounds:
    """Expected counts of one call.

    Attributes:
        rounds: target forwards after the prompt's.
        drafted: tokens.
        accepted: tokens of the text that were drafted.
        drafting: rounds in which anything was drafted.
    """

    rounds: float
    drafted: float
    accepted: float
    drafting: float


def expected_rounds(share: Sequence[float], num_draft_tokens: int, max_new_tokens: int) -> Rounds:
    """What the loop is expected to take for one text, drafting chains of a fixed number of tokens.

    Args:
        share: of each of the text's new tokens, the first one (which the prompt's forward gives) included.
        num_draft_tokens: k; no more are drafted than max_new_tokens leaves room for.
        max_new_tokens: the call's; more than the text has where it ended with EOS.

    Example:
        >>> expected_rounds([1.0] * 11, num_draft_tokens=4, max_new_tokens=11)
        Rounds(rounds=2.0, drafted=8.0, accepted=8.0, drafting=2.0)
    """
    length = len(share)
    begins = [0.0] * (length + num_draft_tokens + 2)  # chance that a round begins at each token
    begins[1] = 1.0
    rounds = drafted = accepted = drafting = 0.0
    for start in range(1, length):
        chance = begins[start]
        if chance == 0.0:
            continue
        room = min(num_draft_tokens, max_new_tokens - start - 1)
        rounds += chance
        drafted += chance * room
        drafting += chance * (room > 0)
        for token in range(start, min(start + room, length)):
            passed = chance * share[token]
            begins[token + 1] += chance - passed
            accepted += passed
            chance = passed
        else:
            begins[start + room + 1] += chance
    return Rounds(rounds, drafted, accepted, drafting)
