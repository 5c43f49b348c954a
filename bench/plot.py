"""The axes' record as a picture: speed-up over `target.generate()` along each axis, with its spread."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Info = Mapping[str, Any]
MISSING = "no plot: it needs matplotlib (pip install 'specdec-hf[report]')"
# Okabe and Ito's colours, told apart by every kind of colour vision; a line's strokes and markers differ as well.
_BLUE, _ORANGE, _GREEN, _PURPLE, _GREY = "#0072b2", "#d55e00", "#009e73", "#a8518a", "#555555"
_AXES = {
    "k": "drafted tokens a round",
    "batch": "prompts at a time",
    "context": "tokens of a prompt",
    "sampling": "temperature",
}
_TITLES = {"k": "Draft tokens", "batch": "Batch", "context": "Context", "sampling": "Sampling"}
_SETTINGS: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "text.parse_math": False,
}


@dataclass(frozen=True, slots=True)
class Look:
    """How a series is drawn: ours compiled is a whole line with filled markers, uncompiled a dashed one with hollow."""

    colour: str
    marker: str
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """One measured ratio: where it stands, and its lowest and highest round."""

    x: float
    ratio: float
    low: float
    high: float


# What the lines show, where the point has it; every other side stands in the picture of strategies.
_LOOKS = {
    "ours, compiled, draft model": Look(_BLUE, "o"),
    "ours, compiled, n-gram": Look(_ORANGE, "s"),
    "ours, compiled, no drafts": Look(_GREY, "D"),
    "ours, eager, draft model": Look(_BLUE, "o", True),
    "ours, eager, n-gram": Look(_ORANGE, "s", True),
    "transformers, static cache and torch.compile": Look(_GREEN, "^"),
    "transformers, assisted generation": Look(_PURPLE, "v", True),
}


def write(data: Info, path: pathlib.Path) -> str:
    """Draws the axes' benchmarks of a pytest-benchmark record; says what it wrote, or why nothing.

    Args:
        data: as pytest-benchmark's JSON.
        path: a .png, or what else matplotlib writes by its ending.
    """
    infos = [b["extra_info"] for b in data["benchmarks"] if b["extra_info"].get("kind") == "axis"]
    if not infos:
        return "no plot: the run has no benchmark of test_axes.py"
    if importlib.util.find_spec("matplotlib") is None:
        return MISSING
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", _SETTINGS]):
        dtypes = list(dict.fromkeys(info["dtype"] for info in infos))
        mosaic, height = _mosaic(infos, dtypes)
        figure = Figure(figsize=(3.1 * len(mosaic[0]) + 1.2, height), layout="constrained")
        places = figure.subplot_mosaic(mosaic, width_ratios=[1.0] * (len(mosaic[0]) - 1) + [1.2])
        for dtype in dtypes:
            _draw(places, [info for info in infos if info["dtype"] == dtype], dtype)
        drawn = [place.get_legend_handles_labels() for place in places.values()]
        handles = {text: line for lines, texts in drawn for line, text in zip(lines, texts, strict=True)}
        if handles:
            order = [text for text in _LOOKS if text in handles]
            lines = [handles[text] for text in order]
            figure.legend(lines, order, loc="outside lower center", ncols=len(mosaic[0]), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return f"wrote {path}"


def _mosaic(infos: Sequence[Info], dtypes: Sequence[str]) -> tuple[list[Any], float]:
    """Which picture stands where, and the height in inches: lines two by two, strategies at their right."""
    rows, height = [], 0.8
    for dtype in dtypes:
        of_dtype = [info for info in infos if info["dtype"] == dtype]
        names = [f"{dtype} {axis}" for axis in _AXES if any(info["axis"] == axis for info in of_dtype)]
        names += ["."] * (len(names) > 1 and len(names) % 2)
        part = [names[i : i + 2] for i in range(0, len(names), 2)] or [[]]
        strategies = [len(_strategies(info)) for info in of_dtype if info["axis"] == "strategy"]
        if strategies:
            part = [[*row, f"{dtype} strategy"] for row in part]
        rows += part
        height += max(2.6 * len(part), 0.6 + 0.19 * max(strategies, default=0))
    width = max(map(len, rows))
    return [row + ["."] * (width - len(row)) for row in rows], height


def _draw(places: Mapping[str, Axes], infos: Sequence[Info], dtype: str) -> None:
    drawn = []
    for axis in _AXES:
        place = places.get(f"{dtype} {axis}")
        if place is not None:
            _lines(place, axis, points_of(infos, axis), dtype)
            drawn.append(place)
    top = max((place.get_ylim()[1] for place in drawn), default=1.0)
    for place in drawn:  # one scale, so that pictures compare
        place.set_ylim(0, top)
    if f"{dtype} strategy" in places:
        _dots(places[f"{dtype} strategy"], [info for info in infos if info["axis"] == "strategy"], dtype)


def points_of(infos: Sequence[Info], axis: str) -> list[Info]:
    """An axis' points; greedy decoding of one prompt at a time is measured once, with the batches, where these are."""
    own = [info for info in infos if info["axis"] == axis]
    is_base = [info for info in infos if info["axis"] == "batch" and info["batch"] == 1]
    return own if axis != "sampling" or any(not info["temperature"] for info in own) else is_base + own


def series(axis: str, infos: Sequence[Info]) -> dict[str, list[Mark]]:
    """The lines of an axis' picture: ratios to `target.generate()` by what is drawn, in the order of the axis."""
    found: dict[str, list[Mark]] = {}
    for info in infos:
        for r in info["ratios"]:
            own = info["ours"].get(r["side"])
            name = _line_of(r["side"], own, axis)
            if name is None or r["over"] != "plain":
                continue
            for x in _places(axis, info, own):
                found.setdefault(name, []).append(Mark(x, r["ratio"], r["low"], r["high"]))
    return {name: sorted(found[name], key=lambda mark: mark.x) for name in _LOOKS if name in found}


def _line_of(side: str, own: Info | None, axis: str) -> str | None:
    """Which line a side belongs to; along k the fixed numbers, else "auto"."""
    if own is not None:
        if own["strategy"] not in ("model", "n-gram") or (own["draft_tokens"] is None) == (axis == "k"):
            return None
        return f"ours, {own['engine']}, {'draft model' if own['strategy'] == 'model' else 'n-gram'}"
    if side == "compiled plain":
        return "ours, compiled, no drafts"
    if side.startswith("static cache"):
        return "transformers, static cache and torch.compile"
    return "transformers, assisted generation" if side.startswith("assisted") else None


def _places(axis: str, info: Info, own: Info | None) -> list[float]:
    if axis == "k":
        if own is not None:
            return [own["draft_tokens"]]
        counts = {o["draft_tokens"] for o in info["ours"].values()} - {None}
        return [min(counts), max(counts)] if counts else []  # decoding without drafts is a level line here
    return [{"batch": info["batch"], "context": info["context"], "sampling": info["temperature"]}[axis]]


def _lines(place: Axes, axis: str, infos: Sequence[Info], dtype: str) -> None:
    drawn = series(axis, infos)
    ticks = sorted({mark.x for marks in drawn.values() for mark in marks})
    spots = {x: float(i) for i, x in enumerate(ticks)} if axis != "k" else {x: x for x in ticks}
    for i, (name, marks) in enumerate(drawn.items()):
        look = _LOOKS[name]
        is_level = axis == "k" and not name.endswith(("draft model", "n-gram"))
        shift = 0.0 if is_level else 0.03 * (i - (len(drawn) - 1) / 2)  # bars of one place side by side
        place.errorbar(
            [spots[mark.x] + shift for mark in marks],
            [mark.ratio for mark in marks],
            yerr=None if is_level else _spread(marks),
            color=look.colour,
            linestyle=":" if is_level else "--" if look.is_dashed else "-",
            linewidth=1.4,
            marker="" if is_level else look.marker,
            markersize=5,
            markerfacecolor="white" if look.is_dashed else look.colour,
            elinewidth=0.9,
            capsize=0,
            label=name,
        )
    words = ["greedy" if axis == "sampling" and not x else f"{x:g}" for x in ticks]
    place.set_xticks([spots[x] for x in ticks], words)
    place.set_xlabel(_AXES[axis])
    place.set_ylabel("times target.generate()")
    place.set_title(f"{_TITLES[axis]}, {dtype}")
    place.axhline(1, color="black", linewidth=0.8)
    if axis != "k":
        place.set_xlim(-0.3, len(ticks) - 0.7)


def _strategies(info: Info) -> list[tuple[str, Look, Mark]]:
    """The sides of the strategies' picture, fastest first."""
    rows = []
    for r in info["ratios"]:
        if r["over"] == "plain":
            own = info["ours"].get(r["side"])
            name, look = _row(r["side"], own)
            rows.append((name, look, Mark(0.0, r["ratio"], r["low"], r["high"])))
    return sorted(rows, key=lambda row: row[2].ratio, reverse=True)


def _row(side: str, own: Info | None) -> tuple[str, Look]:
    if own is not None:
        colour = {"model": _BLUE, "n-gram": _ORANGE}.get(own["strategy"], "#000000")
        return side, Look(colour, "o", own["engine"] == "eager")
    if side in ("compiled plain", "eager plain"):
        return f"{side.split()[0]}, no drafts", Look(_GREY, "D", side == "eager plain")
    return f"transformers: {side}", Look(_GREEN if side.startswith("static") else _PURPLE, "^", True)


def _dots(place: Axes, infos: Sequence[Info], dtype: str) -> None:
    rows = _strategies(infos[0])
    for y, (_, look, mark) in enumerate(rows):
        place.plot([mark.low, mark.high], [y, y], color=look.colour, linewidth=0.9)
        face = "white" if look.is_dashed else look.colour
        place.plot(mark.ratio, y, look.marker, color=look.colour, markerfacecolor=face, markersize=5)
    place.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    place.invert_yaxis()
    place.set_xlabel("times target.generate()")
    place.set_title(f"Strategy, {dtype}")
    place.axvline(1, color="black", linewidth=0.8)
    place.set_xlim(left=0)
    place.grid(axis="y", visible=False)


def _spread(marks: Sequence[Mark]) -> list[list[float]]:
    return [list(part) for part in zip(*_distances(marks), strict=True)]


def _distances(marks: Sequence[Mark]) -> Iterator[tuple[float, float]]:
    for mark in marks:
        yield mark.ratio - mark.low, mark.high - mark.ratio
