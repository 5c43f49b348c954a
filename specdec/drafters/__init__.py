"""Drafters: small classes that only propose."""

from specdec.drafters.base import Drafter, DraftSession
from specdec.drafters.early_exit import EarlyExitDrafter
from specdec.drafters.model import ModelDrafter
from specdec.drafters.ngram import NgramDrafter

__all__ = ["DraftSession", "Drafter", "EarlyExitDrafter", "ModelDrafter", "NgramDrafter"]
