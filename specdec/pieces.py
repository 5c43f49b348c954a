"""Cuts tokens into texts: a token alone may be half a character, or a word without the space before it."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

# No character has more tokens than this; a longer wait is for one that never comes (a run of broken bytes), and
# decoding all that waits at every token would take quadratic time.
MOST_PENDING = 16


@dataclass(slots=True)
class Pieces:
    """Turns tokens, one after the other, into texts that together are the text of all of them.

    Each piece is decoded behind the piece before it, since some tokenizers drop the space of a text's first
    word. A token whose text is empty or ends within a character waits for the next one. Time is linear in the
    number of tokens.

    Example:
        >>> pieces = Pieces(tokenizer)  # doctest: +SKIP
        >>> [pieces.add(token) for token in tokenizer("né").input_ids]  # doctest: +SKIP
        ['n', None, 'é']
    """

    tokenizer: PreTrainedTokenizerBase
    skip_special_tokens: bool = False
    pending: list[int] = field(default_factory=list, init=False)  # tokens whose text is not out yet
    _context: list[int] = field(default_factory=list, init=False)  # tokens of the last piece
    _context_text: str = field(default="", init=False)

    def add(self, token: int) -> str | None:
        """The text of all tokens that were pending and this one; None while it is incomplete."""
        self.pending.append(token)
        text = self._pending_text()
        incomplete = not text or text.endswith("\N{REPLACEMENT CHARACTER}")
        if incomplete and len(self.pending) < MOST_PENDING:
            return None
        self._context, self.pending = self.pending, []
        self._context_text = self._decode(self._context)
        return text

    def flush(self) -> str:
        """The text of the tokens that are pending, incomplete as it is; the next piece starts anew."""
        text = self._pending_text()
        self._context, self._context_text, self.pending = [], "", []
        return text

    def _pending_text(self) -> str:
        return self._decode(self._context + self.pending)[len(self._context_text) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(
            self.tokenizer.decode(
                tokens, skip_special_tokens=self.skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )
