"""Which of a profile's settings is meant when it is to be deployed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from specdec.bundled import bundled_dir
from specdec.errors import OptionError
from specdec.profile.advice import recommend
from specdec.profile.schema import PLAIN, Draft, Profile, Recommendation

BUNDLED = "bundled"


@dataclass(frozen=True, slots=True)
class Choice:
    """What is recommended at one temperature and batch size; no draft is plain decoding."""

    recommendation: Recommendation
    draft: Draft | None

    @property
    def num_draft_tokens(self) -> int:
        return self.recommendation.num_draft_tokens

    @property
    def path(self) -> str:
        """Of the draft model or index; the bundled draft's directory where that was profiled."""
        path = "" if self.draft is None or self.draft.path is None else self.draft.path
        return str(bundled_dir() / "pair" / "draft") if path == BUNDLED else path


def choose(profile: Profile, batch: int = 1, temperature: float | None = None, draft: str | None = None) -> Choice:
    """The recommendation at a batch size and temperature.

    Args:
        temperature: the lowest that was profiled if omitted.
        draft: choose among this draft's settings and plain decoding only.

    Raises:
        OptionError: it was not profiled; what was is named.
    """
    if draft is not None:
        profile = only(profile, draft)
    found = recommend(profile)
    if temperature is None:
        temperature = min((r.temperature for r in found), default=0.0)
    for recommendation in found:
        if (recommendation.batch, recommendation.temperature) == (batch, temperature):
            return Choice(recommendation, _draft(profile, recommendation.draft))
    there = sorted({(r.temperature, r.batch) for r in found})
    listed = "; ".join(f"temperature {t:g} with batch {b}" for t, b in there) or "nothing"
    raise OptionError(
        f"temperature {temperature:g} with batch {batch} was not profiled. There is {listed}: choose one of them, or "
        "run `specdec profile` with --temperature and --batch."
    )


def only(profile: Profile, draft: str) -> Profile:
    """The profile as if nothing but this draft had been profiled.

    Raises:
        OptionError: no such draft.
    """
    names = [d.name for d in profile.drafts]
    if draft not in names:
        raise OptionError(f"the profile has no draft {draft!r}; its drafts are {', '.join(names) or 'none'}.")
    return replace(profile, settings=[s for s in profile.settings if s.draft in (PLAIN, draft)])


def _draft(profile: Profile, name: str) -> Draft | None:
    if name == PLAIN:
        return None
    found = next((d for d in profile.drafts if d.name == name), None)
    if found is None:
        raise OptionError(
            f"the profile recommends {name!r} and does not say what that is. Run `specdec profile` again."
        )
    return found
