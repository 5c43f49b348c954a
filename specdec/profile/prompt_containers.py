"""From a file to its records, one at a time and as bytes: JSON Lines, a list of JSON, lines or paragraphs of text.

Nothing here knows what a record means (`prompt_records.py` does). Memory is bounded by `LARGEST`, not by the file.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pathlib
import re
import stat
import zlib
from collections.abc import Iterator
from typing import IO, Literal, get_args

from specdec.errors import InputError, OptionError

Container = Literal["jsonl", "json", "lines", "paragraphs"]
CONTAINERS: tuple[Container, ...] = get_args(Container)
LARGEST = 4 * 2**20  # bytes of a record: about a million tokens, more than any context
KNOWN = (
    "JSON Lines (.jsonl) or a list in a .json file, with turns, conversations, messages, prompt, question or text in "
    "each record (Spec-Bench, MT-Bench, ShareGPT, HumanEval, GSM8K and their like), or plain text with one prompt a "
    "line (.txt); each also as .gz"
)
_TEXT_ENDINGS = ("", ".txt", ".text")
_JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
_HEAD = 64 * 2**10
_CHUNK = 2**18
_UTF8_MARK = b"\xef\xbb\xbf"
# A string is taken in one step, so that brackets and commas in prompts cost nothing and mean nothing.
_MARK = re.compile(rb'["\[\]{},]')
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


class Skip(Exception):
    """A record that is not used, with the reason; yielded by whoever goes through a file, raised below it."""

    @property
    def reason(self) -> str:
        return str(self.args[0])


def too_large() -> Skip:
    """The reason of a record of more than `LARGEST` bytes."""
    return Skip(f"larger than {LARGEST // 2**20} MiB")


def unknown(path: pathlib.Path, why: str) -> InputError:
    """The error for a file without prompts, which says what is read."""
    return InputError(f"{path} holds no prompts that can be read: {why}. What is read: {KNOWN}.")


def stamp(path: pathlib.Path) -> tuple[int, int]:
    """Size and time of change, by which a file that was replaced is told.

    Raises:
        InputError: there is no file that could be read twice.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"no prompts at {str(path)!r}: {why}. Give a file of prompts: {KNOWN}.") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise InputError(f"{path} is {kind}: give a file, which is read more than once.")
    return found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked, after a byte order mark of UTF-8."""
    try:
        with contextlib.ExitStack() as stack:
            stream: IO[bytes] = stack.enter_context(open(path, "rb"))
            packed = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            if packed:
                stream = stack.enter_context(io.BufferedReader(gzip.GzipFile(fileobj=stream)))
            if stream.read(len(_UTF8_MARK)) != _UTF8_MARK:
                stream.seek(0)
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read to its end: {why}. Fetch or pack it again.") from None


def recognise(path: pathlib.Path, form: str) -> Container:
    """How the file holds its records, by its name and its first 64 KB.

    Args:
        form: a name of `CONTAINERS`, or "auto".

    Raises:
        InputError: it is missing, empty, binary or of another form.
        OptionError: there is no such `form`.
    """
    if form != "auto" and form not in CONTAINERS:
        raise OptionError(f"a form of prompt file is auto, {', '.join(CONTAINERS)}, got {form!r}.")
    stamp(path)
    with _reading(path) as stream:
        head = stream.read(_HEAD)
    if not head:
        raise unknown(path, "it is empty")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise unknown(path, "it is in UTF-16: save it as UTF-8")
    if b"\0" in head and head.lstrip()[:1] not in (b"{", b"[", b'"'):  # in JSON it spoils one record
        raise unknown(path, "it is binary")
    asked: list[Container] = [name for name in CONTAINERS if name == form]
    found = asked[0] if asked else _by_content(head.lstrip(), _ending(path))
    if found is None:
        raise unknown(path, f"a file that ends in {_ending(path)!r} is neither JSON nor plain text")
    return found


def _ending(path: pathlib.Path) -> str:
    name = path.name.lower()
    return pathlib.PurePath(name.removesuffix(".gz")).suffix


def _by_content(head: bytes, ending: str) -> Container | None:
    first, newline, rest = head.partition(b"\n")
    try:
        value = json.loads(first.decode("utf-8"))
    except (ValueError, RecursionError):
        value = None
    is_lines = isinstance(value, list) and bool(rest.strip())  # each line a list of its own
    if ending in _JSON_ENDINGS:
        # An object over several lines is one record; JSON Lines are often named .json too.
        spread = ending == ".json" and head.startswith(b"{") and bool(newline) and value is None
        return "json" if (head.startswith(b"[") and not is_lines) or spread else "jsonl"
    if re.match(rb'\[\s*\{\s*["}]', head):
        return "jsonl" if is_lines else "json"
    if isinstance(value, dict) or (not newline and re.match(rb'\{\s*"', head)):
        return "jsonl"  # or its source text would be taken for prompts
    return "lines" if ending in _TEXT_ENDINGS else None


def raw_records(path: pathlib.Path, container: Container) -> Iterator[bytes | Skip]:
    """The records in their order; what is blank is none.

    Raises:
        InputError: the file cannot be read (any more).
    """
    read = {"jsonl": _lines, "lines": _lines, "paragraphs": _paragraphs, "json": _values}[container]
    with _reading(path) as stream:
        for raw in read(stream):
            if isinstance(raw, Skip) or raw.strip():
                yield raw


def _lines(stream: IO[bytes]) -> Iterator[bytes | Skip]:
    """Lines without their ends, LF or CRLF."""
    while line := stream.readline(LARGEST + 2):
        if line.endswith(b"\n"):
            line = line[:-2] if line.endswith(b"\r\n") else line[:-1]
        elif len(line) > LARGEST:
            while (rest := stream.readline(_CHUNK)) and not rest.endswith(b"\n"):
                pass
        yield line if len(line) <= LARGEST else too_large()


def _paragraphs(stream: IO[bytes]) -> Iterator[bytes | Skip]:
    """What stands between blank lines, with LF between its lines."""
    parts: list[bytes] = []
    size = 0
    for line in _lines(stream):
        if isinstance(line, Skip):
            size = LARGEST + 1
        elif line.strip():
            size += len(line) + 1
            if size <= LARGEST:
                parts.append(line)
        else:
            yield b"\n".join(parts) if size <= LARGEST else too_large()
            parts, size = [], 0
    yield b"\n".join(parts) if size <= LARGEST else too_large()


def _values(stream: IO[bytes]) -> Iterator[bytes | Skip]:
    """The elements of a list of JSON, or the one value that the file is."""
    while (first := stream.read(1)).isspace():
        pass
    if first == b"[":
        yield from _Elements().split(stream)
        return
    whole = first + stream.read(LARGEST)
    yield whole if len(whole) <= LARGEST else too_large()


class _Elements:
    """Cuts a list of JSON between its elements without parsing them: a broken one spoils no other."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._depth = 0
        self._in_string = False

    def split(self, stream: IO[bytes]) -> Iterator[bytes | Skip]:
        """The elements, from behind the list's bracket on."""
        rest = b""
        while chunk := stream.read(_CHUNK):
            chunk, start = rest + chunk, 0
            rest = b""
            for end in self._ends(chunk):
                if end < 0:  # a backslash whose character comes with the next chunk
                    chunk, rest = chunk[:end], chunk[end:]
                    break
                self._keep(chunk[start:end])
                yield self._take()
                start = end + 1
                if chunk[end : end + 1] == b"]":
                    if (chunk[start:] + stream.read(_CHUNK)).strip():
                        yield Skip("behind the end of the list")
                    return
            self._keep(chunk[start:])
        yield Skip("cut off: the list has no end")

    def _ends(self, chunk: bytes) -> Iterator[int]:
        """Where commas and the bracket between elements stand; -1 for a backslash at the end of the chunk."""
        at = 0
        while at < len(chunk):
            if self._in_string:
                inside = _IN_STRING.match(chunk, at)
                at = inside.end() if inside else at
                if at == len(chunk):
                    return
                if chunk[at] != ord('"'):
                    yield -1
                    return
                self._in_string, at = False, at + 1
                continue
            mark = _MARK.search(chunk, at)
            if mark is None:
                return
            at = mark.end()
            if mark[0] == b'"':
                self._in_string = True
            elif mark[0] in b"[{":
                self._depth += 1
            elif mark[0] in b"]}" and self._depth:
                self._depth -= 1
            elif not self._depth and mark[0] in b",]":
                yield mark.start()

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > LARGEST:
            self._parts.clear()
        else:
            self._parts.append(part)

    def _take(self) -> bytes | Skip:
        taken = b"".join(self._parts) if self._size <= LARGEST else too_large()
        self._parts, self._size = [], 0
        return taken


def text_of(raw: bytes) -> str:
    """Raises `Skip` where the bytes are no text."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Skip("not UTF-8") from None


def value_of(raw: bytes) -> object:
    """What the JSON says. Raises `Skip` where it is none."""
    text = text_of(raw)
    try:
        return json.loads(text)
    except RecursionError:
        raise Skip("nested too deeply") from None
    except ValueError:  # JSONDecodeError, or an integer of thousands of digits
        raise Skip("not JSON") from None
