"""What a profile comes to, in sentences: both reports begin with it."""

from __future__ import annotations

from specdec.profile.schema import PLAIN, Draft, Profile, Recommendation, Setting
from specdec.profile.words import count, degrees, short, size, times, within

_KINDS = {
    "model": "draft model",
    "tree": "tree of a draft model",
    "ngram": "n-grams of the text so far",
    "suffix": "suffixes of earlier texts",
    "early-exit": "the target's own first layers",
    "lookahead": "lookahead: the target guesses for itself",
    "cross-tokenizer": "draft model with a tokenizer of its own",
}
_PREDICTS = {
    "chain": "predicted from alpha",
    "replay": "predicted by replaying its proposals on the target's text",
    "nothing": "measured only",
}


def draft_names(profile: Profile) -> list[str]:
    """Every draft that the profile says something of, in its order; plain decoding is none."""
    named = [draft.name for draft in profile.drafts]
    for rows in (profile.agreements, profile.settings, profile.costs, profile.uppers, profile.trees):
        named += [row.draft for row in rows]
    return [name for name in dict.fromkeys(named) if name != PLAIN]


def describe(draft: Draft) -> str:
    """What a draft is: its kind, size and place."""
    words = [_KINDS.get(draft.kind, short(draft.kind))]
    if draft.exit_layer is not None:
        words.append(f"left after layer {draft.exit_layer}")
    if draft.parameters:
        words.append(f"{size(draft.parameters)} parameters")
    if draft.path is not None:
        words.append(short(draft.path, 60))
    return ", ".join([*words, _PREDICTS.get(draft.predicts, short(draft.predicts))])


def find(profile: Profile, draft: str, temperature: float, batch: int, num_draft_tokens: int) -> Setting | None:
    """The setting of these four, or None."""
    wanted = (draft, temperature, batch, num_draft_tokens)
    for s in profile.settings:
        if (s.draft, s.temperature, s.batch, s.num_draft_tokens) == wanted:
            return s
    return None


def headline(profile: Profile) -> str:
    """The verdict in one sentence."""
    found = profile.recommendations
    if not found:
        return "No verdict: this profile recommends nothing, since too little was measured."
    paying = [r for r in found if r.draft != PLAIN]
    if not paying:
        return "Do not speculate: no draft pays in any of the cases looked at."
    best = max(paying, key=lambda r: _speedup(profile, r))
    doubtful = " (IMPOSSIBLE, see below)" if "IMPOSSIBLE" in gain(profile, best) else ""
    figure = f"{times(_speedup(profile, best))}{doubtful}"
    where = f"{figure} with {what_to_run(best)} ({case(best.temperature, best.batch)})"
    if len(paying) == len(found):
        return f"Speculate: {where}." if len(found) == 1 else f"Speculate: up to {where}."
    return f"Speculate in {len(paying)} of {len(found)} cases: up to {where}. Not in the others."


def _speedup(profile: Profile, found: Recommendation) -> float:
    """As it was measured, where it was: the sentence and the table say the same."""
    setting = find(profile, found.draft, found.temperature, found.batch, found.num_draft_tokens)
    return setting.speedup if found.is_measured and setting is not None else found.speedup


def case(temperature: float, batch: int) -> str:
    """A temperature and a batch size in words."""
    return f"temperature {degrees(temperature)}, batch {batch}"


def what_to_run(found: Recommendation) -> str:
    """A draft and its number of tokens, or what to do without."""
    if found.draft == PLAIN:
        return "do not speculate"
    return f"{short(found.draft)}, {count(found.num_draft_tokens, 'draft token')}"


def gain(profile: Profile, found: Recommendation) -> str:
    """A recommendation's speed-up, with its interval where it was measured."""
    if found.draft == PLAIN:
        return "-"
    setting = find(profile, found.draft, found.temperature, found.batch, found.num_draft_tokens)
    if found.is_measured and setting is not None and setting.measured is not None:
        warning = " IMPOSSIBLE" if setting.measured.impossible else ""
        return within(setting.measured.speedup, times) + warning
    return f"{times(found.speedup)} {'measured' if found.is_measured else 'predicted'}"


def break_evens(profile: Profile) -> list[str]:
    """From which batch size on drafts do not pay, a sentence a temperature."""
    lines = []
    for temperature, batch in profile.break_even.items():
        says = "a draft pays at every batch size looked at" if batch is None else f"no draft pays from batch {batch} on"
        lines.append(f"temperature {short(temperature)}: {says}")
    return lines


ALARM = (
    "IMPOSSIBLE SPEED-UP. No loop is faster than its ceiling: something slowed plain decoding while it was timed. "
    "Do not use these figures; measure again on a quiet machine."
)


def alarms(profile: Profile) -> list[str]:
    """Settings whose speed-up is impossible, below `ALARM`: loud in both reports."""
    return [
        f"{name(s)}: measured {within(s.measured.speedup, times)}, ceiling {times(s.measured.ceiling)}"
        for s in profile.settings
        if s.measured is not None and s.measured.impossible
    ]


def name(setting: Setting) -> str:
    """All four of a setting, in words."""
    tokens = count(setting.num_draft_tokens, "draft token")
    return f"{short(setting.draft)}, {tokens}, {case(setting.temperature, setting.batch)}"


def doubts(profile: Profile) -> list[str]:
    """Settings whose acceptance is not what the probabilities say.

    Of many intervals one in twenty misses 0 by chance, of few prompts more: so 0 must lie as far outside as the
    interval is wide.
    """
    found = [(s, s.measured.martingale) for s in profile.settings if s.measured is not None]
    return [
        f"{name(s)}: accepted first draft tokens minus alpha is {within(check)}, and should be 0."
        for s, check in found
        if check is not None and not 2 * check.low - check.high <= 0 <= 2 * check.high - check.low
    ]


INTERRUPTED = "Interrupted: what is here is right, what is not here was not measured."


def remarks(profile: Profile) -> list[str]:
    """Skipped prompts and the profile's own notes."""
    lines = [f"Not measured: {count(n, 'prompt')}, {short(why, 200)}." for why, n in profile.subject.skipped.items()]
    return lines + [short(note, 400) for note in profile.notes]


def miss(setting: Setting) -> tuple[float | None, float | None, float | None, float | None]:
    """How far the measured speed-up is off the predicted one, and which part of the prediction missed.

    Returns:
        measured / predicted - 1 of the whole, then of its factors: of the acceptance length, of one over the seconds of
        a round, and of the rest (plain decoding, prefill, rows of a batch that wait for others). One more than each
        multiplied gives one more than the whole. None where there is nothing to compare.
    """
    p, m = setting.predicted, setting.measured
    if p is None or m is None or min(p.speedup, p.acceptance_length, p.round_seconds, m.times.total) <= 0:
        return None, None, None, None
    whole = m.speedup.value / p.speedup
    tokens = m.acceptance_length.value / p.acceptance_length
    seconds = p.round_seconds / m.times.total
    rest = whole / (tokens * seconds) - 1 if tokens * seconds > 0 else None
    return whole - 1, tokens - 1, seconds - 1, rest


def facts(profile: Profile) -> list[tuple[str, str]]:
    """What was profiled, where and with what, as names and values."""
    subject, machine = profile.subject, profile.machine
    domains = ", ".join(f"{short(name)} ({n:,})" for name, n in list(subject.domains.items())[:20]) or "none"
    more = len(subject.domains) - 20
    return [
        ("target", f"{short(subject.target, 120)}, {size(subject.parameters)} parameters"),
        ("tokenizer", short(subject.tokenizer, 120)),
        ("prompts", f"{short(subject.prompts, 120)}: {subject.used:,} used, {sum(subject.skipped.values()):,} skipped"),
        ("domains", f"{domains} and {more} more" if more > 0 else domains),
        ("new tokens", f"{subject.new_tokens:,} a prompt at most, seed {subject.seed}"),
        ("machine", f"{short(machine.device, 120)}, {count(machine.threads, 'thread')}, {machine.processes} "
            f"process{'' if machine.processes == 1 else 'es'}"),
        ("arithmetic", f"{short(machine.dtype)}, compiled: {short(machine.compile)}"),
        ("versions", f"specdec {short(machine.specdec)}, torch {short(machine.torch)}, transformers "
            f"{short(machine.transformers)}"),
        ("made", f"{short(profile.created)}, format {profile.version}"),
    ]  # fmt: skip
