"""Tables of test_weights, test_never_slower, test_long_context and test_acceptance_cost, from pytest-benchmark's JSON.

python -m bench.heavy_report out.json [more.json ...] > tables.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from bench.markdown import spread, table

Info = dict[str, Any]


def report(infos: Sequence[Info]) -> str:
    """All tables that the records give."""
    makers = {
        "weights": _weights,
        "never slower": _never,
        "long context": _contexts,
        "peak memory": _peaks,
        "acceptance": _acceptance,
    }
    parts = []
    for kind, make in makers.items():
        chosen = [info for info in infos if info.get("kind") == kind]
        if chosen:
            first = chosen[0]
            parts += [
                f"### {kind.capitalize()}",
                f"{first['threads']} threads on {first['cpus']} CPUs; torch {first['torch']}, transformers "
                f"{first['transformers']}; {first['new_tokens']} new tokens, {first['rounds']} rounds.",
                make(chosen),
            ]
    return "\n\n".join(parts) + "\n"


def _weights(infos: Sequence[Info]) -> str:
    """A line an acceptance: over the same engine's plain, beside the formula; over transformers."""
    rows = []
    for info in infos:
        k = info["k"]
        for row in info["rows"]:
            ratios, formula = row["ratios"], row["formula"]
            rows.append(
                [
                    info["case"],
                    f"{info['draft_cost']}",
                    f"{row['acceptance']}",
                    f"{spread(ratios[f'eager k={k} / eager'])} ({formula['eager']:.2f})",
                    f"{spread(ratios[f'compiled k={k} / compiled'])} ({formula['compiled']:.2f})",
                    f"{spread(ratios['compiled auto / compiled'])}, {row['auto_drafted']:.1f} drafted",
                    spread(ratios["compiled / transformers"]),
                    spread(ratios[f"compiled k={k} / transformers"]),
                    spread(ratios.get(f"compiled k={k} / assisted k={k}")),
                    spread(ratios.get(f"assisted k={k} / transformers")),
                    f"{row['tokens_per_second'][f'compiled k={k}']:.1f}",
                ]
            )
    columns = (
        "case|draft's cost|acceptance|eager k over eager plain (formula)|compiled k over compiled plain (formula)|"
        "compiled auto over compiled plain|compiled plain over transformers|compiled k over transformers|"
        "compiled k over transformers' assisted|assisted over transformers|compiled k, tokens/s"
    )
    steps = [
        [info["case"], f"{info['draft_cost']}", how, *(f"{ms:.1f}" for ms in pair), f"{pair[1] / pair[0]:.2f}"]
        for info in infos
        for how, pair in info["step_milliseconds"].items()
    ]
    tables = [table(columns, rows), table("case|draft's cost|engine|T(1), ms|T(k+1), ms|ratio", steps)]
    return "\n\n".join([*tables, *_over_vllm(infos)])


def _over_vllm(infos: Sequence[Info]) -> list[str]:
    """A line an acceptance and dtype of vLLM's, where it took part."""
    rows = [
        [
            info["case"],
            f"{row['acceptance']}",
            peer,
            f"{row['tokens_per_second'][peer]:.1f}",
            *(spread(row["ratios"][f"compiled{mode} / {peer}"]) for mode in ("", f" k={info['k']}", " auto")),
        ]
        for info in infos
        for row in info["rows"]
        for peer in row["tokens_per_second"]
        if peer.startswith("vLLM")
    ]
    columns = "case|acceptance|vLLM, plain|its tokens/s|compiled plain over it|compiled k over it|compiled auto over it"
    return [table(columns, rows)] if rows else []


def _never(infos: Sequence[Info]) -> str:
    rows = []
    for info in infos:
        goal, perfect_goal = info["goals"]
        for side, own in info["rows"].items():
            is_fixed = "k=" in side
            missed = not is_fixed and own["ratio"][0] < goal
            ratio = spread(own["ratio"])
            note = ""
            if side == "perfect" and info["perfect_over_ideal"] is not None:
                share = info["perfect_over_ideal"]
                note = f"{share:.2f} of the best fixed" + (" **missed**" if share < perfect_goal else "")
            rows.append(
                [
                    info["name"],
                    info["dtype"],
                    side if is_fixed else f"{side}, auto",
                    f"**{ratio}**" if missed else ratio,
                    spread(own["by_rounds"]),
                    f"{own['acceptance_rate']:.2f}",
                    f"{own['drafted']}",
                    " ".join(f"{asked:.1f}" for asked in own["asked"][:5]),
                    note,
                ]
            )
    columns = "target|dtype|draft|over plain|over its own plain steps|acceptance rate|drafted|asked, by quarter|"
    return table(columns, rows)


def _contexts(infos: Sequence[Info]) -> str:
    rows = []
    for info in infos:
        for side, ms in info["milliseconds"].items():
            explained = info["explained"].get(side)
            rows.append(
                [
                    info["dtype"],
                    f"{info['width']}",
                    side,
                    *(f"{m:.2f}" for m in ms),
                    f"{ms[-1] / ms[0]:.2f}",
                    "" if explained is None else f"{explained:.2f}",
                ]
            )
    contexts = "|".join(f"{c} tokens, ms" for c in infos[0]["contexts"])
    return table(f"dtype|window|step|{contexts}|longest / shortest|increase over attention's", rows)


def _peaks(infos: Sequence[Info]) -> str:
    rows = []
    for peak in infos[0]["peaks"]:
        over = next(p for p in infos[0]["peaks"] if p["side"] == "transformers" and p["context"] == peak["context"])
        rows.append(
            [
                f"{peak['context']}",
                peak["side"],
                f"{peak['peak'] / 1e6:.1f} MB",
                f"{peak['cache'] / 1e6:.2f} MB",
                f"{peak['peak'] / over['peak']:.2f}" if over["peak"] else "",
                f"{peak['cache'] / over['cache']:.2f}",
            ]
        )
    return table("context|side|peak beyond the model|cache|peak over transformers'|cache over transformers'", rows)


def _acceptance(infos: Sequence[Info]) -> str:
    """A line a shape: milliseconds before and now, and how much of a plain read's speed that is."""
    rows = []
    for info in infos:
        now = "parts" if info["mode"] == "temperature" else "rule"
        batch, positions, vocab = info["shape"]
        times, shares = info["milliseconds"], info["bandwidth_fraction"]
        rows.append(
            [
                info["mode"] if info["mode"] == "greedy" else f"{info['mode']}, chance {info['chance']}",
                info["dtype"],
                f"V = {vocab}, B = {batch}, N = {positions - 1}",
                f"{times['before']:.1f} / {times[now]:.1f} / {times['read']:.1f}",
                spread(info["speedup_over_before"][now]),
                f"{shares['before']:.0%} / {shares[now]:.0%}",
                f"{info['read_gigabytes_per_second']:.1f}",
            ]
        )
    return table("|dtype|shape|ms before / now / plain read|times as fast|of the read's speed|read, GB/s", rows)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: python -m bench.heavy_report out.json [more.json ...]")
    infos: list[Info] = []
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            infos += [benchmark["extra_info"] for benchmark in json.load(file)["benchmarks"]]
    print(report(infos), end="")


if __name__ == "__main__":
    main()
