"""`specdec index`: texts that a SuffixDrafter drafts from, made from files and looked at, for people."""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from specdec.bundled import bundled_dir
from specdec.drafters import SuffixIndex
from specdec.errors import OptionError, SpecdecError

indexes = typer.Typer(help="Indexes of texts to draft from.", no_args_is_help=True)
_DEFAULT_FIELDS = ("text", "prompt")
_TOKENIZER_HELP = "Tokenizer directory or hub id, the target's; the bundled pair's if omitted."
_FIELD_HELP = "Of a .jsonl record; several are joined. If omitted 'text', or 'prompt' where there is none."
_BYTES_HELP = "Bound of the index; texts that no longer fit are left out. 8 bytes a token are needed."


@indexes.command("build")
def build(
    files: Annotated[list[pathlib.Path], typer.Argument(help="Text files, one text each, or .jsonl, one a line.")],
    output: Annotated[pathlib.Path, typer.Option("--output", "-o", help="The index's file, an .npz.")],
    tokenizer: Annotated[str | None, typer.Option(help=_TOKENIZER_HELP)] = None,
    field: Annotated[list[str] | None, typer.Option(help=_FIELD_HELP)] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help=_BYTES_HELP)] = 256_000_000,
) -> None:
    """Makes an index of texts: specdec.SuffixDrafter("index.npz") drafts from it."""
    hf_logging.set_verbosity_error()  # a long text is no mistake here
    begun = time.perf_counter()
    try:
        name = tokenizer or bundled_dir() / "pair" / "target"
        loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        read = _Reader(loaded, files, field)
        with read.progress:
            index = SuffixIndex.build(read, max_bytes=max_bytes, tokenizer=loaded)
            if index.num_tokens == 0:
                raise OptionError("the files hold no text: name others, or another --field.")
            index.save(output)
    except (SpecdecError, OSError, ValueError) as error:
        _fail(error)
    console = Console(highlight=False)
    seconds = time.perf_counter() - begun
    if not read.is_done:
        console.print(f"max-bytes reached: texts from {read.place} on are left out.", soft_wrap=True)
    console.print(f"{_size(index)}, {seconds:.1f} s, in {output}", soft_wrap=True, markup=False)


@indexes.command("show")
def show(file: Annotated[pathlib.Path, typer.Argument(help="An index's file.")]) -> None:
    """Says what an index holds."""
    try:
        index = SuffixIndex.load(file)
    except SpecdecError as error:
        _fail(error)
    console = Console(highlight=False)
    console.print(f"{_size(index)} of at most {index.max_bytes / 1e6:.1f} MB", soft_wrap=True)
    known = "of an unknown tokenizer" if index.fingerprint is None else f"of the tokenizer {index.fingerprint[:12]}"
    console.print(f"{index.vocab_size or 'unknown'} token ids, {known}", soft_wrap=True)


class _Reader:
    """The token ids of the files' texts, one after the other; knows how far it has come."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, files: list[pathlib.Path], fields: list[str] | None) -> None:
        self._tokenizer, self._files, self._fields = tokenizer, files, fields
        self.place = ""  # of the text read last
        self.is_done = False
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        console = Console(file=sys.stderr)
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def __iter__(self) -> Iterator[list[int]]:
        task = self.progress.add_task("reading", total=sum(file.stat().st_size for file in self._files) or 1)
        for file in self._files:
            self.progress.update(task, description=file.name)
            for place, size, text in self._texts(file):
                self.place = place
                yield self._tokenizer(text, add_special_tokens=False).input_ids
                self.progress.advance(task, size)
        self.is_done = True
        self.progress.update(task, description="sorting")

    def _texts(self, file: pathlib.Path) -> Iterator[tuple[str, int, str]]:
        """Where each text of a file is, its bytes in the file, and itself."""
        try:
            whole = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise OptionError(f"{file} is not UTF-8 text: convert it, or leave it out.") from None
        if file.suffix != ".jsonl":
            yield str(file), file.stat().st_size, whole
            return
        for number, line in enumerate(whole.split("\n"), 1):
            if line.strip():
                place = f"{file}:{number}"
                yield place, len(line.encode()) + 1, self._of_record(place, line)

    def _of_record(self, place: str, line: str) -> str:
        """A record's fields, joined; a field is a string, or a list of them."""
        try:
            record: Any = json.loads(line)
        except ValueError as error:
            raise OptionError(f"{place} is no JSON ({error}): correct the line, or give the file as .txt.") from None
        if not isinstance(record, dict):
            raise OptionError(f"{place} is no JSON object: each line must be one, with a field of text.")
        names = self._fields or [n for n in _DEFAULT_FIELDS if n in record][:1]
        values: list[Any] = [record.get(name) for name in names]
        parts: list[Any] = [part for value in values for part in (value if isinstance(value, list) else [value])]
        if not parts or not all(isinstance(part, str) for part in parts):
            asked = ", ".join(self._fields or _DEFAULT_FIELDS)
            raise OptionError(f"{place} has no text in {asked}: choose --field among {', '.join(map(repr, record))}.")
        return "".join(parts)


def _size(index: SuffixIndex) -> str:
    return f"{index.num_texts} texts, {index.num_tokens} tokens, {index.num_bytes / 1e6:.1f} MB"


def _fail(error: Exception) -> NoReturn:
    Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(2) from None
