"""Two profiles side by side: paired differences on the prompts that both measured. `specdec compare`."""

from __future__ import annotations

import os
import pathlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from specdec.errors import InputError
from specdec.profile.bootstrap import Floats, Sums
from specdec.profile.files import load
from specdec.profile.prompt_lines import Agreed, Run, records
from specdec.profile.schema import PLAIN, Interval

_LEAST_PROMPTS = 2  # one says nothing of spread


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both profiles over the prompts that they share.

    Attributes:
        what: "alpha", "greedy agreement", "acceptance length" or "speed-up".
        drafts: the draft's name in either.
        batch, num_draft_tokens: None for agreement, which has neither.
        prompts: that both have in this setting (batches, where rows are decoded together).
        difference: b minus a, prompts paired.
    """

    what: str
    drafts: tuple[str, str]
    temperature: float
    batch: int | None
    num_draft_tokens: int | None
    prompts: int
    a: Interval
    b: Interval
    difference: Interval

    @property
    def is_larger_than_chance(self) -> bool:
        """The difference's interval leaves out 0, and there are prompts enough to say so."""
        return self.prompts >= _LEAST_PROMPTS and (self.difference.low > 0 or self.difference.high < 0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found.

    Attributes:
        names: of the two directories.
        prompts: that both measured.
        only: prompts that the first alone, and the second alone, measured, by their numbers there.
        alone: what one profile measured and the other did not, in words.
        notes: what else differs.
    """

    names: tuple[str, str]
    prompts: int
    only: tuple[list[int], list[int]]
    differences: list[Difference]
    alone: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare(a_dir: str | os.PathLike[str], b_dir: str | os.PathLike[str], seed: int = 0) -> Comparison:
    """What differs between two profiles, on the prompts that both measured, each paired with itself.

    Drafts are matched by name; where each profile has one draft only, these two, whatever they are called. Both files
    are read twice, line by line; what is kept is a number a prompt and setting, and sums.

    Args:
        a_dir, b_dir: directories that `specdec profile --out` wrote.
        seed: of the bootstrap.

    Returns:
        Differences are b minus a.

    Raises:
        InputError: no records, a bad line, or no prompt or setting in common.
    """
    a, b = _Side(a_dir), _Side(b_dir)
    shared = a.prompts & b.prompts
    if not shared:
        raise InputError(
            f"{a.name} and {b.name} have no prompt in common ({len(a.prompts)} and {len(b.prompts)} prompts), so "
            "nothing can be paired. Profile both with the same prompts, tokenizer and chat template."
        )
    matches = _matches(a, b)
    figures = [figure for pair in matches for figure in _figures(a, b, *pair)]
    if not figures:
        raise InputError(
            f"{a.name} and {b.name} share {len(shared)} prompts but no setting of the same draft ({_listed(a.drafts)} "
            f"against {_listed(b.drafts)}). Profile the same drafts (or one in each, to compare these two), "
            "temperatures, batch sizes and numbers of draft tokens."
        )
    sums = [Sums(seed) for _ in figures]
    for place, side in enumerate((a, b)):
        _add(side, place, figures, sums)
    used = [{need.line for figure in figures for need in figure.needs if need.side == place} for place in (0, 1)]
    return Comparison(
        names=(a.name, b.name),
        prompts=len(shared),
        only=(a.numbers(a.prompts - shared), b.numbers(b.prompts - shared)),
        differences=[found for figure, total in zip(figures, sums, strict=True) for found in figure.differences(total)],
        alone=[words for side, lines in zip((a, b), used, strict=True) for words in side.alone(lines)],
        notes=_notes(a, b, matches),
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """What a record's line is about, its prompt aside."""

    draft: str
    temperature: float
    batch: int | None = None  # None: agreement
    num_draft_tokens: int | None = None

    def __str__(self) -> str:
        if self.batch is None:
            return f"agreement of {self.draft}, temperature {self.temperature:g}"
        draft = self.draft if self.draft == PLAIN else f"{self.draft} with {self.num_draft_tokens}"
        return f"{draft}, temperature {self.temperature:g}, batch {self.batch}"


def _line(record: Run | Agreed) -> _Line:
    if isinstance(record, Agreed):
        return _Line(record.draft, record.temperature)
    return _Line(record.draft, record.temperature, record.batch, record.num_draft_tokens)


class _Side:
    """One profile's records, read once for who is in them."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = pathlib.Path(directory)
        self.name = str(directory)
        self.keys: dict[_Line, set[int]] = defaultdict(set)
        self._index: dict[int, int] = {}
        for record in records(directory):
            key = int(record.key, 16)
            self.keys[_line(record)].add(key)
            self._index.setdefault(key, record.index)
        self.prompts = set(self._index)
        self.drafts = sorted({line.draft for line in self.keys} - {PLAIN})

    def numbers(self, keys: Iterable[int]) -> list[int]:
        """The prompts' places in this profile."""
        return sorted(self._index[key] for key in keys)

    def alone(self, used: Iterable[_Line]) -> list[str]:
        left = {line for line in self.keys if line.draft != PLAIN} - set(used)
        return [f"{self.name}: {line}" for line in sorted(left, key=str)]


@dataclass(frozen=True, slots=True)
class _Need:
    """Columns of a figure's sums that a line of one side fills."""

    side: int
    line: _Line
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Figure:
    """A figure, or several, of one setting: what lines they need, and of which prompts.

    Attributes:
        of: what -> [R + 1, M / 2] sums of one side -> [R + 1] values. Both sides fill as many columns.
    """

    drafts: tuple[str, str]
    line: _Line
    needs: tuple[_Need, ...]
    keys: frozenset[int]
    of: dict[str, Callable[[Floats], Floats]]

    @property
    def width(self) -> int:
        return sum(len(need.fields) for need in self.needs)

    def differences(self, sums: Sums) -> list[Difference]:
        half = self.width // 2
        out = []
        for what, of in self.of.items():
            a, b, both = (
                sums.statistic(function, size=0)
                for function in (
                    lambda t, of=of: of(t[:, :half]),
                    lambda t, of=of: of(t[:, half:]),
                    lambda t, of=of: of(t[:, half:]) - of(t[:, :half]),
                )
            )
            line = self.line
            out.append(
                Difference(
                    what, self.drafts, line.temperature, line.batch, line.num_draft_tokens, len(self.keys), a, b, both
                )
            )
        return out


_Functions = dict[str, Callable[[Floats], Floats]]
_Columns = list[tuple[tuple[_Line, _Line], tuple[str, ...]]]  # each side's line, and its fields
_AGREEMENT: _Functions = {
    "alpha": lambda t: t[:, 1] / t[:, 0],
    "greedy agreement": lambda t: t[:, 2] / t[:, 0],
}
_LENGTH: _Functions = {"acceptance length": lambda t: t[:, 0] / t[:, 1]}
# Seconds a token, plain over speculative.
_SPEED: _Functions = {"speed-up": lambda t: (t[:, 3] / t[:, 2]) / (t[:, 1] / t[:, 0])}


def _figures(a: _Side, b: _Side, draft_a: str, draft_b: str) -> list[_Figure]:
    """All that can be paired of two drafts."""
    out = []
    for line in sorted((line for line in a.keys if line.draft == draft_a), key=str):
        both = (line, _Line(draft_b, line.temperature, line.batch, line.num_draft_tokens))
        plain = (_Line(PLAIN, line.temperature, line.batch, 0),) * 2
        wanted: list[tuple[_Columns, _Functions]]
        if line.batch is None:
            wanted = [([(both, ("tokens", "alpha", "greedy"))], _AGREEMENT)]
        else:
            timed = ("tokens", "seconds")
            wanted = [([(both, ("tokens", "rounds"))], _LENGTH), ([(both, timed), (plain, timed)], _SPEED)]
        for columns, of in wanted:
            needs = tuple(_Need(side, lines[side], fields) for side in (0, 1) for lines, fields in columns)
            keys = [(a, b)[need.side].keys.get(need.line, set()) for need in needs]
            shared = frozenset(set.intersection(*keys))
            if shared:
                out.append(_Figure((draft_a, draft_b), line, needs, shared, of))
    return out


def _add(side: _Side, place: int, figures: list[_Figure], sums: list[Sums]) -> None:
    """Reads a side's records again, and adds what each figure needs of them."""
    wanted: dict[_Line, list[tuple[int, int, tuple[str, ...]]]] = defaultdict(list)
    for number, figure in enumerate(figures):
        column = 0
        for need in figure.needs:
            if need.side == place:
                wanted[need.line].append((number, column, need.fields))
            column += len(need.fields)
    for record in records(side.directory):
        key = int(record.key, 16)
        for number, column, fields in wanted.get(_line(record), ()):
            if key in figures[number].keys:
                row = np.zeros(figures[number].width)
                row[column : column + len(fields)] = [getattr(record, name) for name in fields]
                sums[number].add(key, row)


def _matches(a: _Side, b: _Side) -> list[tuple[str, str]]:
    same = [(name, name) for name in a.drafts if name in b.drafts]
    if not same and len(a.drafts) == len(b.drafts) == 1:
        return [(a.drafts[0], b.drafts[0])]
    return same


def _notes(a: _Side, b: _Side, matches: list[tuple[str, str]]) -> list[str]:
    """What a reader must know of the two profiles."""
    out = [f"{mine} in {a.name} is compared with {theirs} in {b.name}." for mine, theirs in matches if mine != theirs]
    profiles = []
    for side in (a, b):
        try:
            profiles.append(load(side.directory))
        except InputError as error:
            out.append(f"Only the records were compared: {error}")
            return out
    first, second = profiles
    for what, mine, theirs in (
        ("targets", first.subject.target, second.subject.target),
        ("devices", first.machine.device, second.machine.device),
        ("numbers of threads", first.machine.threads, second.machine.threads),
        ("dtypes", first.machine.dtype, second.machine.dtype),
        ("compiled graphs (yes or no)", first.machine.compile, second.machine.compile),
        ("lengths of output", first.subject.new_tokens, second.subject.new_tokens),
    ):
        if mine != theirs:
            out.append(f"The {what} differ: {mine} and {theirs}.")
    return out


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "no draft"
