"""A text in two tokenizers' tokens: read from the target's, written in the draft's, and a continuation back again.

Everything here only decides what is proposed, so that a doubt ends in a shorter proposal and never in an error: the
output is the target's whatever is drafted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specdec.drafters.spelling import Spelling

_UNREADABLE = "\ufffd"  # stands where bytes make no character
_HELD = 3  # bytes of a character that may still be completed
_CONTEXT = 48  # characters before a continuation that its tokens may depend on
_LONG, _KEPT = 384, 64  # a text's end is tokenised anew each time: when it has grown long, and what remains of it
_SENTINELS = (".", "\n")  # texts that a continuation stands behind, so that it begins no text or word


class Retokeniser:
    """One row's text.

    Special tokens carry no text: those of which the draft has a like are handed over, others left out. They end
    what can be tokenised together.

    Args:
        target, draft: the two tokenizers.
        special: target id -> draft id of special tokens that mean the same.

    Example:
        >>> row = Retokeniser(Spelling(tokenizer), Spelling(other), {})  # doctest: +SKIP
        >>> row.read(prompt_ids)  # in the draft's tokens  # doctest: +SKIP
        >>> row.continuation(drafted_ids)  # in the target's tokens  # doctest: +SKIP
    """

    def __init__(self, target: Spelling, draft: Spelling, special: Mapping[int, int]) -> None:
        self._target, self._draft = target, draft
        self._to_draft, self._to_target = special, {d: t for t, d in special.items()}
        self._done = list(draft.prefix)  # draft tokens of the text before `_tail`
        self._tail = ""
        self._recent = ""  # the last characters of the text
        self._count = 0  # target tokens that are part of the text
        self._from = 0  # the target token from which the next ones are decoded: some context, whole characters
        self._section = (0, len(self._done))  # target and draft tokens where text without special tokens began
        self._held: list[int] = []  # target tokens that end within a character
        self._ids: list[int] | None = None
        self._patience = _LONG

    def read(self, tokens: Sequence[int]) -> list[int] | None:
        """The draft's tokens of the text that these target tokens make, which begin with those of the last call.

        None where the draft's tokenizer has no answer.
        """
        while True:
            end = self._count
            while end < len(tokens) and tokens[end] in self._target.ordinary:
                end += 1
            self._take(tokens, end)
            if end == len(tokens):
                break
            self._pass(tokens[end], end)
        self._held = list(tokens[self._count :])
        tail = self._draft.encode(self._tail)
        self._ids = None if tail is None else self._done + tail
        if tail is not None and len(self._tail) > self._patience:
            self._settle(tail)
        return self._ids

    def continuation(self, drafted: Sequence[int]) -> list[int]:
        """Target tokens that go on from those read last as the drafted tokens do; maybe none."""
        if self._ids is None:
            return []
        end = next((i for i, token in enumerate(drafted) if token not in self._draft.ordinary), len(drafted))
        text, is_whole = self._drafted_text(drafted[:end])
        tokens = self._in_context(text)
        if tokens[: len(self._held)] != self._held:
            return []
        tokens = tokens[len(self._held) :]
        strange = next((i for i, token in enumerate(tokens) if token not in self._target.ordinary), None)
        if strange is not None:
            return tokens[:strange]
        closing = self._to_target.get(drafted[end]) if end < len(drafted) and is_whole else None
        return tokens if closing is None else [*tokens, closing]

    def _take(self, tokens: Sequence[int], end: int) -> None:
        """Ordinary tokens up to `end` become text, but for some at the end that are only a part of a character."""
        if end == self._count:
            return
        for stop in range(end, max(self._count, end - _HELD - 1), -1):
            text = self._target.decode(tokens[self._from : stop])
            if not text.endswith(_UNREADABLE):
                break
        else:
            if end - self._count <= _HELD:
                return
            stop = end  # bytes that no character is made of
            text = self._target.decode(tokens[self._from : stop])
        before = self._target.decode(tokens[self._from : self._count])
        if text.startswith(before):
            self._tail += text[len(before) :]
            self._recent = (self._recent + text[len(before) :])[-_CONTEXT:]
        else:  # these tokens change how earlier ones read
            self._tail = self._target.decode(tokens[self._section[0] : stop])
            self._recent = self._tail[-_CONTEXT:]
            del self._done[self._section[1] :]
        self._from, self._count = self._count, stop

    def _pass(self, token: int, place: int) -> None:
        """A special token, or an id that stands for nothing."""
        self._done += self._draft.encode(self._tail) or []
        other = self._to_draft.get(token)
        if other is not None and not (self._done == self._draft.prefix == [other]):  # its own BOS stands there
            self._done.append(other)
        self._tail = self._recent = ""
        self._count = self._from = place + 1
        self._section = (self._count, len(self._done))

    def _settle(self, tail: list[int]) -> None:
        """Most of the text's end is tokenised for good, where a word begins and what follows makes the same tokens."""
        text = self._tail
        for place in range(len(text) - _KEPT, 0, -1):
            if text[place].isspace() and not text[place - 1].isspace():
                # Some tokenizers put a space before every text.
                for start in (place, place + 1):
                    rest = self._draft.encode(text[start:])
                    if rest and len(rest) < len(tail) and tail[-len(rest) :] == rest:
                        self._done += tail[: -len(rest)]
                        self._tail, self._patience = text[start:], _LONG
                        return
                break
        self._patience = 2 * len(text)

    def _drafted_text(self, drafted: Sequence[int]) -> tuple[str, bool]:
        """What the drafted tokens add to the text, whole characters only; whether that is all of them."""
        assert self._ids is not None
        before, context = "", 0
        for context in range(4, 13):  # from where on no character is cut
            before = self._draft_text(self._ids[-context:])
            if not before.startswith(_UNREADABLE):
                break
        text = self._draft_text([*self._ids[-context:], *drafted])
        if not text.startswith(before):
            return "", False
        added = text[len(before) :]
        whole = added.partition(_UNREADABLE)[0]
        return whole, whole == added

    def _draft_text(self, ids: Sequence[int]) -> str:
        return self._draft.decode([i for i in ids if i in self._draft.ordinary])

    def _in_context(self, text: str) -> list[int]:
        """The target's tokens of a text that stands behind the one read."""
        if not text:
            return []
        before, whole = self._target.encode(self._recent), self._target.encode(self._recent + text)
        if before is not None and whole is not None and whole[: len(before)] == before:
            return whole[len(before) :]
        # The text read was committed in other tokens than it would have together with this one.
        for sentinel in _SENTINELS:
            before, whole = self._target.encode(sentinel), self._target.encode(sentinel + text)
            if before and whole and whole[: len(before)] == before:
                return whole[len(before) :]
        return self._target.encode(text) or []
