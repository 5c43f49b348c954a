"""Drafters: small classes that only propose."""

from specdec.drafters.base import Drafter, DraftSession
from specdec.drafters.lookahead import LookaheadDrafter
from specdec.drafters.mixed import MixedDrafter
from specdec.drafters.model import ModelDrafter
from specdec.drafters.ngram import NgramDrafter

__all__ = ["DraftSession", "Drafter", "LookaheadDrafter", "MixedDrafter", "ModelDrafter", "NgramDrafter"]
