"""Drafters: small classes that only propose."""

from specdec.drafters.base import Drafter, DraftSession
from specdec.drafters.model import ModelDrafter
from specdec.drafters.ngram import NgramDrafter
from specdec.drafters.tree import TreeDrafter

__all__ = ["DraftSession", "Drafter", "ModelDrafter", "NgramDrafter", "TreeDrafter"]
