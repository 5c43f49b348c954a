"""What a mutant is: one place of specdec/ with a bug that somebody might write, and the tests that must notice."""

from __future__ import annotations

import ast
import hashlib
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[2]


class MutantError(Exception):
    """A mutant that does not fit the code any more."""


@dataclass(frozen=True)
class Mutant:
    """One change.

    Args:
        name: in words, unique.
        file: under specdec/.
        old: text that stands in the file exactly once.
        new: what takes its place.
        tests: what is expected to kill it: files or node ids, as pytest takes them.
    """

    name: str
    file: str
    old: str
    new: str
    tests: Sequence[str]

    def applied(self, root: pathlib.Path = ROOT) -> str:
        """The mutated source.

        Raises:
            MutantError: the old text is not there exactly once, nothing changes, or the result is no Python.
        """
        path = root / "specdec" / self.file
        source = path.read_text()
        if source.count(self.old) != 1:
            raise MutantError(
                f"{self.name!r}: its text is found {source.count(self.old)} times in {self.file}, not once."
            )
        mutated = source.replace(self.old, self.new)
        try:
            trees = [ast.dump(ast.parse(text)) for text in (source, mutated)]
        except SyntaxError as error:
            raise MutantError(f"{self.name!r} is no Python: {error}") from error
        if trees[0] == trees[1]:
            raise MutantError(f"{self.name!r} changes nothing.")
        return mutated

    @property
    def digest(self) -> str:
        """Changes with whatever a result depends on but for the code itself."""
        return hashlib.blake2b(repr((self.file, self.old, self.new, *self.tests)).encode(), digest_size=8).hexdigest()
