"""The directory of a profile: what was asked for, what has been measured so far, and what came of it."""

from __future__ import annotations

import hashlib
import heapq
import json
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specdec.errors import InputError, OptionError
from specdec.profile.options import Options
from specdec.profile.records import Records, read_records

PARTS = ("texts", "agreement", "costs", "loop")


@dataclass(frozen=True, slots=True)
class Workspace:
    """One process' view of the directory; each process appends to files of its own.

    Args:
        rank, world: this process among those that share the prompts.
    """

    root: pathlib.Path
    rank: int = 0
    world: int = 1

    @property
    def parts(self) -> pathlib.Path:
        return self.root / "parts"

    def open(self, part: str) -> Records:
        """This process' file of a part, for appending."""
        return Records(self.parts / f"{part}.{self.rank}.jsonl")

    def own(self, part: str) -> Iterator[dict[str, Any]]:
        """The records of this process."""
        return read_records(self.parts / f"{part}.{self.rank}.jsonl")

    def all(self, part: str) -> Iterator[dict[str, Any]]:
        """The records of every process, in the order of the prompts: as one process would have written them."""
        files = [read_records(path) for path in sorted(self.parts.glob(f"{part}.*.jsonl"))]
        return files[0] if len(files) == 1 else heapq.merge(*files, key=lambda record: record["index"])

    def begin(self, options: Options, resume: bool, prompts: pathlib.Path) -> None:
        """Makes the directory, or goes on with one. One in which nothing has been measured yet begins anew.

        Args:
            prompts: their file; a changed one is another one.

        Raises:
            OptionError: it holds a profile and is not to be resumed, or one of other settings.
            InputError: what should be resumed is not there, or was left by another number of processes.
        """
        path = self.root / "settings.json"
        with prompts.open("rb") as file:
            digest = hashlib.file_digest(file, "sha1").hexdigest()
        wanted = options.to_json() | {
            "processes": self.world,
            "threads": torch.get_num_threads(),
            "prompts_sha1": digest,
        }
        if resume:
            if not path.is_file():
                raise InputError(f"nothing to resume in {self.root}: leave out --resume, or give its --out.")
            found = json.loads(path.read_text(encoding="utf-8"))
            changed = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
            if changed:
                raise OptionError(
                    f"--resume goes on with the settings of {self.root}, and these differ: {', '.join(changed)}. Give "
                    "the same ones, or another --out."
                )
            return
        if path.exists() and any("text" in record for record in self.all("texts")):
            raise OptionError(f"{self.root} holds a profile already: add --resume, or give another --out.")
        self.parts.mkdir(parents=True, exist_ok=True)
        for left in self.parts.glob("*.jsonl"):
            left.unlink()
        path.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")


def key_of(tokens: Sequence[int]) -> str:
    """What a prompt is known by in other profiles: 16 hex digits of its token ids' SHA-1."""
    return hashlib.sha1(" ".join(map(str, tokens)).encode()).hexdigest()[:16]
