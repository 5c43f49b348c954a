"""One tokenizer, as drafting across tokenizers needs it: ordinary tokens to text and back, special ones by name."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

from tokenizers import Tokenizer, decoders
from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # sentencepiece's name of a byte that no token spells


class Spelling:
    """What a tokenizer's ids say.

    A fast tokenizer is copied, since calls with other settings (truncation, padding) change a tokenizer, and several
    threads may draft; others are used one thread at a time.

    Args:
        tokenizer: any of transformers'.

    Attributes:
        vocabulary: token -> id, added tokens included.
        size: one more than the largest id.
        special: id -> token of those that stand for no text: BOS, EOS, padding, unknown, roles of a chat.
        ordinary: all other ids.
        prefix: the special tokens that it puts before a text.
        end: its EOS token's id.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.vocabulary: dict[str, int] = dict(tokenizer.get_vocab())
        self.size = max(self.vocabulary.values(), default=-1) + 1
        names = {index: token for token, index in self.vocabulary.items()}
        added: dict[int, Any] = dict(getattr(tokenizer, "added_tokens_decoder", {}))
        ids = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        self.special: dict[int, str] = {i: names[i] for i in ids if i in names}
        self.ordinary = frozenset(names.keys() - self.special.keys())
        self.end: int | None = getattr(tokenizer, "eos_token_id", None)
        self._added = {i for i in added if i in self.ordinary}
        self._names = names
        self._slow = tokenizer
        self._fast = _copied(tokenizer)
        self._lock = threading.Lock()
        self.prefix = list(takewhile(self.special.__contains__, self._encode("a", special=True) or []))

    def encode(self, text: str) -> list[int] | None:
        """The text's tokens, no special ones around them; None where the tokenizer cannot say."""
        return self._encode(text, special=False) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ordinary ids, nothing cleaned up; U+FFFD where they end within a character."""
        try:
            if self._fast is not None:
                return self._fast.decode(list(ids), skip_special_tokens=False)
            with self._lock:
                text: Any = self._slow.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            return str(text)
        except Exception:  # as in `_encode`
            return ""

    @cached_property
    def contents(self) -> dict[int, bytes]:
        """What each ordinary token spells, as bytes; where two spell the same, plain tokens come first."""
        decoder = _decoder(self._fast)
        plain = {i: name for i, name in sorted(self._names.items()) if i in self.ordinary}
        spelled = {i: name.encode() if i in self._added else decoder(name) for i, name in plain.items()}
        return dict(sorted(spelled.items(), key=lambda item: bool(_BYTE.fullmatch(plain[item[0]]))))

    def _encode(self, text: str, special: bool) -> list[int] | None:
        # Tokenizers raise bare Exceptions, for example without an unknown token where one is needed.
        try:
            if self._fast is not None:
                return list(self._fast.encode(text, add_special_tokens=special).ids)
            with self._lock:
                return list(self._slow.encode(text, add_special_tokens=special))
        except Exception:
            return None


def _copied(tokenizer: Any) -> Tokenizer | None:
    """A fast tokenizer's own copy, in which no text is read as a special token; None of others."""
    backend = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
    if not isinstance(backend, Tokenizer):
        return None
    try:
        copy = Tokenizer.from_str(backend.to_str())
    except Exception:  # parts written in Python cannot be copied
        return None
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    if isinstance(copy.decoder, decoders.WordPiece):  # cleaned up, a text's end would depend on what follows
        copy.decoder = decoders.WordPiece(prefix=copy.decoder.prefix, cleanup=False)
    return copy


def _decoder(fast: Tokenizer | None) -> Any:
    """token -> the bytes that it spells, by the kind of tokenizer."""
    kinds = {"Metaspace"} if fast is None else _kinds(json.loads(fast.to_str()).get("decoder"))
    if "ByteLevel" in kinds:
        table = _byte_alphabet()
        return lambda token: bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()
    if "WordPiece" in kinds:  # all but continuations begin a word
        return lambda token: token[2:].encode() if token.startswith("##") else b" " + token.encode()

    def decode(token: str) -> bytes:
        byte = _BYTE.fullmatch(token)
        if byte is not None and (fast is None or "ByteFallback" in kinds):
            return bytes([int(byte[1], 16)])
        return (token.replace("\u2581", " ") if kinds & {"Metaspace", "Replace"} else token).encode()

    return decode


def _kinds(decoder: Any) -> set[str]:
    """Types of a serialised decoder and its parts."""
    if not decoder:
        return set()
    return {decoder["type"]}.union(*(_kinds(part) for part in decoder.get("decoders", [])))


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that byte-level tokenizers (GPT-2's and later) write bytes as."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
