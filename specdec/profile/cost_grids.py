"""More tables of a profile: what a round costs, the trees that ranks allow, and all of every setting."""

from __future__ import annotations

from collections.abc import Sequence

from specdec.profile.grids import NONE, Grid
from specdec.profile.schema import Cost, CostModel, Profile
from specdec.profile.words import degrees, length, milliseconds, part, percent, share, short, size, times, within


def verification(found: Sequence[Cost]) -> Grid:
    """The figures of a chart of verification costs."""
    rows = [
        [
            f"{window(c):,}",
            str(c.batch),
            milliseconds(c.times.verify),
            milliseconds(c.fitted_verify),
            percent(c.fitted_verify / c.times.verify - 1 if c.times.verify > 0 else None),
        ]
        for c in sorted(found, key=lambda c: (c.batch, c.num_draft_tokens))
    ]
    return Grid("Milliseconds of a verification", ["tokens", "batch", "measured", "model", "off by"], rows, "", ())


def window(cost: Cost) -> int:
    """Tokens of all rows in the target's forward: the drafted ones and the one before them."""
    return cost.batch * (cost.num_draft_tokens + 1)


def call(cost: Cost | CostModel) -> str:
    """The kind of calls that were timed."""
    return "sampled" if cost.sampled else "greedy"


def has_both(profile: Profile) -> bool:
    """Were greedy and sampled calls timed?"""
    return len({c.sampled for c in profile.costs}) > 1


def costs(profile: Profile, draft: str) -> Grid:
    """Where a round's time goes, measured and by the cost model."""
    found = sorted(
        (c for c in profile.costs if c.draft == draft),
        key=lambda c: (c.sampled, c.context, c.batch, c.num_draft_tokens),
    )
    both = has_both(profile)
    rows = [
        [
            *([call(c)] if both else []),
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
    models = [m for m in profile.cost_models if m.draft == draft]
    fits = [f"{call(m) + ' ' if both else ''}{short(m.part)} {part(m.residual)}" for m in models]
    note = f"The model's median error: {', '.join(fits)}." if fits else ""
    columns = [
        *(["call"] if both else []),
        "k",
        "batch",
        "context",
        "draft",
        "model",
        "verify",
        "model",
        "other",
        "sum",
        "spread",
    ]
    return Grid("Milliseconds a round", columns, rows, note, (0,) if both else ())


def cost_models(profile: Profile) -> Grid:
    """The fitted coefficients."""
    rows = [
        [
            short(m.draft),
            call(m),
            short(m.part),
            " + ".join(f"{c:.3g} x {short(f)}" for c, f in zip(m.coefficients, m.features, strict=False)) or NONE,
            part(m.residual),
        ]
        for m in profile.cost_models
    ]
    return Grid("Cost models", ["draft", "call", "part", "seconds", "median error"], rows, words=(0, 1, 2, 3))


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
    note = "Expected, if ranks at one depth say nothing of the next."
    return Grid("Best tree for a number of nodes", columns, rows, note, ())


def _shape(parents: Sequence[int]) -> str:
    """Nodes at each depth: "2, 2, 1"; "not a tree" where a parent does not stand before its child."""
    depths: list[int] = []
    for i, parent in enumerate(parents):
        if not -1 <= parent < i:
            return "not a tree"
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return ", ".join(str(depths.count(d)) for d in range(max(depths, default=-1) + 1)) or NONE


def everything(profile: Profile, draft: str) -> Grid:
    """Every setting of a draft with what was measured of it."""
    found = [s for s in profile.settings if s.draft == draft]
    rows = []
    for s in sorted(found, key=lambda s: (s.temperature, s.batch, s.num_draft_tokens)):
        p, m = s.predicted, s.measured
        row = [
            degrees(s.temperature), str(s.batch), str(s.num_draft_tokens),
            times(p.speedup) if p else NONE, within(p.rounds, length) if p else NONE,
            length(p.acceptance_length) if p else NONE,
        ]  # fmt: skip
        if m is None:
            row += [NONE] * 10
        else:
            row += [
                within(m.speedup, times) + (" IMPOSSIBLE" if m.impossible else ""), within(m.rounds, length),
                within(m.acceptance_length, length), share(m.acceptance_rate), f"{m.tokens_per_second:.1f}",
                milliseconds(m.times.total), part(m.times.spread),
                size(m.peak_bytes, "B") if m.peak_bytes is not None else NONE,
                f"{m.joules_per_token:.3g}" if m.joules_per_token is not None else NONE,
                within(m.martingale) if m.martingale is not None else NONE,
            ]  # fmt: skip
        rows.append(row)
    columns = [
        "temp.", "batch", "k", "predicted", "rounds predicted", "tokens a round predicted", "measured", "rounds",
        "tokens a round", "acceptance rate", "tokens/s", "ms a round", "spread", "peak memory", "J a token",
        "accepted - alpha",
    ]  # fmt: skip
    note = "Accepted - alpha: of first draft tokens; 0 within it is what theory says."
    return Grid("Every setting", columns, rows, note, ())
