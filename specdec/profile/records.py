"""Files of JSON lines that measurements are appended to, so that an interrupted run loses at most the line in hand."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from specdec.errors import InputError


class Records:
    """One such file, open for appending.

    Example:
        >>> with Records(tmp / "texts.jsonl") as records:  # doctest: +SKIP
        ...     records.add({"index": 0})
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        _drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8")

    def add(self, record: dict[str, Any]) -> None:
        """Appends a record; on disk before this returns, as far as the process is concerned."""
        self.add_all([record])

    def add_all(self, records: Sequence[dict[str, Any]]) -> None:
        """Appends records that belong together, in one write."""
        self._file.write("".join(json.dumps(r, separators=(",", ":")) + "\n" for r in records))
        self._file.flush()

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_records(*paths: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The records of files that exist, one at a time; a last line that was cut off is left out.

    Raises:
        InputError: another line is no record.
    """
    for path in paths:
        if not path.is_file():
            continue
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if not isinstance(record, dict):
                    raise InputError(f"{path}, line {number} is no record of a profile: remove the directory.")
                yield record


def _drop_torn_line(path: pathlib.Path) -> None:
    """Cuts off what a killed process wrote of its last line."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - 65536)
            file.seek(begin)
            found = file.read(end - begin).rfind(b"\n")
            if found >= 0:
                file.truncate(begin + found + 1)
                return
            end = begin
        file.truncate(0)
