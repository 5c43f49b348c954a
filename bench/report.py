"""pytest-benchmark's JSON -> the Markdown tables of docs/performance.md, and the plot of the axes.

python -m bench.report out.json [more.json ...] > tables.md
python -m bench.report out.json --plot out.png
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from bench import heavy_report, plot, report_axes
from bench.markdown import equal_texts, table
from bench.peers import table as peers

Info = dict[str, Any]


def report(data: dict[str, Any]) -> str:
    """All tables of one pytest-benchmark JSON."""
    infos: list[Info] = [b["extra_info"] for b in data["benchmarks"] if "kind" in b["extra_info"]]
    generate = [i for i in infos if i["kind"] == "generate"]
    cache = [i for i in infos if i["kind"] == "cache"]
    first = [i for i in infos if i["kind"] == "first token"]
    steps = [i for i in infos if i["kind"] == "recurrent step"]
    refed = [i for i in infos if i["kind"] == "refed"]
    windows = [i for i in infos if i["kind"] == "advance window"]
    lengths = [i for i in generate if i.get("lengths")]
    axes = [i for i in infos if i["kind"] == "axis"]
    by_kind = [i for i in infos if i.get("kinds")]
    # Every point knows its kinds; the base point's are enough to read.
    by_kind = [i for i in by_kind if i.get("axis", "strategy") == "strategy"] or by_kind
    bounded = [i for i in (*generate, *axes) if i.get("bounds")]
    parts = [_circumstances(data, infos)]
    if axes:
        parts += ["### Along each axis", report_axes.axes(axes)]
    if by_kind:
        parts += ["### By kind of prompt", report_axes.kinds(by_kind)]
    if generate:
        parts += ["### Speed", _ratios(generate), "### Each side by itself", _sides(generate)]
    if axes:
        parts += ["### Each side by itself, along the axes", _sides(axes)]
    if bounded:
        parts += ["### Nearest to what is possible", report_axes.bounds(bounded)]
        parts += ["### A round by its width, drafts free", report_axes.costs(bounded)]
    if lengths:
        parts += ["### Strategies", _strategies(lengths)]
        parts += ["### Acceptance length of trees over the chain's of the same depth", _lengths(lengths)]
    if first:
        parts += ["### Time to the first token", _first(first)]
    if cache:
        parts += ["### The cache's own cost of a step, without the model", _cache(cache)]
    if steps:
        parts += ["### A recurrent model's step by the width of its window", _recurrent_steps(steps)]
    if refed:
        parts += ["### Tokens fed again", _refed(refed)]
        parts += ["### Speed-up over plain steps that follows, drafts free", _expected(refed, steps)]
    if windows:
        parts += ["### Whole calls, drafts free: ratio to plain decoding", _advance_windows(windows)]
    parts += heavy_report.parts(infos) + peers.parts(infos)
    return "\n\n".join(parts) + "\n"


def _circumstances(data: dict[str, Any], infos: Sequence[Info]) -> str:
    cpu = data.get("machine_info", {}).get("cpu", {}).get("brand_raw", "unknown CPU")
    told = [i for i in infos if {"threads", "torch", "prompts", "new_tokens", "rounds"} <= i.keys()]
    if not told:
        return f"{cpu}; {len(infos) or 'no'} benchmarks."
    info = next((i for i in told if i["kind"] in ("axis", "generate")), told[0])
    files = ", ".join(pathlib.PurePath(name).name for name in info.get("prompt_files", ())) or "bundled"
    where = f", on {info['device']}" if info.get("device", "cpu") != "cpu" else ""
    return (
        f"{info.get('models', 'bundled pair')}{where}; {cpu}, {info['threads']} threads on {info['cpus']} CPUs; torch "
        f"{info['torch']}, transformers {info['transformers']}. {info['prompts'] or 'All'} prompts ({files}), "
        f"{info['new_tokens']} new tokens each, {info['rounds']} rounds; all sides of a comparison alternate prompt by "
        "prompt. Ratios are of tokens a second: the median of the rounds, lowest to highest in brackets."
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
    return table("dtype|batch|temperature|comparison|ratio|goal|acceptance rate|acceptance length", rows)


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
                    _optional(own["tokens"] / own["target_forwards"] if own["target_forwards"] else None),
                    equal_texts(own.get("rows_equal_to_plain")),
                    _percent(own.get("share_outside_graphs")),
                ]
            )
    columns = "dtype|batch|temperature|side|tokens/s|tokens|tokens a target forward|texts equal to plain|outside graphs"
    return table(columns, rows)


def _strategies(infos: Iterable[Info]) -> str:
    """A line a strategy: against plain decoding and transformers' nearest."""
    rows = []
    for info in infos:
        over: dict[str, dict[str, Any]] = {}
        for r in info["ratios"]:
            if not r.get("note", "").endswith("chain"):
                over.setdefault(r["side"], {})[r["over"]] = r
        for side, ratios in over.items():
            own, plain = info["sides"][side], ratios.pop("plain")
            name, nearest = next(iter(ratios.items()), ("", None))
            rows.append(
                [
                    *_case(info),
                    side,
                    f"{plain['ratio']:.2f}",
                    f"{nearest['ratio']:.2f} {name}" if nearest else "",
                    _optional(own.get("acceptance_rate")),
                    _optional(own.get("acceptance_length")),
                ]
            )
    columns = "dtype|batch|temperature|strategy|over plain|over transformers' nearest|acceptance rate|acceptance length"
    return table(columns, rows)


def _lengths(infos: Iterable[Info]) -> str:
    rows = [[*_case(info), name, f"{value:.2f}"] for info in infos for name, value in info["lengths"].items()]
    return table("dtype|batch|temperature|tree|length / chain's", rows)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


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
    return table(f"dtype|commit|cache|{columns}|longest / shortest", rows)


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
    return table(f"dtype|batch|side|{columns}", rows)


def _recurrent_steps(infos: Iterable[Info]) -> str:
    infos = list(infos)
    rows = []
    for info in infos:
        case = [info["model"], str(info["batch"])]
        for side, name in (("kept", "kept, no snapshot"), ("snapshot", "with a snapshot")):
            rows.append(
                [*case, f"{name}, x", *(f"{m:.2f} [{low:.2f}-{high:.2f}]" for m, low, high in info["cost"][side])]
            )
        for part, name in (("copy", "of it the copy"), ("commit", "of it the commit")):
            rows.append([*case, name, *(f"{share:.1%}" for share in info["share"][part])])
        rows.append([*case, "bytes copied", *(f"{n / 1e6:.2f} MB" for n in info["snapshot_bytes"])])
    return table("model|batch|step|" + "|".join(f"W={w}" for w in infos[0]["widths"]), rows)


def _refed(infos: Iterable[Info]) -> str:
    infos = list(infos)
    rows = []
    for info in infos:
        for case, counts in _cases(info):
            for name, of in (
                ("re-fed a row and step", lambda c: c["refed"] / c["row_rounds"]),
                ("accepted", lambda c: c["accepted"] / c["row_rounds"]),
                ("tokens", lambda c: c["tokens"] / c["row_rounds"]),
                ("window's width", lambda c: sum(w * n for w, _, n in c["windows"]) / c["rounds"]),
                ("window's tokens per new token", lambda c: c["window_tokens"] / c["tokens"]),
            ):
                rows.append([*case, name, *(f"{of(c):.2f}" for c in counts)])
    return table(f"batch|acceptance|k||{_bounds(infos)}", rows)


def _expected(infos: Iterable[Info], steps: Sequence[Info]) -> str:
    """Tokens a second over plain decoding's: steps as often as counted, each as long as timed."""
    infos = list(infos)
    rows = []
    for info in infos:
        costs: dict[str, Any] = {"width free": lambda width, kept: 1.0}
        costs |= {s["model"]: _step_cost(s) for s in steps if s["batch"] == info["batch"]}
        for name, cost in costs.items():
            for case, counts in _cases(info):
                gains = [
                    c["tokens"] / info["batch"] / sum(n * cost(width, depth == 0) for width, depth, n in c["windows"])
                    for c in counts
                ]
                rows.append([name, *case, *_best(gains)])
    return table(f"cost of a step|batch|acceptance|k|{_bounds(infos)}", rows)


def _step_cost(info: Info) -> Callable[[int, bool], float]:
    """Cost of a step by its width and whether it takes no snapshot, linear between (and beyond) what was timed."""
    widths = info["widths"]

    def cost(width: int, kept: bool) -> float:
        timed = [median for median, _, _ in info["cost"]["kept" if kept else "snapshot"]]
        i = min(max(1, bisect_left(widths, width)), len(widths) - 1)
        share = (width - widths[i - 1]) / (widths[i] - widths[i - 1])
        return float((1 - share) * timed[i - 1] + share * timed[i])

    return cost


def _advance_windows(infos: Iterable[Info]) -> str:
    rows = []
    for info in infos:
        for i, acceptance in enumerate(info["acceptances"]):
            case = [info["model"], str(info["batch"]), str(acceptance), str(info["fixed_draft_tokens"])]
            rows.append(
                [
                    *case,
                    *(f"{m:.2f} [{low:.2f}-{high:.2f}]" for m, low, high in (r[i] for r in info["ratios"].values())),
                ]
            )
    names = "|".join(_bound(int(w)) for w in info["ratios"])
    return table(f"model|batch|acceptance|k|{names}", rows)


def _cases(info: Info) -> Iterator[tuple[list[str], list[Info]]]:
    """Batch, acceptance and k, and the counts by advance window."""
    for (acceptance, k), counts in groupby(info["counts"], key=lambda c: (c["acceptance"], c["draft_tokens"])):
        yield [str(info["batch"]), str(acceptance), str(k)], list(counts)


def _bounds(infos: Sequence[Info]) -> str:
    return "|".join(dict.fromkeys(_bound(c["advance_window"]) for c in infos[0]["counts"]))


def _bound(advance_window: int) -> str:
    return f"window {advance_window}" if advance_window < 10**6 else "no bound"


def _best(values: Sequence[float]) -> list[str]:
    """Two decimals, the highest in bold."""
    return [f"**{v:.2f}**" if v == max(values) else f"{v:.2f}" for v in values]


def _case(info: Info) -> list[str]:
    temperature = "greedy" if info["temperature"] == 0 else str(info["temperature"])
    return [info["dtype"], str(info["batch"]), temperature]


def _optional(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "record", type=pathlib.Path, nargs="+", help="pytest-benchmark's JSON, or report.json of --report-dir"
    )
    parser.add_argument("--plot", type=pathlib.Path, help="writes the picture of test_axes.py there")
    asked = parser.parse_args()
    data: dict[str, Any] = {"benchmarks": []}
    for record in asked.record:
        read = json.loads(record.read_text(encoding="utf-8"))
        data = read | {"benchmarks": data["benchmarks"] + read["benchmarks"]}
    print(report(data), end="")
    if asked.plot is not None:
        print(plot.write(data, asked.plot), file=sys.stderr)


if __name__ == "__main__":
    main()
