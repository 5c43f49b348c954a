"""Drafters: small classes that only propose."""

from specdec.drafters.base import Drafter, DraftSession
from specdec.drafters.model import ModelDrafter
from specdec.drafters.ngram import NgramDrafter
from specdec.drafters.suffix import SuffixDrafter
from specdec.drafters.suffix_index import SuffixIndex

__all__ = ["DraftSession", "Drafter", "ModelDrafter", "NgramDrafter", "SuffixDrafter", "SuffixIndex"]
