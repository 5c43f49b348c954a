"""Texts to draft from: a user's corpus, saved and loaded, and what earlier calls wrote."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from transformers import PreTrainedTokenizerBase

from specdec.drafters.suffix_array import MAX_TOKENS, SuffixArray
from specdec.errors import DraftMismatchError, OptionError

DEFAULT_BYTES = 256_000_000
_FORMAT, _VERSION = "specdec suffix index", 1
_PARTS = ("format", "version", "max_bytes", "vocab_size", "fingerprint", "tokens", "order")
_MAX_PADDING = 1024  # embedding matrices are padded; more is another vocabulary
_HEADER_BYTES = 4096  # of an array in the file, at most: what numpy writes in front of it


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of the vocabulary: every token and its id."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise OptionError(
            f"tokenizer must be a transformers tokenizer, got {type(tokenizer).__name__}: load it first, with "
            "AutoTokenizer.from_pretrained(...)."
        )
    digest = hashlib.sha256()
    for token, number in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{token}\0{number}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class SuffixIndex:
    """Texts of token ids, in which any context is found by its longest suffix; shared between calls and threads.

    The texts lie in immutable suffix arrays (`suffix_array.py`). What is added becomes a small array, and arrays are
    joined where a newer one has grown as large as the one before it, so that there are log2(n) of them and a token is
    sorted as many times. Reading takes no lock: a call keeps the arrays that were there when it began.

    Memory: 8 bytes a token and 4 a text, and never more than max_bytes in all (while arrays are joined, up to 5 times
    the joined ones on top). Where a new text needs room, the oldest texts leave, a loaded corpus included.

    Args:
        max_bytes: bound of the arrays.
        vocab_size: token ids lie below it; None takes that of the first target that drafts from the index.
        fingerprint: of the tokenizer (`fingerprint(tokenizer)`), None where nobody said.

    Raises:
        OptionError: max_bytes or vocab_size is not positive.

    Example:
        >>> index = SuffixIndex.build([[5, 6, 7], [6, 7, 8]], vocab_size=10)
        >>> index.num_texts, index.num_tokens
        (2, 6)
    """

    def __init__(
        self, max_bytes: int = DEFAULT_BYTES, *, vocab_size: int | None = None, fingerprint: str | None = None
    ) -> None:
        for name, value in (("max_bytes", max_bytes), ("vocab_size", vocab_size)):
            if value is not None and (type(value) is not int or value < 1):
                raise OptionError(f"SuffixIndex needs a positive integer as {name}, got {value!r}.")
        self.max_bytes = max_bytes
        self.fingerprint = fingerprint
        self._vocab_size = vocab_size
        self._arrays: tuple[SuffixArray, ...] = ()  # older ones first; replaced, never changed
        self._lock = threading.Lock()

    @classmethod
    def build(
        cls,
        texts: Iterable[Sequence[int]],
        *,
        max_bytes: int = DEFAULT_BYTES,
        vocab_size: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> SuffixIndex:
        """An index of texts of token ids, in one array: a few sorts of all tokens.

        Args:
            texts: read until one of them no longer fits into max_bytes; that one and the rest are left out.
            vocab_size: token ids lie below it; the tokenizer's, if omitted.
            tokenizer: the one that made the ids, remembered by a hash of its vocabulary.

        Raises:
            OptionError: an id is negative or not below vocab_size; max_bytes holds no text.
        """
        mark = None if tokenizer is None else fingerprint(tokenizer)
        if tokenizer is not None and vocab_size is None:
            vocab_size = len(tokenizer)
        index = cls(max_bytes, vocab_size=vocab_size, fingerprint=mark)
        taken: list[Any] = []
        num_bytes = 4
        for text in texts:
            checked = index._checked(text)
            num_bytes += _bytes_of(len(checked))
            if num_bytes > min(max_bytes, 8 * MAX_TOKENS):
                if not taken:
                    raise OptionError(
                        f"max_bytes={max_bytes} is less than the first text's {num_bytes} bytes: allow more (on "
                        "the command line with --max-bytes), or cut the text into smaller ones."
                    )
                break
            taken.append(checked)
        if any(map(len, taken)):
            index._arrays = (SuffixArray.build(taken),)
        return index

    @property
    def arrays(self) -> tuple[SuffixArray, ...]:
        """What is searched, older texts first."""
        return self._arrays

    @property
    def vocab_size(self) -> int | None:
        return self._vocab_size

    @property
    def num_bytes(self) -> int:
        return sum(array.num_bytes for array in self._arrays)

    @property
    def num_texts(self) -> int:
        return sum(array.num_texts for array in self._arrays)

    @property
    def num_tokens(self) -> int:
        return sum(array.num_tokens for array in self._arrays)

    def add(self, text: Sequence[int]) -> None:
        """Adds a text under the index's lock; the oldest ones leave if it needs their room.

        A text that does not fit into max_bytes by itself loses its beginning.

        Raises:
            OptionError: an id is negative or not below vocab_size.
        """
        checked, room = self._checked(text), (self.max_bytes - 4) // 8
        if room < 1 or len(checked) == 0:
            return
        checked = checked[-room:]
        with self._lock:
            arrays = [*self._arrays, SuffixArray.build([checked])]
            while len(arrays) > 1 and arrays[-2].num_tokens <= arrays[-1].num_tokens:
                arrays[-2:] = [SuffixArray.join(arrays[-2:])]
            self._arrays = tuple(self._bounded(arrays))

    def check(self, vocab_size: int, other: str | None = None) -> None:
        """Raises DraftMismatchError unless the index fits a target with that many ids and a tokenizer's fingerprint.

        An index that was made without a vocabulary size takes this one.
        """
        if other is not None and self.fingerprint is not None and other != self.fingerprint:
            raise DraftMismatchError(
                "the index was built with another tokenizer, whose ids mean other tokens: build it again with the "
                "target's (specdec index build FILES --tokenizer NAME)."
            )
        with self._lock:
            if self._vocab_size is None:
                self._vocab_size = vocab_size
            size = self._vocab_size
        highest = max((array.highest for array in self._arrays), default=0)
        if abs(size - vocab_size) > _MAX_PADDING or highest >= vocab_size:
            raise DraftMismatchError(
                f"the index is of a vocabulary of {size} tokens and the target has {vocab_size}: not the same "
                "tokenizer. Build one with the target's (specdec index build FILES --tokenizer NAME)."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the index as numpy's npz; the file is replaced as a whole or not at all.

        Raises:
            OptionError: the file cannot be written.
        """
        target = Path(path)
        joined = SuffixArray.join(self._arrays)
        header = {"format": _FORMAT, "version": _VERSION, "max_bytes": self.max_bytes}
        header |= {"vocab_size": self._vocab_size or 0, "fingerprint": self.fingerprint or ""}
        fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        arrays: dict[str, Any] = {name: np.array(value) for name, value in header.items()}
        try:
            with open(fresh, "wb") as file:
                np.savez(file, tokens=joined.tokens, order=joined.order, **arrays)
            os.replace(fresh, target)
        except OSError as error:
            raise OptionError(f"cannot write the index {target}: {error.strerror}. Choose another path.") from None
        finally:
            fresh.unlink(missing_ok=True)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_bytes: int | None = None,
    ) -> SuffixIndex:
        """Reads what `save` wrote.

        Args:
            tokenizer: the target's; compared with the one that the index was built with.
            max_bytes: a bound other than the saved one; the oldest texts leave where it is lower.

        Raises:
            OptionError: no such file, or it is damaged or no index.
            DraftMismatchError: another tokenizer.
        """
        bounded = None if max_bytes is None else cls(max_bytes)  # refuses an impossible one
        try:
            with open(path, "rb") as raw:
                index, array = cls._read(_parts(raw))
        except Exception as error:  # zipfile, its codecs and numpy raise nearly everything on bytes that nobody wrote
            if not os.path.exists(path):
                raise OptionError(f"there is no index {path}: make one with specdec index build FILES.") from None
            raise OptionError(
                f"{path} is damaged, or no index of specdec ({error}): build it again with specdec index build FILES."
            ) from None
        if bounded is not None:
            index.max_bytes = bounded.max_bytes
        if array.num_texts:
            index._arrays = tuple(index._bounded([array]))
        if tokenizer is not None:
            index.check(len(tokenizer), fingerprint(tokenizer))
        return index

    @classmethod
    def _read(cls, parts: Mapping[str, Any]) -> tuple[SuffixIndex, SuffixArray]:
        """Raises an exception of any kind where the parts do not belong together."""
        if str(parts["format"]) != _FORMAT or int(parts["version"]) != _VERSION:
            raise ValueError(f"format {parts['format']}, version {parts['version']}")
        tokens, order, vocab_size = parts["tokens"], parts["order"], int(parts["vocab_size"])
        if tokens.dtype != np.int32 or order.dtype != np.int32 or tokens.ndim != 1 or order.ndim != 1:
            raise ValueError("arrays of other types")
        array = SuffixArray(tokens, order)
        array.check()
        index = cls(
            int(parts["max_bytes"]), vocab_size=vocab_size or None, fingerprint=str(parts["fingerprint"]) or None
        )
        index._checked([array.highest] if array.num_texts else [])
        return index, array

    def _checked(self, text: Sequence[int]) -> Any:
        ids = np.asarray(text, dtype=np.int64).reshape(-1)
        # A model may have, and write, some more ids than its tokenizer.
        end = 2**31 - 1 if self._vocab_size is None else self._vocab_size + _MAX_PADDING
        if len(ids) and not (ids.min() >= 0 and ids.max() < end):
            raise OptionError(
                f"the text has token ids from {ids.min()} to {ids.max()}, and the vocabulary ends at "
                f"{self._vocab_size or end}: it was made by another tokenizer, or is padded."
            )
        return ids

    def _bounded(self, arrays: list[SuffixArray]) -> list[SuffixArray]:
        """The arrays without the oldest texts, if they take too much; then an eighth more leaves, to pay for it."""
        while (excess := sum(array.num_bytes for array in arrays) - self.max_bytes) > 0:
            oldest = arrays.pop(0)
            if oldest.num_texts > 1:
                arrays.insert(0, oldest.without_oldest(excess + self.max_bytes // 8))
        return arrays


def _parts(raw: BinaryIO) -> dict[str, Any]:
    """The arrays of a file that `save` wrote; never takes much more memory than the file has bytes.

    Raises:
        Exception: of any kind, for another file. One that is packed (a small file may unpack to any size), or in which
            an array says that it is larger than its bytes, is refused before anything is allocated.
    """
    parts: dict[str, Any] = {}
    with zipfile.ZipFile(raw) as archive:
        for name in _PARTS:
            info = archive.getinfo(f"{name}.npy")
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its arrays are packed")
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                if version != (1, 0):
                    raise ValueError(f"arrays of version {version}")
                shape, _, dtype = np.lib.format.read_array_header_1_0(member, max_header_size=_HEADER_BYTES)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize > info.file_size or len(shape) > 1:
                raise ValueError("arrays of other types, or larger than the file")
            with archive.open(info) as member:
                parts[name] = np.lib.format.read_array(member, allow_pickle=False, max_header_size=_HEADER_BYTES)
    return parts


def _bytes_of(num_tokens: int) -> int:
    """Of one text in an array at most: tokens and places, and the edge behind it."""
    return 8 * num_tokens + 4
