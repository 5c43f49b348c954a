"""Drafters by name, for the edge and the command line."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec.drafters.base import Drafter
from specdec.drafters.early_exit import EarlyExitDrafter
from specdec.drafters.lookahead import LookaheadDrafter
from specdec.drafters.ngram import NgramDrafter
from specdec.drafters.suffix import SuffixDrafter
from specdec.drafters.tree import TreeDrafter
from specdec.errors import OptionError

NAMES = ("ngram", "suffix", "early-exit", "lookahead", "tree")
_KNOWN = "'ngram', 'suffix', 'suffix:INDEX', 'early-exit', 'early-exit:LAYERS', 'lookahead' and 'tree'"


def named(name: str, model: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerBase | None = None) -> Drafter:
    """The drafter that a short name stands for, with its default settings.

    Args:
        name: "ngram", "suffix" ("suffix:index.npz" with an index on disk), "early-exit" ("early-exit:4" for so many
            layers), "lookahead", or "tree", which drafts with `model`.
        tokenizer: the target's, to be compared with an index's.

    Raises:
        OptionError: an unknown name, or a tree without a model.

    Example:
        >>> type(named("ngram")).__name__
        'NgramDrafter'
    """
    kind, colon, value = name.partition(":")
    if kind == "suffix":
        return SuffixDrafter(value if colon else None, tokenizer=tokenizer)
    if kind == "early-exit":
        if colon and not value.isdecimal():
            raise OptionError(f"drafter={name!r}: behind the colon comes a number of layers, as in 'early-exit:4'.")
        return EarlyExitDrafter(int(value) if colon else "auto")
    if name == "ngram":
        return NgramDrafter()
    if name == "lookahead":
        return LookaheadDrafter()
    if name == "tree":
        if model is None:
            raise OptionError(
                "drafter='tree' needs a draft model: give drafter=specdec.TreeDrafter(draft), or (in specdec.generate) "
                "pass assistant_model=draft beside the name."
            )
        return TreeDrafter(model)
    raise OptionError(f"there is no drafter {name!r}; the names are {_KNOWN}. A draft model is given as an object.")
