"""What is measured of each token and of each prompt, as tables for other programs."""

from __future__ import annotations

import csv
import importlib.util
import json
import pathlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from specdec.profile.measures import NAMES
from specdec.profile.schema import PLAIN

COLUMNS = ("prompt", "domain", "draft", "temperature", "position", "context", *NAMES)
_BLOCK = 65536  # rows in memory


def write_tokens(records: Iterable[dict[str, Any]], directory: pathlib.Path) -> str | None:
    """One row a token, draft and temperature: tokens.parquet where pyarrow is installed, else tokens.csv.

    Returns:
        The file's name; None where no draft has a distribution to compare.
    """
    rows = _rows(records)
    first = next(rows, None)
    if first is None:
        return None
    if importlib.util.find_spec("pyarrow") is not None:
        _write_parquet(first, rows, directory / "tokens.parquet")
        return "tokens.parquet"
    with (directory / "tokens.csv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerow(first)
        writer.writerows(rows)
    return "tokens.csv"


def _rows(records: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    for r in records:
        if r["draft"] == PLAIN or "alpha" not in r:
            continue
        for position, figures in enumerate(zip(*(r[name] for name in NAMES), strict=True)):
            context = r["context"] + position
            yield r["index"], r["domain"], r["draft"], r["temperature"], position, context, *figures


def _write_parquet(first: tuple[Any, ...], rows: Iterator[tuple[Any, ...]], path: pathlib.Path) -> None:
    import pyarrow  # type: ignore[import-not-found, import-untyped, unused-ignore]
    import pyarrow.parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]

    text, whole = pyarrow.string(), pyarrow.int64()
    kinds = {"domain": text, "draft": text, "prompt": whole, "position": whole, "context": whole, "rank": whole}
    schema = pyarrow.schema([(c, kinds.get(c, pyarrow.float64())) for c in COLUMNS])
    block = [first]
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while block:
            columns = list(zip(*block, strict=True))
            arrays = [pyarrow.array(c, type=f.type) for c, f in zip(columns, schema, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
            block = [row for _, row in zip(range(_BLOCK), rows, strict=False)]


def write_prompts(agreement: Iterable[dict[str, Any]], loop: Iterable[dict[str, Any]], directory: pathlib.Path) -> None:
    """`prompts.jsonl`: a line a prompt (or batch) and setting, which `specdec compare` pairs with another profile's."""
    with (directory / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for record in chain(_agreement_lines(agreement), _loop_lines(loop)):
            file.write(json.dumps(record) + "\n")


def _agreement_lines(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for r in records:
        if r["draft"] != PLAIN and "alpha" in r:
            common = {name: r[name] for name in ("index", "key", "domain", "draft", "temperature")}
            yield common | {"tokens": len(r["alpha"]), "alpha": sum(r["alpha"]), "greedy": sum(r["greedy"])}


def _loop_lines(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for r in records:
        if "rows" in r:  # each setting's first run of a batch
            first = r["rows"][0]
            names = ("draft", "temperature", "batch", "num_draft_tokens", "tokens", "drafted", "accepted", "seconds")
            yield (
                {name: first[name] for name in ("index", "key", "domain")}
                | {n: r[n] for n in names}
                | {"rounds": float(r["row_rounds"])}
            )
