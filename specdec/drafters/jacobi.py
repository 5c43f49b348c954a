"""The bookkeeping of lookahead decoding (arXiv:2402.02057) on the host: one row's window and pool."""

from __future__ import annotations

from collections.abc import Sequence

from specdec.drafters.trie import Trie


class Pool:
    """N-grams by their first token; the least recently seen are forgotten.

    Args:
        max_candidates: most n-grams that begin with one token.
        max_ngrams: most n-grams in all; beyond it the tokens that were least recently added to lose all of theirs.
    """

    def __init__(self, max_candidates: int, max_ngrams: int) -> None:
        self._max_candidates, self._max_ngrams = max_candidates, max_ngrams
        self._rests: dict[int, dict[tuple[int, ...], None]] = {}  # both in order of use, the latest last
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, first: int, rest: tuple[int, ...]) -> None:
        """Puts the n-gram (first, *rest) in, as the latest one."""
        rests = self._rests.pop(first, {})
        self._rests[first] = rests
        self._size -= len(rests)
        rests.pop(rest, None)
        rests[rest] = None
        if len(rests) > self._max_candidates:
            del rests[next(iter(rests))]
        self._size += len(rests)
        while self._size > self._max_ngrams and len(self._rests) > 1:
            self._size -= len(self._rests.pop(next(iter(self._rests))))

    def candidates(self, first: int) -> list[tuple[int, ...]]:
        """What followed this token, the latest first."""
        return list(reversed(self._rests.get(first, {})))


class JacobiWindow:
    """Guesses of the tokens ahead, made better by a round of Jacobi iteration at a time.

    Of the last N - 1 iterations a slanting window is kept. Column i begins with the oldest iteration's guess of the
    token i ahead of the last committed one (column 0 with that token itself); level l of it is the guess that was made
    l iterations later, of the token i + l ahead. So a column is a chain in which each token was the model's answer
    to what stood before it, and with the next answer it is an n-gram.

    At the beginning all iterations are taken to have guessed the prompt once more from its start.

    Args:
        text: the row's tokens, at least one.
        window: columns, W >= 2.
        ngram: N >= 2.

    Attributes:
        levels: N - 1 lists; level 0 of the columns 1 to W - 1, the others of all columns.
    """

    def __init__(self, text: Sequence[int], window: int, ngram: int) -> None:
        seeds = [text[i % len(text)] for i in range(window + ngram - 3)]  # of the tokens 1, 2, ... ahead
        self.width = window
        self.levels = [seeds[: window - 1], *(seeds[i : i + window] for i in range(ngram - 2))]
        self._streaks = [0] * window  # rounds in a row that each column had an answer

    def place(self, trie: Trie, limit: int) -> list[int]:
        """Adds the columns that end within depth `limit` to the tree; returns the last node of each (-1 = the root).

        Level 0 is a chain from the root, the trunk; column i hangs on the trunk's node i. A node then sees what the
        paper's mask shows it: the trunk up to its own column, and its own column.
        """
        ends: list[int] = []
        trunk = -1
        for column in range(min(self.width, limit - len(self.levels) + 2)):
            if column:
                trunk = trie.child(trunk, self.levels[0][column - 1])
            ends.append([trunk, *trie.add([level[column] for level in self.levels[1:]], limit, trunk)][-1])
        return ends

    def advance(self, root: int, answers: Sequence[int | None], pool: Pool) -> None:
        """Takes the model's answers behind the columns, collects n-grams, and moves one token ahead.

        Args:
            root: the last committed token when the columns were placed.
            answers: of the first columns; None where there is none. Such a column keeps the guess that it had.
        """
        newest = []
        for column in range(self.width):
            answer = answers[column] if column < len(answers) else None
            if answer is None:
                self._streaks[column] = 0
                newest.append(self._older_guess(column, root))
                continue
            newest.append(answer)
            # Levels that are still the beginning's, or kept guesses, are no answers of the model.
            if self._streaks[column] >= len(self.levels) - 1:
                first = root if column == 0 else self.levels[0][column - 1]
                pool.add(first, (*(level[column] for level in self.levels[1:]), answer))
            self._streaks[column] += 1
        self.levels = [*self.levels[1:], newest]
        self.levels[0] = self.levels[0][1:]

    def _older_guess(self, column: int, root: int) -> int:
        """The newest iteration's guess of the token that this column has no answer for, or of one near it."""
        last = self.levels[-1] if len(self.levels) > 1 else [root, *self.levels[0]]
        return last[min(column + 1, self.width - 1)]
