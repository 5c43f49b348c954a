"""What two vocabularies have in common, and how the rest of one is spelled in the other."""

from __future__ import annotations

from functools import lru_cache

from specdec.drafters.spelling import Spelling


class SharedVocabulary:
    """Tokens of the target and of the draft that spell the same bytes, each with one of the other at most.

    Args:
        target, draft: the two tokenizers.

    Attributes:
        to_draft: target id -> draft id of the shared tokens.
        special_to_draft: the same of special tokens alone: EOS, and those of one name.
        coverage: the shared part of the target's ordinary tokens.
    """

    def __init__(self, target: Spelling, draft: Spelling) -> None:
        self._target, self._draft = target, draft
        self._by_content: dict[bytes, int] = {}
        for index, content in draft.contents.items():
            if content:
                self._by_content.setdefault(content, index)
        ordinary: dict[int, int] = {}
        seen: set[bytes] = set()
        for index, content in target.contents.items():
            if content in self._by_content and content not in seen:
                seen.add(content)
                ordinary[index] = self._by_content[content]
        self.special_to_draft = special_pairs(target, draft)
        self.to_draft = {**ordinary, **self.special_to_draft}
        self.coverage = len(ordinary) / max(1, len(target.ordinary))
        self._longest = max(map(len, self._by_content), default=0)
        self.pieces = lru_cache(maxsize=1 << 16)(self._pieces)  # locks by itself

    def _pieces(self, token: int) -> tuple[int, ...]:
        """A target token in draft tokens; none where it is special and the draft has no such token."""
        if token in self.to_draft:
            return (self.to_draft[token],)
        content = self._target.contents.get(token)
        if not content:
            return ()
        spelled = self._as_the_draft_would(content)
        return tuple(spelled if spelled is not None else self._longest_first(content))

    def _as_the_draft_would(self, content: bytes) -> list[int] | None:
        """The draft tokenizer's own pieces, if they spell exactly this."""
        try:
            ids = self._draft.encode(content.decode())
        except UnicodeDecodeError:  # a part of a character
            return None
        own = self._draft.contents
        return ids if ids and b"".join(own.get(i, b"\xff") for i in ids) == content else None

    def _longest_first(self, content: bytes) -> list[int]:
        """Pieces found from left to right, each as long as possible; bytes that no token begins with are left out."""
        pieces, start = [], 0
        while start < len(content):
            for end in range(min(len(content), start + self._longest), start, -1):
                if content[start:end] in self._by_content:
                    pieces.append(self._by_content[content[start:end]])
                    start = end
                    break
            else:
                start += 1
        return pieces


def special_pairs(target: Spelling, draft: Spelling) -> dict[int, int]:
    """Special tokens that mean the same: the two ends of a text, and those of one name."""
    pairs: dict[int, int] = {}
    if target.end is not None and draft.end is not None and target.end in target.special and draft.end in draft.special:
        pairs[target.end] = draft.end
    for index, name in target.special.items():
        other = draft.vocabulary.get(name)
        if other is not None and other in draft.special and index not in pairs and other not in pairs.values():
            pairs[index] = other
    return pairs
