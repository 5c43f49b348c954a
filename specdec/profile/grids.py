"""The tables of a profile, as text: the terminal shows some of them, the page all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from specdec.profile.schema import PLAIN, Agreement, Band, Interval, Profile, Setting
from specdec.profile.verdict import break_evens, case, gain, miss
from specdec.profile.words import degrees, length, milliseconds, money, part, percent, share, short, size, times, within

_NONE = "-"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table.

    Attributes:
        rows: of as many cells as there are columns.
        note: below it.
        words: so many columns at the left are words, the others figures.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    words: int = 1


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
        row += [str(r.num_draft_tokens) if pays else _NONE, gain(profile, r)]
        if prices:
            paid = (r.money.recommended, r.money.plain) if r.money is not None else ()
            row += [money(price) for price in paid] or [_NONE, _NONE]
        rows.append(row)
    columns = ["temp.", "batch", "run", "k", "speed-up", *(["price", "plain"] if prices else [])]
    note = "k: draft tokens."
    if prices:
        note += (
            f" Price: of a million new tokens at {', '.join(f'{p:g}' for p in prices)} an hour, and of plain decoding."
        )
    return Grid("What to run", columns, rows, note, 3)


def agreement(profile: Profile, draft: str, shown: Sequence[float]) -> Grid:
    """Target and draft on the target's own text, a column a temperature."""
    found = [a for t in shown for a in profile.agreements if a.draft == draft and a.temperature == t]
    depth = max((len(a.ranks) for a in found), default=0)
    rows = [
        ["alpha: chance of acceptance", *(within(a.alpha) for a in found)],
        ["likeliest tokens agree", *(within(a.greedy) for a in found)],
        ["KL(target, draft), nats", *(within(a.kl) for a in found)],
        ["target's entropy, nats", *(within(a.target_entropy) for a in found)],
        ["draft's entropy, nats", *(within(a.draft_entropy) for a in found)],
    ]
    for r in range(depth):
        shares = [share(a.ranks[r]) if r < len(a.ranks) else _NONE for a in found]
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
                times(p.speedup) if p else _NONE,
                (within(m.speedup, times) + ("!" if m.impossible else "")) if m else _NONE,
                *map(percent, (whole, tokens, seconds, rest)),
                times(m.ceiling) if m else _NONE,
            ]
        )
    marks = ", ! impossible" if any(s.measured and s.measured.impossible for s in found) else ""
    return Grid(
        f"Speed-up, {case(temperature, batch)}",
        ["k", "predicted", "measured", "off by", "tokens", "round", "rest", "ceiling"],
        rows,
        f"k: draft tokens, * best{marks}. Off by: measured against predicted, and what of it comes from tokens a round, "
        "from seconds a round, and from the rest. Ceiling: what no loop of this k can exceed.",
        0,
    )


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
    rows = []
    for t in temperatures(profile.settings, draft):
        for b in batches(profile, draft, t):
            s = max(of(profile, draft, t, b), key=lambda s: s.speedup)
            bound = bounds.get((t, b))
            rows.append(
                [
                    degrees(t),
                    str(b),
                    str(s.num_draft_tokens),
                    times(s.predicted.speedup) if s.predicted else _NONE,
                    within(s.measured.speedup, times) if s.measured else _NONE,
                    times(s.measured.ceiling) if s.measured else _NONE,
                    f"{times(bound.speedup)} (k={bound.num_draft_tokens})" if bound else _NONE,
                ]
            )
    return Grid(
        "Best number of draft tokens",
        ["temp.", "batch", "k", "predicted", "measured", "ceiling", "free draft"],
        rows,
        "Free draft: what a draft with this acceptance would reach if it took no time.",
        0,
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
                row += [_NONE] * (2 if is_brief else 3)
            else:
                row += [within(p.conditional), share(p.marginal.value) if is_brief else within(p.marginal)]
                row += [] if is_brief else [f"{p.drafted:,}"]
        rows.append(row)
    note = "If reached: accepted where the token before it was. Of drafted: accepted of all drafted there."
    return Grid("Acceptance by position", columns, rows, note, 0)


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
    return _NONE if interval is None else within(interval, write)


def costs(profile: Profile, draft: str) -> Grid:
    """Where a round's time goes, measured and by the cost model."""
    found = sorted(
        (c for c in profile.costs if c.draft == draft), key=lambda c: (c.context, c.batch, c.num_draft_tokens)
    )
    rows = [
        [
            str(c.num_draft_tokens),
            str(c.batch),
            f"{c.context:,}",
            milliseconds(c.times.draft),
            milliseconds(c.fitted_draft),
            milliseconds(c.times.verify),
            milliseconds(c.fitted_verify),
            milliseconds(c.times.other),
            milliseconds(c.times.total),
            part(c.times.spread),
        ]
        for c in found
    ]
    fits = [f"{short(m.part)} {part(m.residual)}" for m in profile.cost_models if m.draft == draft]
    note = f"The model's median error: {', '.join(fits)}." if fits else ""
    columns = ["k", "batch", "context", "draft", "model", "verify", "model", "other", "sum", "spread"]
    return Grid("Milliseconds a round", columns, rows, note, 0)


def cost_models(profile: Profile) -> Grid:
    """The fitted coefficients."""
    rows = [
        [
            short(m.draft),
            short(m.part),
            " + ".join(f"{c:.3g} x {short(f)}" for c, f in zip(m.coefficients, m.features, strict=False)) or _NONE,
            part(m.residual),
        ]
        for m in profile.cost_models
    ]
    return Grid("Cost models", ["draft", "part", "seconds", "median error"], rows, words=3)


def trees(profile: Profile, draft: str) -> Grid:
    """The best static trees."""
    rows = [
        [
            degrees(t.temperature),
            str(t.num_nodes),
            length(t.acceptance_length),
            length(t.chain_length),
            percent(t.acceptance_length / t.chain_length - 1 if t.chain_length > 0 else None),
            _shape(t.parents),
        ]
        for t in profile.trees
        if t.draft == draft
    ]
    columns = ["temp.", "nodes", "tokens a round", "of a chain", "gain", "nodes by depth"]
    return Grid(
        "Best tree for a number of nodes", columns, rows, "Expected, if ranks at one depth say nothing of the next.", 0
    )


def _shape(parents: Sequence[int]) -> str:
    """Nodes at each depth: "2, 2, 1"; "not a tree" where a parent does not stand before its child."""
    depths: list[int] = []
    for i, parent in enumerate(parents):
        if not -1 <= parent < i:
            return "not a tree"
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return ", ".join(str(depths.count(d)) for d in range(max(depths, default=-1) + 1)) or _NONE


def bands(title: str, columns: tuple[str, str], found: Sequence[Band]) -> Grid:
    """A figure by bands of entropy or context."""
    rows = [[edges(band), f"{band.tokens:,}", within(band.value)] for band in found]
    return Grid(title, [columns[0], "tokens", columns[1]], rows)


def edges(band: Band) -> str:
    """0 to 0.5, 2 and more."""
    return f"{band.low:g} and more" if band.high is None else f"{band.low:g} to {band.high:g}"


def everything(profile: Profile, draft: str) -> Grid:
    """Every setting of a draft with what was measured of it."""
    found = [s for s in profile.settings if s.draft == draft]
    rows = []
    for s in sorted(found, key=lambda s: (s.temperature, s.batch, s.num_draft_tokens)):
        p, m = s.predicted, s.measured
        row = [
            degrees(s.temperature), str(s.batch), str(s.num_draft_tokens),
            times(p.speedup) if p else _NONE, within(p.rounds, length) if p else _NONE,
            length(p.acceptance_length) if p else _NONE,
        ]  # fmt: skip
        if m is None:
            row += [_NONE] * 10
        else:
            row += [
                within(m.speedup, times) + (" IMPOSSIBLE" if m.impossible else ""), within(m.rounds, length),
                within(m.acceptance_length, length), share(m.acceptance_rate), f"{m.tokens_per_second:.1f}",
                milliseconds(m.times.total), part(m.times.spread),
                size(m.peak_bytes, "B") if m.peak_bytes is not None else _NONE,
                f"{m.joules_per_token:.3g}" if m.joules_per_token is not None else _NONE,
                within(m.martingale) if m.martingale is not None else _NONE,
            ]  # fmt: skip
        rows.append(row)
    columns = [
        "temp.", "batch", "k", "predicted", "rounds predicted", "tokens a round predicted", "measured", "rounds",
        "tokens a round", "acceptance rate", "tokens/s", "ms a round", "spread", "peak memory", "J a token",
        "accepted - alpha",
    ]  # fmt: skip
    return Grid(
        "Every setting", columns, rows, "Accepted - alpha: of first draft tokens; 0 within it is what theory says.", 0
    )


def break_even(profile: Profile) -> Grid:
    """Where drafts stop to pay."""
    return Grid("Break-even batch size", [""], [[line] for line in break_evens(profile)])
