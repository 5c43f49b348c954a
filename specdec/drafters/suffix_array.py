"""A compact, immutable index of texts: where a context occurred, by binary search, at eight bytes a token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
MAX_MATCH = 64  # contexts are sorted, and so found, by as many of their last tokens
MAX_TOKENS = 2**31 - 1
Place = tuple[int, int]  # the array's number, and a token in it
_EDGE = -1  # stands before, between and behind texts, and matches nothing


class SuffixArray:
    """Every place of some texts that something follows, sorted by what stands there read backwards.

    So the places that end with a context are neighbours, and one narrowing search, a token at a time from the
    context's end, finds the longest suffix of it that occurs: at most MAX_MATCH times log2(n) comparisons. Building
    takes log2(MAX_MATCH) sorts (prefix doubling, Manber & Myers 1993), whatever repeats in the texts.

    Memory: 8 bytes a token (int32 tokens, int32 places) and 4 a text; about 40 a token while it is built.

    Attributes:
        tokens: [n] int32, each text with -1 in front of it, and -1 at the end.
        order: [m] int32, the sorted places.

    Example:
        >>> index = SuffixArray.build([[5, 6, 7], [6, 7, 8]])
        >>> index.find([9, 6, 7])  # the longest suffix with something behind it, and its places in order
        (2, 3, 4)
    """

    def __init__(self, tokens: IntArray, order: IntArray) -> None:
        self.tokens, self.order = tokens, order

    @classmethod
    def build(cls, texts: Sequence[Sequence[int]]) -> SuffixArray:
        """Of texts of token ids >= 0; empty ones are left out."""
        edge = np.array([_EDGE], dtype=np.int32)
        parts = [np.asarray(text, dtype=np.int32) for text in texts if len(text)]
        tokens = np.concatenate([edge, *(p for part in parts for p in (part, edge))])
        return cls(tokens, _sorted_places(tokens))

    @classmethod
    def join(cls, arrays: Sequence[SuffixArray]) -> SuffixArray:
        """Their texts in one, in that order."""
        if len(arrays) == 1:
            return arrays[0]
        edge = np.array([_EDGE], dtype=np.int32)
        tokens = np.concatenate([edge, *(a.tokens[1:] for a in arrays)])
        return cls(tokens, _sorted_places(tokens))

    @property
    def num_bytes(self) -> int:
        return self.tokens.nbytes + self.order.nbytes

    @cached_property
    def num_texts(self) -> int:
        return int((self.tokens == _EDGE).sum()) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) - 1 - self.num_texts

    @cached_property
    def highest(self) -> int:
        """The highest token id; -1 where there is no text."""
        return int(self.tokens.max())

    def check(self) -> None:
        """Raises ValueError unless these could be the arrays of an index: what is read from a file may be anything."""
        tokens, order = self.tokens, self.order
        if not len(tokens) or tokens[0] != _EDGE or tokens[-1] != _EDGE or tokens.min() < _EDGE:
            raise ValueError("tokens that are no texts")
        inside = np.flatnonzero((tokens[:-1] != _EDGE) & (tokens[1:] != _EDGE))
        if len(order) != len(inside) or not np.array_equal(np.sort(order), inside):
            raise ValueError("places that are not the texts'")

    def without_oldest(self, num_bytes: int) -> SuffixArray:
        """The same without its first texts, as few as free num_bytes; the last one stays."""
        edges = np.flatnonzero(self.tokens == _EDGE)
        freed = int(np.searchsorted(8 * edges, num_bytes))
        tokens = self.tokens[edges[min(freed, len(edges) - 2)] :].copy()
        return SuffixArray(tokens, _sorted_places(tokens))

    @cached_property
    def view(self) -> memoryview:
        """Of the tokens; reading one of them takes a third of numpy's time."""
        return np.ascontiguousarray(self.tokens).data

    @cached_property
    def _order_view(self) -> memoryview:
        return np.ascontiguousarray(self.order).data

    def find(self, context: Sequence[int]) -> tuple[int, int, int]:
        """(length, begin, end): order[begin:end] are all places with the longest suffix that occurs, of `length`."""
        begin, end, length = 0, len(self.order), 0
        for back in range(min(len(context), MAX_MATCH)):
            token = context[-1 - back]
            low = self._first(begin, end, back, token)
            high = self._first(low, end, back, token + 1)
            if low == high:
                break
            begin, end, length = low, high, back + 1
        return length, begin, end

    def places(self, begin: int, end: int, most: int) -> list[int]:
        """order[begin:end], or `most` of them, evenly spaced."""
        if end - begin <= most:
            return self._order_view[begin:end].tolist()
        return self.order[np.linspace(begin, end - 1, most).astype(np.int64)].tolist()

    def _first(self, low: int, high: int, back: int, token: int) -> int:
        """The first of the places from low to high whose token, `back` tokens earlier, is not less."""
        tokens, order = self.view, self._order_view
        while low < high:
            middle = (low + high) // 2
            if tokens[order[middle] - back] < token:
                low = middle + 1
            else:
                high = middle
        return low


def _sorted_places(tokens: IntArray) -> IntArray:
    """Places inside a text that are not its last, by their last MAX_MATCH tokens, then by themselves."""
    rank = _dense(tokens.astype(np.int64))
    width = 1
    while width < MAX_MATCH:
        # An edge stands in front, and ends every comparison that matters: what wraps round is never asked for.
        rank = _dense(rank * len(tokens) + np.roll(rank, width))
        width *= 2
    order = np.argsort(rank, kind="stable")
    inside = (tokens != _EDGE) & (np.roll(tokens, -1) != _EDGE)
    return order[inside[order]].astype(np.int32)


def _dense(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each key's number among the different ones."""
    order = np.argsort(keys)
    ordered = keys[order]
    ranks = np.empty_like(keys)
    ranks[order] = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])])
    return ranks


class Corpus:
    """Arrays as they were when a call began: the longest match in any of them, and what followed it.

    Example:
        >>> corpus = Corpus([SuffixArray.build([[5, 6, 7]]), SuffixArray.build([[6, 7], [5, 6, 8]])])
        >>> length, places = corpus.find([5, 6])
        >>> length, [(token, count) for token, count, _, _ in corpus.followers(places)]
        (2, [(7, 1), (8, 1)])
    """

    MOST_PLACES = 256  # of a short context; those looked at are spaced evenly

    def __init__(self, arrays: Sequence[SuffixArray]) -> None:
        self._arrays = arrays

    def find(self, context: Sequence[int], longer_than: int = 0) -> tuple[int, list[Place]]:
        """The length of the longest suffix that occurs in front of anything, and where; (0, []) if not longer."""
        longest = longer_than
        found: list[Place] = []
        for number, array in enumerate(self._arrays if longer_than < MAX_MATCH else ()):
            length, begin, end = array.find(context)
            if length > longest:
                longest, found = length, []
            if length == longest and length > longer_than:
                found += [(number, place) for place in array.places(begin, end, self.MOST_PLACES)]
        return (longest, found) if found else (0, [])

    def followers(self, places: list[Place]) -> list[tuple[int, int, Place, list[Place]]]:
        """What followed the places, as `SuffixAutomaton.followers`: token, count, the latest place, all of them."""
        groups: dict[int, list[Place]] = {}
        for number, place in places:
            token = self._arrays[number].view[place + 1]
            if token != _EDGE:
                groups.setdefault(token, []).append((number, place + 1))
        return [(token, len(group), max(group), group) for token, group in groups.items()]
