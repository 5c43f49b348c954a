"""What to run, from what a profile measured: settings, trees, bounds, money. Pure functions over `schema`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specdec.drafters.shapes import expected_accepted, optimal_tree
from specdec.errors import OptionError
from specdec.profile.reasons import Parts, parts_of, why_it_pays, why_plain
from specdec.profile.schema import (
    PLAIN,
    Agreement,
    Cost,
    Interval,
    Money,
    Profile,
    Recommendation,
    Setting,
    TreeAdvice,
    Upper,
)

LEAST_GAIN = 1.03  # a smaller one is not worth a second model to look after
_LUCKY = 0.1  # of the speed-up, between the loop's prompts and a prediction over all
CHAINS = ("model", "early-exit", "cross-tokenizer")  # kinds that draft as many tokens as they are asked for
Place = tuple[float, int]  # temperature, batch


@dataclass(frozen=True, slots=True)
class Candidate:
    """A setting that could be recommended, with the speed-up that it would be recommended for."""

    setting: Setting
    speedup: Interval
    is_measured: bool
    is_impossible: bool


def recommend(profile: Profile, price_per_hour: float | None = None) -> list[Recommendation]:
    """The best setting of each temperature and batch size, or plain decoding, and why.

    A setting pays if its speed-up's interval lies above 1 and the speed-up is at least 1.03; of those the fastest is
    taken. One that was predicted only must exceed the fastest measured one by more than the largest error of a
    prediction in this profile. One that is flagged as impossible is left out as long as there are others.

    Args:
        price_per_hour: of the machine, in dollars; adds the cost of a million new tokens.

    Returns:
        One a temperature and batch size, in this order.

    Raises:
        OptionError: a price that is none.
    """
    if price_per_hour is not None:
        _check_price(price_per_hour)
    error = prediction_error(profile.settings)
    chains = [draft.name for draft in profile.drafts if draft.kind in CHAINS]
    return [
        _recommend(place, rows, error, profile.costs, chains, price_per_hour)
        for place, rows in sorted(by_place(profile.settings).items())
    ]


def by_place(settings: Sequence[Setting]) -> dict[Place, list[Setting]]:
    """Settings by temperature and batch size."""
    places: dict[Place, list[Setting]] = {}
    for setting in settings:
        places.setdefault((setting.temperature, setting.batch), []).append(setting)
    return places


def prediction_error(settings: Sequence[Setting]) -> float | None:
    """The largest relative error of a predicted speed-up among settings that were also measured; None without any."""
    errors = [
        abs(s.predicted.speedup / s.measured.speedup.value - 1)
        for s in settings
        if not s.is_plain and s.predicted and s.measured and not s.measured.impossible and s.measured.speedup.value > 0
    ]
    return max(errors, default=None)


def _recommend(
    place: Place,
    rows: Sequence[Setting],
    error: float | None,
    costs: Sequence[Cost],
    chains: Sequence[str],
    price: float | None,
) -> Recommendation:
    temperature, batch = place
    plain = next((row for row in rows if row.is_plain and row.measured), None)
    candidates, left_out = _candidates(rows, error)
    paying = [c for c in candidates if c.speedup.low > 1]
    best = _fastest(paying)
    parts = {id(c.setting): parts_of(c.setting, plain, costs, chains) for c in candidates}
    if best is None or best.speedup.value < LEAST_GAIN:
        reasons = why_plain(_best_by_draft(candidates, parts), best is not None, LEAST_GAIN)
        chosen, speedup = plain, 1.0
    else:
        runner_up = _fastest([c for c in paying if c.setting.draft != best.setting.draft])
        reasons = why_it_pays(
            best.setting,
            best.speedup,
            parts[id(best.setting)],
            error=None if best.is_measured else error or 0.0,
            runner_up=None if runner_up is None else (runner_up.setting, runner_up.speedup),
        )
        chosen, speedup = best.setting, best.speedup.value
        reasons += _said_of_sample(best.setting)
    reasons += _said_of_impossible(best, left_out)
    return Recommendation(
        temperature=temperature,
        batch=batch,
        draft=PLAIN if chosen is None else chosen.draft,
        num_draft_tokens=0 if chosen is None else chosen.num_draft_tokens,
        speedup=speedup,
        is_measured=chosen is not None and chosen.measured is not None,
        reasons=reasons,
        money=None if price is None else _money_of(price, plain, chosen, speedup),
    )


def _said_of_sample(setting: Setting) -> list[str]:
    """Of many settings on few prompts the fastest is also the luckiest: what acceptance over all prompts promises."""
    if setting.measured is None or setting.overall is None:
        return []
    found, promised = setting.measured.speedup.value, setting.overall.speedup
    if abs(found / promised - 1) <= _LUCKY:
        return []
    return [
        f"Over all prompts {promised:.2f} is predicted: the few that the loop ran on may not stand for them. Measure "
        "more of them (--loop-prompts) before you rely on it."
    ]


def _candidates(rows: Sequence[Setting], error: float | None) -> tuple[list[Candidate], list[Candidate]]:
    """What may be recommended, and what is left out because its speed-up is impossible."""
    drafts = [row for row in rows if not row.is_plain]
    measured = [Candidate(r, r.measured.speedup, True, r.measured.impossible) for r in drafts if r.measured]
    possible = [c for c in measured if not c.is_impossible]
    fastest = max((c.speedup.value for c in possible), default=0.0)
    for row in drafts:
        if row.measured or not row.predicted or (error is None and measured):
            continue  # with nothing to tell how good predictions are, measurements stand alone
        value = row.predicted.speedup
        low = value / (1 + (error or 0.0))
        if low > fastest:
            possible.append(Candidate(row, Interval(value, low, value * (1 + (error or 0.0))), False, False))
    if possible:
        return possible, [c for c in measured if c.is_impossible]
    return measured, []


def _fastest(candidates: Sequence[Candidate]) -> Candidate | None:
    """Fewer draft tokens where two are as fast."""
    return max(candidates, key=lambda c: (c.speedup.value, -c.setting.num_draft_tokens), default=None)


def _best_by_draft(
    candidates: Sequence[Candidate], parts: Mapping[int, Parts | None]
) -> list[tuple[Setting, Interval, Parts | None]]:
    names = dict.fromkeys(c.setting.draft for c in candidates)
    best = [_fastest([c for c in candidates if c.setting.draft == name]) for name in names]
    found = sorted((c for c in best if c is not None), key=lambda c: -c.speedup.value)
    return [(c.setting, c.speedup, parts[id(c.setting)]) for c in found]


def _said_of_impossible(best: Candidate | None, left_out: Sequence[Candidate]) -> list[str]:
    out = []
    if best is not None and best.is_impossible:
        out.append(
            "Beware: this speed-up lies above its ceiling, which no loop can exceed, so plain decoding was slowed by "
            "something while it was measured. There is no other setting to recommend; measure again on a quiet machine."
        )
    if left_out:
        names = ", ".join(f"{c.setting.draft} with {c.setting.num_draft_tokens}" for c in left_out)
        out.append(
            f"Left out, because their speed-ups lie above their ceilings and the plain side must have been slowed: "
            f"{names}."
        )
    return out


def break_even(profile: Profile) -> dict[str, int | None]:
    """Of each temperature (as "0", "0.7") the smallest profiled batch where nothing pays; None if there is none.

    Example:
        >>> break_even(profile)  # doctest: +SKIP
        {'0': None, '1': 4}
    """
    out: dict[str, int | None] = {}
    for found in recommend(profile):  # by temperature, then batch
        key = f"{found.temperature:g}"
        out.setdefault(key, None)
        if found.draft == PLAIN and out[key] is None:
            out[key] = found.batch
    return out


def tree_advice(agreement: Agreement, num_nodes: int) -> TreeAdvice:
    """The best static tree of at most `num_nodes` nodes for the measured ranks (arXiv:2402.12374, section 3.1).

    In greedy decoding, and when sampling with `children="best"`, a rank's share is the chance that the child of this
    rank is accepted. Children that are drawn, TreeDrafter's default when sampling, are accepted more often.

    Raises:
        OptionError: no ranks (the draft was not asked for its distribution), or fewer than one node.

    Example:
        With ranks [0.6, 0.2] four nodes are best spent as [-1, -1, 0, 2]: two first guesses, a chain from the first.
    """
    if not agreement.ranks:
        raise OptionError(f"{agreement.draft} has no ranks: only drafts with a distribution of their own make trees.")
    total = max(1.0, sum(agreement.ranks))  # rounding must not make more of it than 1
    ranks = [share / total for share in agreement.ranks]
    shape = optimal_tree(ranks, num_nodes)
    chain = sum(ranks[0] ** depth for depth in range(len(shape.parents) + 1))
    return TreeAdvice(
        draft=agreement.draft,
        temperature=agreement.temperature,
        num_nodes=num_nodes,
        parents=list(shape.parents),
        acceptance_length=1 + expected_accepted(shape, ranks),
        chain_length=chain,
    )


def money(price_per_hour: float, plain_tokens_per_second: float, tokens_per_second: float) -> Money:
    """Dollars for a million new tokens, without and with what is recommended.

    Raises:
        OptionError: a price or a speed that is none.

    Example:
        >>> money(3.6, 100.0, 200.0)
        Money(price_per_hour=3.6, plain=10.0, recommended=5.0)
    """
    _check_price(price_per_hour)
    if min(plain_tokens_per_second, tokens_per_second) <= 0:
        raise OptionError("tokens a second must be positive.")
    second = price_per_hour / 3600
    return Money(price_per_hour, second / plain_tokens_per_second * 1e6, second / tokens_per_second * 1e6)


def _money_of(price: float, plain: Setting | None, chosen: Setting | None, speedup: float) -> Money | None:
    if plain is None or plain.measured is None or plain.measured.tokens_per_second <= 0:
        return None
    base = plain.measured.tokens_per_second
    measured = None if chosen is None else chosen.measured
    return money(price, base, base * speedup if measured is None else measured.tokens_per_second)


def _check_price(price: float) -> None:
    if not 0 < price < float("inf"):
        raise OptionError(f"a price per hour is a positive number of dollars, got {price!r}.")


def uppers(settings: Sequence[Setting], costs: Sequence[Cost] = ()) -> list[Upper]:
    """What each draft would reach if drafting cost nothing: max over k of length(k) x T_plain / T_verify(k + 1).

    No engine and no smaller draft with this acceptance gets further on this machine and target.

    Args:
        costs: say what verification costs where a setting was predicted only; without them it is left out.
    """
    best: dict[tuple[float, int, str], Upper] = {}
    for (temperature, batch), rows in sorted(by_place(settings).items()):
        plain = next((row for row in rows if row.is_plain and row.measured), None)
        for row in rows:
            parts = None if row.is_plain else parts_of(row, plain, costs)
            if parts is None:
                continue
            found = Upper(row.draft, temperature, batch, row.num_draft_tokens, parts.ceiling)
            key = (temperature, batch, row.draft)
            if key not in best or found.speedup > best[key].speedup:
                best[key] = found
    return list(best.values())


def flag(
    speedup: Interval, acceptance_length: float, t1: float, t_verify: float, tolerance: float = 0.0
) -> tuple[float, bool]:
    """A setting's ceiling, and whether the measured speed-up lies wholly above it.

    Args:
        acceptance_length: tokens a round.
        t1: seconds of a plain step.
        t_verify: seconds of the round's verification alone.
        tolerance: how much of the ceiling the clock's own spread may explain.

    Returns:
        (acceptance_length * t1 / t_verify, impossible).

    Raises:
        OptionError: times that are none.

    Example:
        >>> flag(Interval(5.2, 5.0, 5.4), 3.0, 0.010, 0.012)[1]
        True
    """
    if t1 <= 0 or t_verify <= 0:
        raise OptionError(f"times are positive, got {t1!r} and {t_verify!r} seconds.")
    ceiling = acceptance_length * t1 / t_verify
    return ceiling, speedup.low > ceiling * (1 + tolerance)
