"""What stands at the end of a run: the tables, and in a directory the tables, the record and the plot."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench import plot
from bench.report import report


@dataclass(slots=True)
class Collected:
    """The extra_info of each benchmark of this run, in the form of pytest-benchmark's own JSON."""

    benchmarks: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, extra_info: Mapping[str, Any]) -> None:
        # As in the file: keys of dicts are text there.
        self.benchmarks.append({"name": name, "extra_info": json.loads(json.dumps(extra_info, default=str))})


def finish(collected: Collected, machine: Mapping[str, Any], folder: pathlib.Path | None) -> Iterator[str]:
    """Writes what belongs into `folder`, if there is one, and yields the lines to print."""
    data = {"machine_info": machine, "benchmarks": collected.benchmarks}
    if folder is not None:  # first what cannot be had again
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(data, indent=1, default=str), encoding="utf-8")
    tables = report(data)
    yield from tables.splitlines()
    if folder is not None:
        (folder / "report.md").write_text(tables, encoding="utf-8")
        yield f"wrote {folder / 'report.md'} and {folder / 'report.json'}"
        yield plot.write(data, folder / "report.png")
