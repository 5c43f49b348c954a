"""Tables of test_weights, test_never_slower, test_long_context and test_acceptance_cost, for `bench.report`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.markdown import equal_texts, spread, table

Info = dict[str, Any]


def parts(infos: Sequence[Info]) -> list[str]:
    """A heading, the circumstances and the tables of each kind that is among the records."""
    makers = {
        "weights": _weights,
        "never slower": _never,
        "short texts": _short,
        "long context": _contexts,
        "peak memory": _peaks,
        "acceptance": _acceptance,
    }
    found = []
    for kind, make in makers.items():
        chosen = [info for info in infos if info["kind"] == kind]
        if chosen:
            first = chosen[0]
            found += [
                f"### {kind.capitalize()}",
                f"{_where(first)}; torch {first['torch']}, transformers "
                f"{first['transformers']}; {first['new_tokens']} new tokens, {first['rounds']} rounds.",
                make(chosen),
            ]
    return found


def _weights(infos: Sequence[Info]) -> str:
    """A line an acceptance: over the same engine's plain, beside the formula; over transformers."""
    rows = []
    for info in infos:
        k = info["k"]
        for row in info["rows"]:
            ratios = row["ratios"]
            formulas = {
                how: f"({row['formula'][how]:.2f}; {row['formula_of_accepted'][how]:.2f})" for how in row["formula"]
            }
            rows.append(
                [
                    _case(info),
                    f"{info['draft_cost']}",
                    f"{row['acceptance']}",
                    f"{spread(ratios[f'eager k={k} / eager'])} {formulas['eager']}",
                    f"{spread(ratios[f'compiled k={k} / compiled'])} {formulas['compiled']}",
                    f"{spread(ratios['compiled auto / compiled'])}, {row['auto_drafted']:.1f} drafted",
                    spread(ratios["compiled / transformers"]),
                    spread(ratios[f"compiled k={k} / transformers"]),
                    spread(ratios.get(f"compiled k={k} / assisted k={k}")),
                    spread(ratios.get(f"assisted k={k} / transformers")),
                    f"{row['tokens_per_second'][f'compiled k={k}']:.1f}",
                    equal_texts(_ours(row["texts"])),
                ]
            )
    columns = (
        "case, compiled in|draft's cost|acceptance|eager k over eager plain (formula by chance; by what was accepted)|"
        "compiled k over compiled plain (the same)|"
        "compiled auto over compiled plain|compiled plain over transformers|compiled k over transformers|"
        "compiled k over transformers' assisted|assisted over transformers|compiled k, tokens/s|"
        "texts of ours equal to the model's"
    )
    steps = [
        [_case(info), f"{info['draft_cost']}", how, *(f"{ms:.1f}" for ms in pair), f"{pair[1] / pair[0]:.2f}"]
        for info in infos
        for how, pair in info["step_milliseconds"].items()
    ]
    tables = [table(columns, rows), table("case, compiled in|draft's cost|engine|T(1), ms|T(k+1), ms|ratio", steps)]
    return "\n\n".join([*tables, *_over_others(infos)])


def _where(info: Info) -> str:
    return info["device"] if info["device"] != "cpu" else f"{info['threads']} threads on {info['cpus']} CPUs"


def _case(info: Info) -> str:
    return f"{info['case']}, {info['graph_dtype']}"


def _ours(texts: dict[str, dict[str, int]]) -> dict[str, int]:
    """The counts of all sides of ours together."""
    ours = [counts for side, counts in texts.items() if side.startswith(("eager", "compiled"))]
    return {name: sum(counts[name] for counts in ours) for name in ours[0]}


def _over_others(infos: Sequence[Info]) -> list[str]:
    """A line an acceptance and plain engine of others: vLLM in its dtypes, transformers' static cache on a GPU."""
    rows = [
        [
            _case(info),
            f"{row['acceptance']}",
            peer,
            f"{row['tokens_per_second'][peer]:.1f}",
            *(spread(row["ratios"][f"compiled{mode} / {peer}"]) for mode in ("", f" k={info['k']}", " auto")),
        ]
        for info in infos
        for row in info["rows"]
        for peer in row["tokens_per_second"]
        if f"compiled / {peer}" in row["ratios"] and peer != "transformers"
    ]
    columns = (
        "case, compiled in|acceptance|plain engine|its tokens/s|compiled plain over it|compiled k over it|"
        "compiled auto over it"
    )
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
                note = f"{spread(share)} of the best fixed" + (" **missed**" if share[0] < perfect_goal else "")
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
                    equal_texts(own["texts"]),
                    note,
                ]
            )
    columns = (
        "target|dtype|draft|over plain|over its own plain steps|acceptance rate|drafted|asked, by quarter|"
        "texts equal to plain|"
    )
    return table(columns, rows)


def _short(infos: Sequence[Info]) -> str:
    rows = [
        [
            info["case"],
            info["dtype"],
            *(spread(info["over_plain"][side]) for side in info["over_plain"]),
            *(f"{drafted:.1f}" for drafted in info["drafted"].values()),
            equal_texts(info["texts"]),
        ]
        for info in infos
    ]
    columns = (
        "case|dtype|a decoder a call, over plain|one decoder, over plain|drafted tokens a row and call|"
        "with one decoder|texts equal to plain"
    )
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
                    spread(explained),
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
