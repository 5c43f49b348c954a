"""Which pictures a profile has, and the figures in each: every one comes with a table of the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from specdec.profile import cost_grids, grids
from specdec.profile.drawing import Plot, Series
from specdec.profile.grids import Grid
from specdec.profile.schema import PLAIN, Agreement, Band, Cost, Interval, Measured, Profile
from specdec.profile.verdict import case, draft_names
from specdec.profile.words import count, degrees, short, within

_MOST_NAMES = 24  # on an axis; the table has all


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture and its figures as tables."""

    plot: Plot
    tables: list[Grid]


def _points(look: int, found: Sequence[tuple[float, Interval]]) -> Series:
    """Figures with their intervals."""
    return Series(
        look,
        "measured",
        [x for x, _ in found],
        [i.value for _, i in found],
        [i.low for _, i in found],
        [i.high for _, i in found],
    )


def speedups(profile: Profile) -> list[Chart]:
    """Speed-up against draft tokens, a picture a temperature and batch size."""
    names = draft_names(profile)
    cases = sorted({(s.temperature, s.batch) for s in profile.settings if s.draft in names})
    return [_speedup(profile, names, t, b) for t, b in cases]


def _speedup(profile: Profile, names: Sequence[str], temperature: float, batch: int) -> Chart:
    series, tables = [], []
    for look, name in enumerate(names):
        found = grids.of(profile, name, temperature, batch)
        if not found:
            continue
        predicted = [(s.num_draft_tokens, s.predicted.speedup) for s in found if s.predicted]
        measured = [(s.num_draft_tokens, s.measured) for s in found if s.measured]
        series += [
            Series(look, "predicted", [k for k, _ in predicted], [v for _, v in predicted]),
            Series(look, "ceiling", [k for k, _ in measured], [m.ceiling for _, m in measured]),
            _unjoined(_points(look, [(k, m.speedup) for k, m in measured])),
        ]
        tables.append(_titled(name, grids.speedups(profile, name, temperature, batch)))
    where = case(temperature, batch)
    text = "Speed-up over plain decoding against the number of draft tokens: measured points, predicted dashed lines."
    return Chart(
        Plot(f"Speed-up, {where}", text, "draft tokens", "speed-up", series, line=1.0), grids.noted_once(tables)
    )


def _unjoined(series: Series) -> Series:
    """Points only: the line of the same colour is the prediction."""
    return Series(series.look, "points", series.x, series.y, series.low, series.high)


def _titled(name: str, grid: Grid) -> Grid:
    return replace(grid, title=f"{short(name)}: {grid.title}")


def positions(profile: Profile) -> list[Chart]:
    """Acceptance by place in the draft, a picture a temperature."""
    names = draft_names(profile)
    charts = []
    for t in sorted({s.temperature for s in profile.settings}):
        series, tables = [], []
        for look, name in enumerate(names):
            setting = grids.charted(profile, name, t)
            if setting is None or setting.measured is None:
                continue
            places = list(enumerate(setting.measured.positions, start=1))
            series.append(_points(look, [(i, p.conditional) for i, p in places]))
            series.append(Series(look, "predicted", [i for i, _ in places], [p.marginal.value for _, p in places]))
            tables.append(_titled(name, grids.positions(profile, name, [t])))
        if series:
            title = f"Acceptance by position, {_at(t)}"
            text = "Share of draft tokens accepted against their position: given the one before, and of all drafted."
            charts.append(Chart(Plot(title, text, "position in the draft", "accepted", series, top=1.05), tables))
    return charts


def domains(profile: Profile) -> list[Chart]:
    """Alpha by domain, then tokens a round of the loop, a picture a temperature."""
    charts = []
    for t in sorted({a.temperature for a in profile.agreements}):
        found = {a.draft: a.by_domain for a in profile.agreements if a.temperature == t}
        title, text = (
            f"Alpha by domain, {_at(t)}",
            "The chance that a draft token is accepted, by domain of the prompt.",
        )
        charts.append(_domains(profile, found, Plot(title, text, "alpha", "", [], is_lying=True, top=1.05)))
    for t, loops in _loops(profile):
        found = {name: m.by_domain for name, m in loops.items()}
        title, text = f"Tokens a round by domain, {_at(t)}", "Tokens that a round of the loop gives, by domain."
        charts.append(_domains(profile, found, Plot(title, text, "tokens a round", "", [], is_lying=True, line=1.0)))
    return [chart for chart in charts if chart.plot.series]


def _domains(profile: Profile, found: dict[str, dict[str, Interval]], plot: Plot) -> Chart:
    """Drafts of one domain stand a little above each other."""
    drawn = [name for name in draft_names(profile) if found.get(name)]
    every = list(dict.fromkeys([*profile.subject.domains, *(d for name in drawn for d in found[name])]))
    ticks = [d for d in every if any(d in found[name] for name in drawn)][:_MOST_NAMES]
    series, tables = [], []
    for place, name in enumerate(drawn):
        shift = 0.5 / max(len(drawn), 3) * (place - (len(drawn) - 1) / 2)
        points = [(i + shift, found[name][d]) for i, d in enumerate(ticks) if d in found[name]]
        series.append(_points(draft_names(profile).index(name), points))
        rows = [[short(d, 24), within(found[name][d])] for d in every if d in found[name]]
        tables.append(Grid(short(name), ["domain", plot.x_label], rows))
    plot = replace(plot, series=series, ticks=[short(d, 20) or "(none)" for d in ticks])
    return Chart(plot, tables)


def bands(profile: Profile, kind: str) -> list[Chart]:
    """Alpha by "entropy" of the target or by "context", then acceptance in the loop, a picture a temperature."""
    unit = "target's entropy, nats" if kind == "entropy" else "tokens in front"
    charts = []
    for t in sorted({a.temperature for a in profile.agreements}):
        texts = {a.draft: _of(a, kind) for a in profile.agreements if a.temperature == t}
        text = f"The chance that a draft token is accepted, by bands of {unit}."
        charts.append(_bands(profile, texts, Plot(f"Alpha by {kind}, {_at(t)}", text, unit, "alpha", [], top=1.05)))
    for t, loops in _loops(profile):
        rounds = {name: _of(m, kind) for name, m in loops.items()}
        text = f"Share of draft tokens that were accepted, of those that were looked at, by bands of {unit}."
        plot = Plot(f"Accepted in the loop by {kind}, {_at(t)}", text, unit, "accepted", [], top=1.05)
        charts.append(_bands(profile, rounds, plot))
    return [chart for chart in charts if chart.plot.series]


def _bands(profile: Profile, found: dict[str, list[Band]], plot: Plot) -> Chart:
    every = {(b.low, math.inf if b.high is None else b.high): b for by in found.values() for b in by}
    ticks = sorted(every)
    series, tables = [], []
    for look, name in enumerate(draft_names(profile)):
        if by := found.get(name):
            points = [(ticks.index((b.low, math.inf if b.high is None else b.high)), b.value) for b in by]
            series.append(_points(look, sorted(points, key=lambda point: point[0])))
            tables.append(grids.bands(short(name), (plot.x_label, plot.y_label), by))
    return Chart(replace(plot, series=series, ticks=[grids.edges(every[edges]) for edges in ticks]), tables)


def _of(found: Agreement | Measured, kind: str) -> list[Band]:
    return found.by_entropy if kind == "entropy" else found.by_context


def _loops(profile: Profile) -> Iterator[tuple[float, dict[str, Measured]]]:
    """The loop of each draft at each temperature: the setting that its positions are shown of."""
    for t in sorted({s.temperature for s in profile.settings}):
        settings = {name: grids.charted(profile, name, t) for name in draft_names(profile)}
        yield t, {name: s.measured for name, s in settings.items() if s is not None and s.measured is not None}


def _at(temperature: float) -> str:
    return f"temperature {degrees(temperature)}"


def batch_sizes(profile: Profile) -> list[int]:
    """Each has a colour in the charts of costs."""
    return sorted({c.batch for c in profile.costs})


def costs(profile: Profile) -> list[Chart]:
    """Milliseconds of a verification against the tokens that it verifies, plain decoding among them.

    A picture a draft, context length and kind of call.
    """
    sizes, charts = batch_sizes(profile), []
    for name in draft_names(profile):
        for context, sampled in sorted({(c.context, c.sampled) for c in profile.costs if c.draft == name}):
            # One token a row is plain decoding: what verification is compared with.
            found = [
                c for c in profile.costs if c.draft in (PLAIN, name) and (c.context, c.sampled) == (context, sampled)
            ]
            kind = f", {cost_grids.call(found[0])}" if cost_grids.has_both(profile) else ""
            title = f"Verification, {short(name)}{kind}, {count(context, 'token')} in front"
            text = "Milliseconds of a target forward against the tokens in it: measured points, the cost model dashed."
            series = [s for look, b in enumerate(sizes) for s in _verify(look, [c for c in found if c.batch == b])]
            top = 1.1 * max(y for s in series for y in s.y)
            plot = Plot(title, text, "tokens in the forward, all rows", "milliseconds", series, top=top or None)
            charts.append(Chart(plot, [cost_grids.verification(found)]))
    return charts


def _verify(look: int, found: Iterable[Cost]) -> list[Series]:
    rows = sorted(((cost_grids.window(c), c) for c in found), key=lambda row: row[0])
    x = [tokens for tokens, _ in rows]
    return [
        Series(look, "predicted", x, [1000 * c.fitted_verify for _, c in rows]),
        Series(look, "points", x, [1000 * c.times.verify for _, c in rows]),
    ]
