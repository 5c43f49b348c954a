"""Drafters: small classes that only propose."""

from specdec.drafters.base import Drafter, DraftSession
from specdec.drafters.cross_tokenizer import CrossTokenizerDrafter
from specdec.drafters.early_exit import EarlyExitDrafter
from specdec.drafters.layer_skip import LayerSkipDrafter
from specdec.drafters.lookahead import LookaheadDrafter
from specdec.drafters.mixed import MixedDrafter
from specdec.drafters.model import ModelDrafter
from specdec.drafters.ngram import NgramDrafter
from specdec.drafters.skip_search import SkipSet, search_skip
from specdec.drafters.suffix import SuffixDrafter
from specdec.drafters.suffix_index import SuffixIndex
from specdec.drafters.tree import TreeDrafter

__all__ = [
    "CrossTokenizerDrafter",
    "DraftSession",
    "Drafter",
    "EarlyExitDrafter",
    "LayerSkipDrafter",
    "LookaheadDrafter",
    "MixedDrafter",
    "ModelDrafter",
    "NgramDrafter",
    "SkipSet",
    "SuffixDrafter",
    "SuffixIndex",
    "TreeDrafter",
    "search_skip",
]
