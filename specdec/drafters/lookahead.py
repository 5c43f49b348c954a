"""Lookahead decoding: the target drafts for itself, beside what it verifies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from specdec.drafters.base import Drafter, DraftSession
from specdec.drafters.jacobi import JacobiWindow, Pool
from specdec.drafters.trie import Trie, to_proposal
from specdec.errors import OptionError
from specdec.state import DecodeState
from specdec.types import MAX_NODES, Acceptance, Proposal

logger = logging.getLogger("specdec")


@dataclass
class _Row:
    """What is kept of one row.

    Args:
        read: n-grams that begin before this token of the text are in the pool.
        root: the last committed token at the last proposal.
        ends: the last node of each column that was proposed.
    """

    window: JacobiWindow
    pool: Pool
    read: int = 0
    root: int = 0
    ends: list[int] = field(default_factory=list)


class LookaheadSession(DraftSession):
    """One call's windows and pools."""

    def __init__(self, drafter: LookaheadDrafter, state: DecodeState) -> None:
        assert state.target is not None
        self._settings = drafter
        self._runs_window = state.target.layout.trees
        self.observes = "choices" if self._runs_window else "nothing"
        self._rows = [
            _Row(
                JacobiWindow(text, drafter.window, drafter.ngram),
                Pool(drafter.max_candidates, drafter.max_ngrams),
            )
            for text in state.host_tokens
        ]

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        tries = [
            self._tree(row, text, most) for row, text, most in zip(self._rows, state.host_tokens, limit, strict=True)
        ]
        return to_proposal(tries, state.device)

    def _tree(self, row: _Row, text: list[int], limit: int) -> Trie:
        """Verification branch first, since of equal nodes the elder is asked first; then the lookahead branch."""
        trie = Trie()
        if self._settings.reads_text:
            self._read(row, text)
        found = row.pool.candidates(text[-1])
        for rest in found if self._runs_window else found[:1]:
            trie.add(rest, limit)
        row.root = text[-1]
        row.ends = row.window.place(trie, limit) if self._runs_window else []
        return trie

    def _read(self, row: _Row, text: list[int]) -> None:
        """Takes the text's own n-grams into the pool."""
        size = self._settings.ngram
        for begin in range(row.read, len(text) - size + 1):
            row.pool.add(text[begin], tuple(text[begin + 1 : begin + size]))
        row.read = max(row.read, len(text) - size + 1)

    def observe_choices(
        self, proposal: Proposal, acceptance: Acceptance, num_accepted: Sequence[int], choices: Tensor
    ) -> None:
        for row, answers in zip(self._rows, choices.tolist(), strict=True):
            behind = [answers[end + 1] for end in row.ends]
            row.window.advance(row.root, [a if a >= 0 else None for a in behind], row.pool)

    def select_rows(self, rows: Sequence[int], index: Tensor) -> None:
        self._rows = [self._rows[r] for r in rows]


class LookaheadDrafter(Drafter):
    """Lookahead decoding (arXiv:2402.02057): n-grams from the target's own Jacobi iteration, no second model.

    Each round's tree has two parts. The lookahead branch holds guesses of the `window` next tokens, of the last
    `ngram` - 1 iterations; the target's answers behind them are the next iteration, and complete one n-gram a column,
    which goes into a pool. The verification branch holds the n-grams of the pool that begin with the last committed
    token. Both are verified in the one forward, and equal prefixes share nodes.

    A round runs up to (W - 1) + W (N - 2) + G (N - 1) tokens, of which N - 1 can be accepted: it pays where a forward
    of that width costs little more than one of a single token, as on a GPU with room to spare, or where the output
    repeats itself. All that is drafted comes from earlier rounds, so that the output is exact, greedy or sampled.

    The tree is W + N - 3 levels deep, and no deeper than the call's `num_draft_tokens`; "auto" runs all of it, or
    nothing where it has not paid. Columns beyond what is asked for are not run and keep their guesses; below N - 2
    levels no column is. Models that verify no trees (recurrent states, positions of the batch) get the latest
    n-gram of the pool as a chain, which then has the text's own n-grams only, and nothing if `reads_text` is False.
    The target's answers are read from the device once more a round.

    Args:
        window: columns of the lookahead branch, W >= 2.
        ngram: N >= 2.
        max_candidates: n-grams verified a round and kept for one first token, G >= 1; the latest.
        max_ngrams: n-grams in a row's pool, >= max_candidates.
        reads_text: the pool has the n-grams of prompt and output, too (POOL_FROM_PROMPT in the authors' code, which
            reads the prompt).

    Raises:
        OptionError: a number out of range.

    Example:
        >>> drafter = LookaheadDrafter(window=5, ngram=4)
        >>> specdec.generate(target, **inputs, drafter=drafter, num_draft_tokens=6)  # doctest: +SKIP
    """

    def __init__(
        self,
        window: int = 5,
        ngram: int = 4,
        max_candidates: int = 5,
        *,
        max_ngrams: int = 16_384,
        reads_text: bool = True,
    ) -> None:
        least = {"window": 2, "ngram": 2, "max_candidates": 1, "max_ngrams": max_candidates}
        given = {"window": window, "ngram": ngram, "max_candidates": max_candidates, "max_ngrams": max_ngrams}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < least[name]:
                raise OptionError(
                    f"LookaheadDrafter needs an integer {name} >= {least[name]}, got {value!r}: smaller ones leave "
                    "nothing to guess or to verify."
                )
        most = window - 1 + window * (ngram - 2) + max_candidates * (ngram - 1)
        if most > MAX_NODES:
            raise OptionError(
                f"LookaheadDrafter would propose up to {most} tokens a round, and at most {MAX_NODES} can be verified "
                "together: use a smaller window, ngram or max_candidates."
            )
        self.window, self.ngram = window, ngram
        self.max_candidates, self.max_ngrams = max_candidates, max_ngrams
        self.reads_text = reads_text
        self.depth = window + ngram - 3

    def start(self, state: DecodeState) -> LookaheadSession:
        if state.target is not None and not state.target.layout.trees:
            logger.info(
                "%s verifies no trees: lookahead drafts from the text's own n-grams only.",
                type(state.target.model).__name__,
            )
        return LookaheadSession(self, state)
