"""Why a draft pays or does not, in sentences: what a round yields, and what it costs, in plain steps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean

from specdec.profile.schema import Cost, Interval, Setting


@dataclass(frozen=True, slots=True)
class Parts:
    """A round in units of a plain step of the same batch: what it yields, and where its time goes.

    Attributes:
        length: tokens a row.
        draft: drafting.
        verify: the target's forward over the round's window, in forwards over one token.
        added: what of this forward a plain step's own does not cost.
        other: what the rest of the round takes longer than a plain step's rest.
        ceiling: the speed-up with nothing but verification.
        window: tokens that are verified together, where the draft is a chain of always k tokens.
    """

    num_draft_tokens: int
    length: float
    draft: float
    verify: float
    added: float
    other: float
    ceiling: float
    window: int | None = None

    @property
    def total(self) -> float:
        return 1 + self.draft + self.added + self.other

    @property
    def rejected(self) -> float:
        """Of k tokens those that were not drafted or not accepted, each worth a plain step."""
        return self.num_draft_tokens - (self.length - 1)

    @property
    def cause(self) -> str:
        """What takes most of what k accepted tokens at no cost would gain.

        A round of k drafted tokens gains k plain steps at best. Rejections, drafting, verification and overhead each
        take some of it, in the same unit; the rest is the gain.
        """
        losses = {
            "its tokens are too rarely accepted": self.rejected,
            "the draft is too dear": self.draft,
            "verifying several tokens is not free": self.added,
            "the loop's overhead is too large": self.other,
        }
        return max(losses, key=lambda name: losses[name])


def parts_of(
    setting: Setting, plain: Setting | None, costs: Sequence[Cost], chains: Collection[str] = ()
) -> Parts | None:
    """A setting's round, measured, or predicted with the fitted costs; None where its times are not known.

    Args:
        chains: names of the drafts that always draft k tokens, so that k + 1 are verified.
    """
    if plain is None or plain.measured is None or plain.measured.times.total <= 0:
        return None
    step = plain.measured.times
    seconds = _seconds(setting, costs)
    if seconds is None or seconds[1] <= 0:
        return None
    draft, verify, other = seconds
    length = setting.measured.acceptance_length.value if setting.measured else _predicted_length(setting)
    return Parts(
        num_draft_tokens=setting.num_draft_tokens,
        length=length,
        draft=draft / step.total,
        verify=verify / step.verify if step.verify > 0 else verify / step.total,
        added=(verify - step.verify) / step.total,
        other=(other - step.other - step.draft) / step.total,  # a plain step's draft is nothing, or a clock read
        ceiling=length * step.total / verify,
        window=setting.num_draft_tokens + 1 if setting.draft in chains else None,
    )


def _predicted_length(setting: Setting) -> float:
    return 0.0 if setting.predicted is None else setting.predicted.acceptance_length


def _seconds(setting: Setting, costs: Sequence[Cost]) -> tuple[float, float, float] | None:
    """(draft, verify, other) of a round; None where they were neither measured nor fitted."""
    if setting.measured is not None:
        return setting.measured.times.draft, setting.measured.times.verify, setting.measured.times.other
    if setting.predicted is None:
        return None
    place = (setting.draft, setting.batch, setting.num_draft_tokens, setting.temperature > 0)
    rows = [c for c in costs if (c.draft, c.batch, c.num_draft_tokens, c.sampled) == place]
    if not rows:
        return None
    draft, verify = fmean(c.fitted_draft for c in rows), fmean(c.fitted_verify for c in rows)
    return draft, verify, max(0.0, setting.predicted.round_seconds - draft - verify)


def why_it_pays(
    setting: Setting,
    speedup: Interval,
    parts: Parts | None,
    *,
    error: float | None,
    runner_up: tuple[Setting, Interval] | None,
) -> list[str]:
    """Sentences for a setting that is recommended.

    Args:
        error: the largest error of a prediction in this profile, if the setting was predicted only.
        runner_up: the best setting of another draft.
    """
    k = setting.num_draft_tokens
    name = f"{setting.draft} with {k} draft {_tokens(k)}"
    head = f"{name} is {times(speedup)} as fast as plain decoding at {_place(setting)}"
    if error is None:
        out = [head + "."]
    else:
        sure = f"predictions in this profile were off by up to {error:.0%}" if error else "nothing was measured"
        out = [f"{head}, as predicted: it was not measured itself, and {sure}."]
    if parts is not None:
        out += _costs(parts, setting.batch)
    if runner_up is not None:
        other, its = runner_up
        out.append(f"The best of the others is {other.draft} with {other.num_draft_tokens}: {times(its)}.")
    return out


def why_plain(best: Sequence[tuple[Setting, Interval, Parts | None]], is_small: bool, least_gain: float) -> list[str]:
    """Sentences where no draft is recommended.

    Args:
        best: of each draft its fastest setting, the fastest first.
        is_small: something is surely faster than plain decoding, but by less than `least_gain`.
    """
    if not best:
        return ["No draft was measured or predicted here."]
    if is_small:
        out = [f"Do not speculate: the best gain is under {least_gain - 1:.0%}."]
    else:
        out = ["Do not speculate: of no setting does the speed-up's whole interval lie above 1."]
    for setting, speedup, parts in best:
        k = setting.num_draft_tokens
        said = f"{setting.draft} is fastest with {k} draft {_tokens(k)}: {times(speedup)} as fast at {_place(setting)}"
        if parts is None:
            out.append(said + ".")
        else:
            out.append(f"{said}, because {parts.cause}.")
            out += _costs(parts, setting.batch)
    return out


def _costs(parts: Parts, batch: int) -> list[str]:
    k = parts.num_draft_tokens
    rows = "" if batch == 1 else f" of each of {batch} rows"
    window = "what was drafted" if parts.window is None else f"{parts.window} tokens{rows} at once"
    accepted = f"{parts.length - 1:.2f} {'is' if k == 1 else 'are'} accepted"
    return [
        f"A round yields {parts.length:.2f} tokens{rows} (acceptance length) and takes {parts.total:.2f} plain steps.",
        f"A drafted token costs {parts.draft / k:.3f} of a plain step; of {k} that may be drafted {accepted}.",
        f"Verifying {window} costs {parts.verify:.2f} times what one token costs; the loop's overhead adds "
        f"{parts.other:.2f} of a step.",
    ]


def times(speedup: Interval) -> str:
    """A speed-up and its interval, in words."""
    return f"{speedup.value:.2f} times ({speedup.low:.2f} to {speedup.high:.2f})"


def _place(setting: Setting) -> str:
    return f"temperature {setting.temperature:g} and batch {setting.batch}"


def _tokens(count: int) -> str:
    return "token" if count == 1 else "tokens"
