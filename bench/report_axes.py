"""The tables of test_axes.py, of prompts by kind, and of what was possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.markdown import table

Info = dict[str, Any]
STATIC = "static cache, torch.compile"  # the side of test_axes.py that is transformers at its fastest
_WORST = 8  # bounds in the table that come nearest; all are in the record


def axes(infos: Sequence[Info]) -> str:
    """A line a side and point: against plain generate(), and ours against the same engine's own plain decoding."""
    rows = []
    for info in infos:
        over = {(r["side"], r["over"]): r for r in info["ratios"]}
        for side, own in info["sides"].items():
            if (side, "plain") not in over:
                continue
            ours = info["ours"].get(side)
            engine = over.get((side, f"{ours['engine']} plain")) if ours else None
            bound = next((b for b in info["bounds"] if b["side"] == side), None)
            rows.append(
                [
                    info["axis"],
                    *case(info),
                    side,
                    _ratio(over[side, "plain"]),
                    _ratio(over[side, STATIC]) if (side, STATIC) in over else "",
                    _ratio(engine) if engine else "",
                    f"{max(1.0, bound['bound']['median']):.2f}" if bound else "",
                    f"{own['acceptance_length']:.2f}" if own.get("acceptance_length") and ours else "",
                ]
            )
        rows += [[info["axis"], *case(info), side, "none", "", "", "", why] for side, why in info["missing"].items()]
    columns = f"axis|dtype|batch|context|temperature|side|over generate()|over {STATIC}|over the engine's own plain|"
    return table(columns + "at most possible|acceptance length, or why none", rows)


def kinds(infos: Sequence[Info]) -> str:
    """A line a side, a column a kind of prompt: over plain generate(), and the acceptance length of ours."""
    names = list(dict.fromkeys(kind for info in infos for kind in info["kinds"]))
    rows = []
    for info in infos:
        sides = dict.fromkeys(side for by_side in info["kinds"].values() for side in by_side)
        rows += [[*case(info), side, *(_of_kind(info["kinds"].get(k, {}).get(side)) for k in names)] for side in sides]
    return table("dtype|batch|context|temperature|over generate(); acceptance length|" + "|".join(names), rows)


def _of_kind(r: Info | None) -> str:
    if r is None:
        return ""
    return _ratio(r) + (f"; {r['acceptance_length']:.2f}" if r["acceptance_length"] else "")


def bounds(infos: Sequence[Info]) -> str:
    """The ratios that come nearest to what is possible, and those above it."""
    found = [(b["ratio"]["low"] / max(1.0, b["bound"]["high"]), b, info) for info in infos for b in info["bounds"]]
    found.sort(key=lambda entry: entry[0], reverse=True)
    rows = []
    for share, b, info in found[:_WORST]:
        said = "impossible" if b["impossible"] else "not judged" if b["rounds"] < 2 else "possible"
        rows.append(
            [
                *case(info),
                f"{b['side']} / {b['over']}",
                _ratio({"ratio": b["ratio"]["median"], **b["ratio"]}),
                _ratio({"ratio": b["bound"]["median"], **b["bound"]}),
                f"{b['acceptance_length']:.2f}",
                f"{share:.2f}",
                said,
            ]
        )
    columns = "dtype|batch|context|temperature|comparison|ratio|bound|acceptance length|lowest ratio / highest bound|"
    unjudged = sorted({side for info in infos for side in info.get("not_judged", ())})
    if not unjudged:
        return table(columns + "verdict", rows)
    why = f"Not judged, since a text ended before a round could be timed: {', '.join(unjudged)}."
    return table(columns + "verdict", rows) + "\n\n" + why


def costs(infos: Sequence[Info]) -> str:
    """Milliseconds of a round by its number of draft tokens, drafts free."""
    rows = []
    for info in infos:
        for engine, by_count in info.get("round_ms", {}).items():
            spelt = ", ".join(f"{int(count) + 1}: {ms:.2f}" for count, ms in by_count.items())
            rows.append([*case(info), engine, spelt])
    return table("dtype|batch|context|temperature|engine|tokens a row: ms a round", rows)


def case(info: Info) -> list[str]:
    """dtype, batch, context, temperature."""
    temperature = "greedy" if info["temperature"] == 0 else str(info["temperature"])
    return [info["dtype"], str(info["batch"]), str(info["context"]), temperature]


def _ratio(r: Info) -> str:
    return f"{r['ratio']:.2f} [{r['low']:.2f}-{r['high']:.2f}]"
