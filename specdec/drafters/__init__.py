"""Drafters: small classes that only propose."""

from specdec.drafters.base import Drafter, DraftSession
from specdec.drafters.cross_tokenizer import CrossTokenizerDrafter
from specdec.drafters.model import ModelDrafter
from specdec.drafters.ngram import NgramDrafter

__all__ = ["CrossTokenizerDrafter", "DraftSession", "Drafter", "ModelDrafter", "NgramDrafter"]
