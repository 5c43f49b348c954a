"""The tables of a profile, as text: the terminal shows some of them, the page all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from specdec.profile.schema import PLAIN, Agreement, Band, Interval, Profile, Setting
from specdec.profile.verdict import case, gain, miss
from specdec.profile.words import degrees, length, money, percent, share, short, times, within

NONE = "-"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table.

    Attributes:
        rows: of as many cells as there are columns.
        note: below it.
        words: the columns that hold words; the others hold figures.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    words: tuple[int, ...] = (0,)


def noted_once(grids: Sequence[Grid]) -> list[Grid]:
    """Tables that are shown one after the other: a note that the next one has too stands there only."""
    following = [*(grid.note for grid in grids[1:]), None]
    return [replace(g, note="") if g.note == note else g for g, note in zip(grids, following, strict=False)]


def temperatures(rows: Iterable[Agreement | Setting], draft: str) -> list[float]:
    """At which a draft was looked at, ascending."""
    return sorted({row.temperature for row in rows if row.draft == draft})


def verdict(profile: Profile) -> Grid:
    """What to run, a row a temperature and batch size; prices where they are known."""
    found = profile.recommendations
    prices = sorted({r.money.price_per_hour for r in found if r.money is not None})
    rows = []
    for r in found:
        pays = r.draft != PLAIN
        row = [degrees(r.temperature), str(r.batch), short(r.draft, 24) if pays else "do not speculate"]
        row += [str(r.num_draft_tokens) if pays else NONE, gain(profile, r)]
        if prices:
            paid = (r.money.recommended, r.money.plain) if r.money is not None else ()
            row += [money(price) for price in paid] or [NONE, NONE]
        rows.append(row)
    columns = ["temp.", "batch", "run", "k", "speed-up", *(["price", "plain"] if prices else [])]
    note = "k: draft tokens."
    if prices:
        note += (
            f" Price: of a million new tokens at {', '.join(f'{p:g}' for p in prices)} an hour, and of plain decoding."
        )
    return Grid("What to run", columns, rows, note, (2,))


def agreement(profile: Profile, draft: str, shown: Sequence[float], *, is_brief: bool = False) -> Grid:
    """Target and draft on the target's own text, a column a temperature; of the ranks the first one only, if brief."""
    found = [a for t in shown for a in profile.agreements if a.draft == draft and a.temperature == t]
    depth = min(max((len(a.ranks) for a in found), default=0), 1 if is_brief else 1000)
    rows = [
        ["alpha: chance of acceptance", *(within(a.alpha) for a in found)],
        ["likeliest tokens agree", *(within(a.greedy) for a in found)],
        ["KL(target, draft), nats", *(within(a.kl) for a in found)],
        ["target's entropy, nats", *(within(a.target_entropy) for a in found)],
        ["draft's entropy, nats", *(within(a.draft_entropy) for a in found)],
    ]
    for r in range(depth):
        shares = [share(a.ranks[r]) if r < len(a.ranks) else NONE for a in found]
        rows.append([f"text's token is draft's no. {r + 1}", *shares])
    rows.append(["tokens", *(f"{a.tokens:,}" for a in found)])
    heads = [f"temperature {degrees(a.temperature)}" for a in found]
    return Grid("Agreement on the target's own text", ["", *heads], rows if found else [])


def speedups(profile: Profile, draft: str, temperature: float, batch: int) -> Grid:
    """Predicted and measured by number of draft tokens; the best is marked."""
    found = of(profile, draft, temperature, batch)
    best = max((s.speedup for s in found), default=0.0)
    rows = []
    for s in found:
        p, m = s.predicted, s.measured
        whole, tokens, seconds, rest = miss(s)
        rows.append(
            [
                f"{s.num_draft_tokens}{'*' if s.speedup == best else ''}",
                times(p.speedup) if p else NONE,
                _measured(s),
                *map(percent, (whole, tokens, seconds, rest)),
                times(m.ceiling) if m else NONE,
            ]
        )
    return Grid(
        f"Speed-up, {case(temperature, batch)}",
        ["k", "predicted", "measured", "off by", "tokens", "round", "rest", "ceiling"],
        rows,
        f"k: draft tokens, * best. Off by: measured against predicted, and what of it comes from tokens a round, "
        f"from seconds a round, and from the rest. Ceiling: what no loop of this k can exceed.{_marks(found)}",
        (),
    )


def _measured(setting: Setting) -> str:
    """A measured speed-up, marked where it is impossible."""
    m = setting.measured
    return NONE if m is None else within(m.speedup, times) + ("!" if m.impossible else "")


def _marks(found: Iterable[Setting]) -> str:
    """What the mark means, where there is one."""
    return " !: impossible, above the ceiling." if any(s.measured and s.measured.impossible for s in found) else ""


def of(profile: Profile, draft: str, temperature: float, batch: int) -> list[Setting]:
    """A draft's settings at a temperature and batch size, by number of draft tokens."""
    found = [s for s in profile.settings if (s.draft, s.temperature, s.batch) == (draft, temperature, batch)]
    return sorted(found, key=lambda s: s.num_draft_tokens)


def batches(profile: Profile, draft: str, temperature: float) -> list[int]:
    """Batch sizes of a draft's settings, ascending."""
    return sorted({s.batch for s in profile.settings if s.draft == draft and s.temperature == temperature})


def best(profile: Profile, draft: str) -> Grid:
    """The best number of draft tokens of every temperature and batch size, and what a free draft would reach."""
    bounds = {(u.temperature, u.batch): u for u in profile.uppers if u.draft == draft}
    rows, shown = [], []
    for t in temperatures(profile.settings, draft):
        for b in batches(profile, draft, t):
            s = max(of(profile, draft, t, b), key=lambda s: s.speedup)
            shown.append(s)
            bound = bounds.get((t, b))
            rows.append(
                [
                    degrees(t),
                    str(b),
                    str(s.num_draft_tokens),
                    times(s.predicted.speedup) if s.predicted else NONE,
                    _measured(s),
                    times(s.measured.ceiling) if s.measured else NONE,
                    f"{times(bound.speedup)} (k={bound.num_draft_tokens})" if bound else NONE,
                ]
            )
    return Grid(
        "Best number of draft tokens",
        ["temp.", "batch", "k", "predicted", "measured", "ceiling", "free draft"],
        rows,
        f"Free draft: what a draft with this acceptance would reach if it took no time.{_marks(shown)}",
        (),
    )


def charted(profile: Profile, draft: str, temperature: float) -> Setting | None:
    """The setting whose positions are shown: measured, of the smallest batch, with the most draft tokens."""
    for b in batches(profile, draft, temperature):
        found = [s for s in of(profile, draft, temperature, b) if s.measured is not None and s.measured.positions]
        if found:
            return found[-1]
    return None


def positions(profile: Profile, draft: str, shown: Sequence[float], *, is_brief: bool = False) -> Grid:
    """Acceptance by place in the draft; brief: without intervals of `of drafted` and without counts."""
    columns, by_position = ["position"], []
    settings = [s for t in shown if (s := charted(profile, draft, t)) is not None]
    for s in settings:
        head = f"t={degrees(s.temperature)}, k={s.num_draft_tokens}"
        columns += [f"{head}: if reached", "of drafted"] + ([] if is_brief else ["drafted"])
        by_position.append(s.measured.positions if s.measured else [])
    rows = []
    for i in range(max(map(len, by_position), default=0)):
        row = [str(i + 1)]
        for places in by_position:
            p = places[i] if i < len(places) else None
            if p is None:
                row += [NONE] * (2 if is_brief else 3)
            else:
                row += [within(p.conditional), share(p.marginal.value) if is_brief else within(p.marginal)]
                row += [] if is_brief else [f"{p.drafted:,}"]
        rows.append(row)
    note = "If reached: accepted where the token before it was. Of drafted: accepted of all drafted there."
    return Grid("Acceptance by position", columns, rows, note, ())


def domains(profile: Profile, draft: str, shown: Sequence[float], *, is_brief: bool = False) -> Grid:
    """Alpha by domain, and tokens a round where the loop ran; brief: those only where alpha is not known."""
    columns: list[str] = []
    found: list[tuple[dict[str, Interval], Callable[[float], str]]] = []
    for t in shown:
        alpha = next((a.by_domain for a in profile.agreements if (a.draft, a.temperature) == (draft, t)), {})
        setting = charted(profile, draft, t)
        if alpha:
            columns.append(f"alpha, t={degrees(t)}")
            found.append((alpha, share))
        if setting is not None and setting.measured is not None and not (is_brief and alpha):
            columns.append(f"tokens a round, t={degrees(t)}")
            found.append((setting.measured.by_domain, length))
    names = dict.fromkeys([*profile.subject.domains, *(name for intervals, _ in found for name in intervals)])
    rows = [
        [short(name, 24), f"{profile.subject.domains.get(name, 0):,}"]
        + [_or_none(intervals.get(name), write) for intervals, write in found]
        for name in (names if found else ())
    ]
    return Grid("By domain", ["domain", "prompts", *columns], rows)


def _or_none(interval: Interval | None, write: Callable[[float], str]) -> str:
    return NONE if interval is None else within(interval, write)


def bands(title: str, columns: tuple[str, str], found: Sequence[Band]) -> Grid:
    """A figure by bands of entropy or context."""
    rows = [[edges(band), f"{band.tokens:,}", within(band.value)] for band in found]
    return Grid(title, [columns[0], "tokens", columns[1]], rows)


def edges(band: Band) -> str:
    """0 to 0.5, 2 and more."""
    return f"{band.low:g} and more" if band.high is None else f"{band.low:g} to {band.high:g}"
