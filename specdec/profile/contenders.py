"""The ways to draft that a profile compares: models and strategies, loaded and named."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec.drafters import (
    CrossTokenizerDrafter,
    Drafter,
    EarlyExitDrafter,
    LookaheadDrafter,
    ModelDrafter,
    TreeDrafter,
)
from specdec.drafters.early_exit import chosen_exit
from specdec.drafters.layers import with_layers
from specdec.drafters.named import NAMES, named
from specdec.errors import DraftMismatchError, OptionError
from specdec.loading import load_draft, placed
from specdec.profile.schema import Draft
from specdec.target import input_device

CROSS = "cross-tokenizer"
BUNDLED = "bundled"


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to draft.

    Attributes:
        drafter: what the loop runs.
        scorer: gives the draft's distribution on a text; None where there is none.
        asks_exit: it is an early exit whose depth is still to be chosen.
    """

    info: Draft
    drafter: Drafter
    scorer: PreTrainedModel | None = None
    asks_exit: bool = False

    def settled(self, target: PreTrainedModel, tokens: Sequence[int]) -> Contender:
        """With the exit layer that `EarlyExitDrafter("auto")` takes for these tokens, where that is to be chosen."""
        if not self.asks_exit:
            return self
        exit_layer = chosen_exit(target, torch.tensor([list(tokens)], device=input_device(target)))
        return _early_exit(target, exit_layer, self.info.name)


@dataclass(frozen=True, slots=True)
class Loadable:
    """A draft model and where it comes from."""

    path: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def name(self) -> str:
        return f"model:{self.path}"

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def contenders(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    bundled_draft: PreTrainedModel | None,
    drafts: Sequence[str],
    strategies: Sequence[str],
    device: str,
) -> list[Contender]:
    """Loads what was asked for; by default the bundled draft where there is one, and n-grams.

    Raises:
        OptionError: an unknown name; a strategy that needs a draft model without one; the same name twice.
        DraftMismatchError: a draft of another tokenizer, without the strategy for it.
    """
    models = [_loadable(path, target.dtype, device) for path in drafts]
    if bundled_draft is not None and not models:
        models = [Loadable(BUNDLED, bundled_draft, tokenizer)]
    if not drafts and not strategies:
        strategies = ["ngram"]
    vocabulary = tokenizer.get_vocab()
    same = [m for m in models if m.tokenizer is tokenizer or m.tokenizer.get_vocab() == vocabulary]
    others = [m for m in models if m not in same]
    if others and CROSS not in strategies:
        raise DraftMismatchError(
            f"the draft {others[0].path} has another tokenizer than the target: add --strategy {CROSS}, which drafts "
            "through the text, or choose a draft that was trained with the target's tokenizer."
        )
    found = [_chain(model, tokenizer) for model in same]
    for name in strategies:
        found += _strategy(name, target, tokenizer, same, others)
    names = [c.info.name for c in found]
    twice = [n for n in names if names.count(n) > 1]
    if twice:
        raise OptionError(f"{twice[0]} was asked for twice: name each draft and strategy once.")
    for contender in found:
        contender.drafter.check(target)
    return found


def _strategy(
    name: str,
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    same: Sequence[Loadable],
    others: Sequence[Loadable],
) -> list[Contender]:
    kind, _, value = name.partition(":")
    if kind == CROSS:
        if not others:
            raise OptionError(f"--strategy {CROSS} needs a --draft whose tokenizer is not the target's.")
        return [_cross(model, tokenizer) for model in others]
    if kind == "tree":
        if not same:
            raise OptionError("--strategy tree needs a draft model: give --draft as well.")
        return [_tree(model, tokenizer) for model in same]
    if kind == "early-exit":
        if value in ("", "auto"):
            return [Contender(Draft(name, kind, predicts="chain"), EarlyExitDrafter(), asks_exit=True)]
        named(name)  # refuses what is no number
        EarlyExitDrafter(int(value)).check(target)
        return [_early_exit(target, int(value), name)]
    if kind == "lookahead":
        return [Contender(Draft(name, kind), LookaheadDrafter())]
    if kind in ("ngram", "suffix"):
        return [Contender(Draft(name, kind, value or None, predicts="replay"), named(name, tokenizer=tokenizer))]
    raise OptionError(f"there is no strategy {name!r}; the names are {', '.join(NAMES)} and {CROSS}.")


def _loadable(path: str, dtype: torch.dtype, device: str) -> Loadable:
    model, tokenizer = load_draft(path, path, dtype)
    shown = str(pathlib.Path(path).resolve()) if pathlib.Path(path).is_dir() else path
    return Loadable(shown, placed(model, device), tokenizer)


def _chain(model: Loadable, tokenizer: PreTrainedTokenizerBase) -> Contender:
    drafter = ModelDrafter(model.model, tokenizer=tokenizer, draft_tokenizer=model.tokenizer)
    return Contender(Draft(model.name, "model", model.path, model.parameters, None, "chain"), drafter, model.model)


def _tree(model: Loadable, tokenizer: PreTrainedTokenizerBase) -> Contender:
    drafter = TreeDrafter(model.model, tokenizer=tokenizer, draft_tokenizer=model.tokenizer)
    return Contender(Draft(f"tree:{model.path}", "tree", model.path, model.parameters), drafter)


def _cross(model: Loadable, tokenizer: PreTrainedTokenizerBase) -> Contender:
    drafter = CrossTokenizerDrafter(model.model, target_tokenizer=tokenizer, draft_tokenizer=model.tokenizer)
    return Contender(Draft(f"{CROSS}:{model.path}", CROSS, model.path, model.parameters), drafter)


def _early_exit(target: PreTrainedModel, exit_layer: int, name: str) -> Contender:
    info = Draft(name, "early-exit", exit_layer=exit_layer, predicts="chain")
    return Contender(info, EarlyExitDrafter(exit_layer), with_layers(target, range(exit_layer)))


def renamed(found: Sequence[Contender]) -> list[Contender]:
    """Paths cut to their last part in names, where that tells the contenders apart."""
    short = [_short(c.info.name) for c in found]
    if len(set(short)) < len(short):
        return list(found)
    return [replace(c, info=replace(c.info, name=name)) for c, name in zip(found, short, strict=True)]


def _short(name: str) -> str:
    kind, colon, path = name.partition(":")
    return f"{kind}{colon}{pathlib.PurePath(path).name}" if kind in ("model", "tree", CROSS) else name
