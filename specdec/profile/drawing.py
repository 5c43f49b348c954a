"""Small pictures as inline SVG, drawn by matplotlib: its objects only, so that no setting of the user's changes.

Colours are variables of the page (`--c0`, `--ink`, `--rule`), so that one picture serves light and dark. Words that
come from a profile never pass through matplotlib, which would read some of them as formulas and miss letters of others:
it draws `@0@`, and the words take that place afterwards. Its sheet of styles is left out: the page's own says the same.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from specdec.profile.markup import Markup
from specdec.profile.words import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSING = "Charts need matplotlib: pip install 'specdec-hf[report]', then `specdec profile` writes them here."
NUM_COLOURS = 7
_MARKERS = "os^DvPX"
_STROKES = {"measured": "-", "points": "none", "predicted": "--", "ceiling": ":"}
# What matplotlib writes for a colour that we look for afterwards; nothing else in a picture has these.
_INK, _RULE = "#0a0c00", "#0a0c01"
_COLOURS = [f"#0a0b0{i}" for i in range(NUM_COLOURS)]
_VARIABLES = {_INK: "var(--ink)", _RULE: "var(--rule)"} | {c: f"var(--c{i})" for i, c in enumerate(_COLOURS)}
_LABEL = re.compile(r"^@(\d+)@$")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONTS = re.compile(r"font-family: [^;]*; ")
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # words stay words: they can be searched, and take the page's font
    "svg.hashsalt": "specdec",
    "text.parse_math": False,
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
}


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one draft.

    Attributes:
        look: the draft's colour and marker.
        role: "measured" has markers and a line, "points" markers only, "predicted" a dashed line, "ceiling" a dotted
            one.
        low, high: ends of the intervals, or empty.
    """

    look: int
    role: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture with one pair of axes.

    Attributes:
        title, text: what it shows, for those who do not see it.
        ticks: names along the x axis, or the y axis if `is_lying`, at 0, 1, 2, ...; figures where there are none.
        is_lying: x and y of the series change places.
        line: a grey line at this figure.
        top: end of the axis of figures, where it is known.
    """

    title: str
    text: str
    x_label: str
    y_label: str
    series: list[Series]
    ticks: list[str] = field(default_factory=list)
    is_lying: bool = False
    line: float | None = None
    top: float | None = None


def can_draw() -> bool:
    """Is matplotlib installed?"""
    return importlib.util.find_spec("matplotlib") is not None


def draw(plot: Plot, key: str) -> Markup:
    """A picture as SVG.

    Args:
        plot: what it shows.
        key: of letters and digits, unlike that of any other picture of the page: its ids begin with it.
    """
    height = max(2.0, 0.9 + 0.3 * len(plot.ticks)) if plot.is_lying else 2.9
    with _style():
        figure, axes = _axes(4.6, height)
        left = 1.75 if plot.is_lying else 0.62
        figure.subplots_adjust(left / 4.6, 0.52 / height, 1 - 0.12 / 4.6, 1 - 0.12 / height)
        for series in plot.series:
            _add(axes, series, plot.is_lying)
        _finish(axes, plot)
        return _inline(figure, key, plot.title, plot.text, plot.ticks)


def swatch(look: int, key: str) -> Markup:
    """The line and marker of a draft, for a legend; key: as for `draw`."""
    return Markup(_swatch(look % NUM_COLOURS).replace("KEY-", f"{key}-"))


@functools.cache
def _swatch(look: int) -> str:
    with _style():
        figure, axes = _axes(0.5, 0.2)
        axes.set_axis_off()
        axes.set_position((0, 0, 1, 1))
        axes.set_xlim(0, 2)
        axes.set_ylim(-1, 1)
        _add(axes, Series(look, "measured", [0, 1, 2], [0, 0, 0]), False, markevery=[1])
        return _inline(figure, "KEY", None, "", ())


def _style() -> Any:
    """matplotlib's own defaults and ours on top, for as long as the context is open."""
    from matplotlib import style

    return style.context(["default", _SETTINGS])


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def _add(axes: Axes, series: Series, is_lying: bool, **more: Any) -> None:
    colour, has_markers = _COLOURS[series.look % NUM_COLOURS], series.role in ("measured", "points")
    x, y = (series.y, series.x) if is_lying else (series.x, series.y)
    joined = "none" if is_lying else _STROKES[series.role]
    marker = _MARKERS[series.look % NUM_COLOURS] if has_markers else "none"
    axes.plot(x, y, color=colour, linestyle=joined, linewidth=1.4, marker=marker, markersize=6, **more)
    if len(series.low):
        # An interval of a bootstrap may end short of its own figure by a rounding: no bar has a negative length.
        below = [max(v - low, 0) for v, low in zip(series.y, series.low, strict=True)]
        above = [max(high - v, 0) for v, high in zip(series.y, series.high, strict=True)]
        bars = {"xerr" if is_lying else "yerr": (below, above)}
        axes.errorbar(x, y, **bars, ecolor=colour, fmt="none", elinewidth=1.2, capsize=3)  # type: ignore[arg-type]


def _finish(axes: Axes, plot: Plot) -> None:
    """Labels, ticks, limits and the grey line."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(axis="x" if plot.is_lying else "y", alpha=0.7)
    axes.tick_params(length=0)
    figures = axes.set_xlim if plot.is_lying else axes.set_ylim
    figures(0, plot.top)
    if plot.line is not None:
        (axes.axvline if plot.is_lying else axes.axhline)(plot.line, color=_INK, linewidth=1, linestyle="-", alpha=0.6)
    places, names = range(len(plot.ticks)), [f"@{i}@" for i in range(len(plot.ticks))]
    if plot.is_lying:
        axes.set_yticks(places, names)
        axes.set_ylim(len(names) - 0.4, -0.6)
    elif names:
        axes.set_xticks(places, names)
        axes.set_xlim(-0.4, len(names) - 0.6)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _inline(figure: Figure, key: str, title: str | None, text: str, words: Sequence[str]) -> Markup:
    """What matplotlib writes, made fit to stand in a page: no namespaces, no foreign ids, the page's colours."""
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    used = set(_used(root))
    for element in root.iter():
        element.tag = element.tag.partition("}")[2] or element.tag
        element.attrib = dict(_attributes(element, key, used))
        match = _LABEL.match(element.text or "")
        if match:
            element.text = clean(words[int(match[1])])
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for parent in root.iter("defs"):
        for sheet in parent.findall("style"):  # it would hold for the whole page
            parent.remove(sheet)
    if title is None:
        root.set("aria-hidden", "true")
    else:
        root.attrib |= {"role": "img", "aria-labelledby": f"{key}-title {key}-text"}
        for place, (name, said) in enumerate((("title", title), ("desc", text))):
            child = ElementTree.Element(name, {"id": f"{key}-{'title' if name == 'title' else 'text'}"})
            child.text = clean(said)
            root.insert(place, child)
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


def _used(root: ElementTree.Element) -> Iterator[str]:
    """The ids that something in the picture refers to."""
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.endswith("href"):
                yield value.removeprefix("#")
            yield from _REFERENCE.findall(value)


def _attributes(element: ElementTree.Element, key: str, used: set[str]) -> Iterator[tuple[str, str]]:
    for name, value in element.attrib.items():
        short = name.partition("}")[2] or name
        if short == "id":
            if value in used:
                yield "id", f"{key}-{value}"
        elif short == "href":
            yield "href", f"#{key}-{value.removeprefix('#')}"
        else:
            value = _FONTS.sub("", _REFERENCE.sub(rf"url(#{key}-\1)", value))
            for colour, variable in _VARIABLES.items():
                value = value.replace(colour, variable)
            yield short, value
