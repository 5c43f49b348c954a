"""pytest-benchmark's JSON -> the Markdown tables of docs/performance.md.

python -m bench.report out.json > tables.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

Info = dict[str, Any]


def report(data: dict[str, Any]) -> str:
    """All tables of one pytest-benchmark JSON."""
    infos: list[Info] = [b["extra_info"] for b in data["benchmarks"] if "kind" in b["extra_info"]]
    generate = [i for i in infos if i["kind"] == "generate"]
    cache = [i for i in infos if i["kind"] == "cache"]
    first = [i for i in infos if i["kind"] == "first token"]
    parts = [_circumstances(data, infos)]
    if generate:
        parts += ["### Speed", _ratios(generate), "### Each side by itself", _sides(generate)]
    if first:
        parts += ["### Time to the first token", _first(first)]
    if cache:
        parts += ["### The cache's own cost of a step, without the model", _cache(cache)]
    return "\n\n".join(parts) + "\n"


def _circumstances(data: dict[str, Any], infos: Sequence[Info]) -> str:
    cpu = data.get("machine_info", {}).get("cpu", {}).get("brand_raw", "unknown CPU")
    if not infos:
        return f"{cpu}; nothing was measured."
    info = next((i for i in infos if i["kind"] == "generate"), infos[0])
    return (
        f"{cpu}, {info['threads']} threads on {info['cpus']} CPUs; torch {info['torch']}, transformers "
        f"{info['transformers']}. {info['prompts'] or 'All'} prompts, {info['new_tokens']} new tokens each, "
        f"{info['rounds']} rounds; all sides of a comparison alternate prompt by prompt. Ratios are of tokens a "
        "second: the median of the rounds, lowest to highest in brackets."
    )


def _ratios(infos: Iterable[Info]) -> str:
    rows = []
    for info in infos:
        for r in info["ratios"]:
            own = info["sides"][r["side"]]
            goal = f"{r['goal']:.1f}" if "goal" in r else ""
            name = f"{r['side']} / {r['over']}" + (f" ({r['note']})" if "note" in r else "")
            rows.append(
                [
                    *_case(info),
                    name,
                    f"{r['ratio']:.2f} [{r['low']:.2f}-{r['high']:.2f}]",
                    goal,
                    _optional(own.get("acceptance_rate")),
                    _optional(own.get("acceptance_length")),
                ]
            )
    return _table("dtype|batch|temperature|comparison|ratio|goal|acceptance rate|acceptance length", rows)


def _sides(infos: Iterable[Info]) -> str:
    rows = []
    for info in infos:
        for side, own in info["sides"].items():
            rows.append(
                [
                    *_case(info),
                    side,
                    f"{own['tokens_per_second']:.1f}",
                    str(own["tokens"]),
                    f"{own['tokens'] / own['target_forwards']:.2f}",
                    _equal(own.get("rows_equal_to_plain")),
                ]
            )
    return _table("dtype|batch|temperature|side|tokens/s|tokens|tokens a target forward|texts equal to plain", rows)


def _cache(infos: Iterable[Info]) -> str:
    infos = list(infos)
    contexts = infos[0]["contexts"]
    rows = []
    for info in infos:
        for side, times in info["milliseconds_per_step"].items():
            rows.append(
                [info["dtype"], info["commit"], side, *(f"{t:.3f}" for t in times), f"{info['growth'][side]:.2f}"]
            )
        rows.append([info["dtype"], info["commit"], "speed-up", *(f"{r:.2f}" for r in info["ratios"]), ""])
    columns = "|".join(f"{c} tokens, ms" for c in contexts)
    return _table(f"dtype|commit|cache|{columns}|longest / shortest", rows)


def _first(infos: Iterable[Info]) -> str:
    infos = list(infos)
    contexts = infos[0]["contexts"]
    rows = []
    for info in infos:
        case = [info["dtype"], str(info["batch"])]
        rows.append([*case, "plain", *(f"{t:.1f} ms" for t in info["milliseconds"]["plain"])])
        for side, ratios in info["ratios"].items():
            rows.append([*case, f"{side} / plain", *(f"{m:.2f} [{low:.2f}-{high:.2f}]" for m, low, high in ratios)])
    columns = "|".join(f"{c} tokens" for c in contexts)
    return _table(f"dtype|batch|side|{columns}", rows)


def _case(info: Info) -> list[str]:
    temperature = "greedy" if info["temperature"] == 0 else str(info["temperature"])
    return [info["dtype"], str(info["batch"]), temperature]


def _equal(counts: dict[str, int] | None) -> str:
    if counts is None:
        return ""
    ties = f", {counts['near_ties']} differ by a near-tie" if counts["near_ties"] else ""
    return f"{counts['equal']}/{counts['rows']}{ties}"


def _optional(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _table(header: str, rows: Iterable[Sequence[str]]) -> str:
    names = header.split("|")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bench.report out.json")
    with open(sys.argv[1], encoding="utf-8") as file:
        print(report(json.load(file)), end="")


if __name__ == "__main__":
    main()
