"""From a profile to a decoder: what `SpeculativeDecoder.from_profile` does. `engines` is for other engines."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from specdec.bundled import bundled_dir
from specdec.drafters import (
    CrossTokenizerDrafter,
    Drafter,
    EarlyExitDrafter,
    LookaheadDrafter,
    ModelDrafter,
    NgramDrafter,
    SuffixDrafter,
    TreeDrafter,
)
from specdec.errors import OptionError
from specdec.generate import SpeculativeDecoder
from specdec.loading import DTYPES, placed
from specdec.profile.choice import BUNDLED, Choice, choose
from specdec.profile.files import load
from specdec.profile.schema import Profile
from specdec.target import input_device


def from_directory(
    directory: str | os.PathLike[str],
    *,
    target: PreTrainedModel | None = None,
    batch: int = 1,
    temperature: float | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """The arguments of the `SpeculativeDecoder` that a saved profile recommends; see `settings`."""
    return settings(load(directory), batch, temperature, target=target, device=device)


def to_specdec(
    profile: Profile,
    batch: int = 1,
    temperature: float | None = None,
    *,
    draft: str | None = None,
    target: PreTrainedModel | None = None,
    device: str | torch.device | None = None,
) -> SpeculativeDecoder:
    """The decoder that a profile recommends, its draft loaded; one without a draft where nothing pays.

    Args:
        batch, temperature: what it is to be used for; the lowest profiled temperature if omitted.
        draft: choose among this draft's settings and plain decoding only.
        target: the draft goes where its input goes, and is compared with it.
        device: of the draft, if no target is given; the CPU if omitted.

    Raises:
        OptionError: the batch size, temperature or draft was not profiled; the draft cannot be found or loaded.
        DraftMismatchError: the draft does not fit the target.

    Example:
        >>> decoder = to_specdec(load("profiles/mine"), batch=4)  # doctest: +SKIP
        >>> decoder.generate(target, **inputs, max_new_tokens=64)  # doctest: +SKIP
    """
    return SpeculativeDecoder(**settings(profile, batch, temperature, draft=draft, target=target, device=device))


def settings(
    profile: Profile,
    batch: int = 1,
    temperature: float | None = None,
    *,
    draft: str | None = None,
    target: PreTrainedModel | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """The same as arguments of `SpeculativeDecoder`."""
    choice = choose(profile, batch, temperature, draft)
    is_compiled = profile.machine.compile == "yes"
    if choice.draft is None:
        return {"drafter": None, "compile": is_compiled}
    if device is None:
        device = "cpu" if target is None else input_device(target)
    drafter = _drafter(choice, profile, str(device))
    if target is not None:
        drafter.check(target)
    return {"drafter": drafter, "num_draft_tokens": choice.num_draft_tokens, "compile": is_compiled}


def _drafter(choice: Choice, profile: Profile, device: str) -> Drafter:
    """As it was profiled: with the defaults of its class, but for what `Draft` says."""
    assert choice.draft is not None
    kind, exit_layer = choice.draft.kind, choice.draft.exit_layer
    if kind == "ngram":
        return NgramDrafter()
    if kind == "lookahead":
        return LookaheadDrafter()
    if kind == "early-exit":
        return EarlyExitDrafter("auto" if exit_layer is None else exit_layer)
    if kind == "suffix":
        return SuffixDrafter(choice.path, tokenizer=_target_tokenizer(profile)) if choice.path else SuffixDrafter()
    if kind not in ("model", "tree", "cross-tokenizer"):
        raise OptionError(f"the profile recommends a draft of kind {kind!r}, which this specdec does not know.")
    model = _model(choice, profile, device)
    if kind == "cross-tokenizer":
        other = _tokenizer(choice.path, f"the tokenizer of the draft {choice.draft.name}")
        return CrossTokenizerDrafter(model, target_tokenizer=_target_tokenizer(profile), draft_tokenizer=other)
    own, theirs = _compared(choice, profile)
    make = ModelDrafter if kind == "model" else TreeDrafter
    return make(model, tokenizer=own, draft_tokenizer=theirs)


def _model(choice: Choice, profile: Profile, device: str) -> PreTrainedModel:
    assert choice.draft is not None
    dtype, name = DTYPES.get(profile.machine.dtype), choice.draft.name
    if dtype is None:
        raise OptionError(f"the profile was measured in {profile.machine.dtype!r}, no dtype of {', '.join(DTYPES)}.")
    if not choice.path:
        raise OptionError(f"the profile does not say where the draft {name} is. Run `specdec profile` again.")
    _check_place(choice.path, f"the draft {name}")
    try:
        model = AutoModelForCausalLM.from_pretrained(choice.path, dtype=dtype, trust_remote_code=False).eval()
    except (OSError, ValueError) as error:
        raise OptionError(
            f"the draft {name} that the profile recommends cannot be loaded from {choice.path}: {error}. Put it there, "
            "or profile the draft from where it is now."
        ) from None
    return placed(model, device)


def _compared(
    choice: Choice, profile: Profile
) -> tuple[PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None]:
    """Both tokenizers, where both are on this machine: then the drafter compares them, as it did when it was profiled.

    A profile that was carried to another machine may name a tokenizer that is not there; the models suffice.
    """
    assert choice.draft is not None
    try:
        own = _target_tokenizer(profile, is_local=True)
        if choice.draft.path == BUNDLED:
            return own, own
        return own, _tokenizer(choice.path, "the draft's tokenizer", is_local=True)
    except OptionError:
        return None, None


def _target_tokenizer(profile: Profile, is_local: bool = False) -> PreTrainedTokenizerBase:
    name = profile.subject.tokenizer
    place = str(bundled_dir() / "pair" / "target") if name == BUNDLED else name
    return _tokenizer(place, "the target's tokenizer", is_local)


def _tokenizer(place: str, what: str, is_local: bool = False) -> PreTrainedTokenizerBase:
    _check_place(place, what)
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=is_local, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise OptionError(f"{what} cannot be loaded from {place}: {error}. Put it there.") from None


def _check_place(place: str, what: str) -> None:
    """A path that is not there must not be asked for at the hub, whose answer would say nothing of it."""
    path = pathlib.Path(place)
    if (path.is_absolute() or place.startswith(".")) and not path.exists():
        raise OptionError(
            f"{what} was at {place} when it was profiled, and there is nothing now. Put it back, or profile it from "
            "where it is."
        )
