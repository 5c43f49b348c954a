"""A suffix automaton of one growing text: its longest repeated suffix at any time, and how often what followed."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

Follower = tuple[int, int, int, int]  # token, times seen, end of the latest time, where it leads


class SuffixAutomaton:
    """All substrings of a text as states; a state is a set of substrings that end at the same places.

    Built token by token (Blumer et al. 1985; drafting with it: SAM-Decoding, arXiv:2411.10666). A token costs an
    amortised constant number of steps, whatever the text, plus one step a counted state: how often and where last a
    substring occurred is kept exactly for those of up to `max_count_length` tokens, which are at most as many
    states, and in ordinary text five or so. Of longer ones the counts are lower bounds, at least 1.

    The longest suffix that occurred before is the suffix link of the state of the whole text: it needs no search.

    Memory: at most 2 states and 3 transitions a token; 410 bytes a token of Python source.

    Args:
        max_count_length: longest substring whose occurrences are counted.

    Example:
        >>> text = SuffixAutomaton()
        >>> text.extend([7, 8, 9, 7, 8])
        >>> text.match_length  # 7, 8 stood there before
        2
        >>> [(token, count) for token, count, _, _ in text.followers(text.match)]
        [(9, 1)]
    """

    def __init__(self, max_count_length: int = 32) -> None:
        self.max_count_length = max_count_length
        self.size = 0
        self.steps = 0  # turns of all loops so far: what "amortised constant" is about
        self._next: list[dict[int, int]] = [{}]
        self._link = array("i", [-1])
        self._length = array("i", [0])  # of the state's longest substring
        self._count = array("i", [0])
        self._latest = array("i", [0])  # tokens up to and with the latest occurrence
        self._last = 0  # the whole text
        self._counted, self._counted_length = 0, 0  # its suffix of at most max_count_length tokens

    @property
    def match(self) -> int:
        """The state of the longest suffix of the text that ended somewhere before; 0 where there is none."""
        return max(self._link[self._last], 0)

    @property
    def match_length(self) -> int:
        return self._length[self.match]

    def extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self._append(token)

    def followers(self, state: int) -> list[Follower]:
        """What followed a state's substrings. A path that has come to the text's end goes on from its longest suffix
        that occurred before, so that a loop of any period has no end."""
        while state > 0 and not self._next[state]:
            state = self._link[state]
        if state <= 0:
            return []
        count, latest = self._count, self._latest
        return [(token, max(1, count[to]), latest[to], to) for token, to in self._next[state].items()]

    def _append(self, token: int) -> None:
        self.size += 1
        current = self._add_state({}, self.size)
        state = self._last
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = current
            state = self._link[state]
            self.steps += 1
        if state < 0:
            self._link[current] = 0
        else:
            known = self._next[state][token]
            if self._length[known] > self._length[state] + 1:
                known = self._split(state, token, known)
            self._link[current] = known
        self._last = current
        self._count_suffixes(token)

    def _split(self, state: int, token: int, known: int) -> int:
        """The shorter substrings of a state have just ended where the longer ones have not: a state of their own."""
        short = self._add_state(dict(self._next[known]), self._length[state] + 1)
        self._link[short], self._link[known] = self._link[known], short
        self._count[short], self._latest[short] = self._count[known], self._latest[known]
        self.steps += len(self._next[short])
        while state >= 0 and self._next[state].get(token) == known:
            self._next[state][token] = short
            state = self._link[state]
            self.steps += 1
        return short

    def _count_suffixes(self, token: int) -> None:
        """Counts the new occurrence of every suffix up to the longest one that is counted."""
        # Right even if `_counted` has just been split: both halves are followed by the same state.
        state, length = self._next[self._counted][token], self._counted_length + 1
        if length > self.max_count_length:
            length = self.max_count_length
            while self._length[self._link[state]] >= length:
                state = self._link[state]
                self.steps += 1
        self._counted, self._counted_length = state, length
        while state > 0:
            self._count[state] += 1
            self._latest[state] = self.size
            state = self._link[state]
            self.steps += 1

    def _add_state(self, followers: dict[int, int], length: int) -> int:
        self._next.append(followers)
        self._link.append(-1)
        self._length.append(length)
        self._count.append(0)
        self._latest.append(self.size)
        self.steps += 1
        return len(self._link) - 1
