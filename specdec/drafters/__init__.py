"""Drafters: small classes that only propose."""

from specdec.drafters.base import Drafter, DraftSession
from specdec.drafters.early_exit import EarlyExitDrafter
from specdec.drafters.layer_skip import LayerSkipDrafter
from specdec.drafters.model import ModelDrafter
from specdec.drafters.ngram import NgramDrafter
from specdec.drafters.skip_search import SkipSet, search_skip
from specdec.drafters.tree import TreeDrafter

__all__ = [
    "DraftSession",
    "Drafter",
    "EarlyExitDrafter",
    "LayerSkipDrafter",
    "ModelDrafter",
    "NgramDrafter",
    "SkipSet",
    "TreeDrafter",
    "search_skip",
]
