"""specdec: speculative decoding for Hugging Face transformers. The same output, sooner."""

from specdec.attach import Attachment, attached
from specdec.bundled import bundled_pair, bundled_prompts
from specdec.capabilities import Capabilities, capabilities
from specdec.decode import SpeculativeEncoderDecoderOutput, SpeculativeOutput
from specdec.drafters import CrossTokenizerDrafter, Drafter, DraftSession, ModelDrafter, NgramDrafter
from specdec.errors import (
    DrafterError,
    DraftMismatchError,
    InputError,
    NumericalError,
    OptionError,
    SpecdecError,
    UnsupportedModelError,
    UnsupportedOptionError,
)
from specdec.generate import SpeculativeDecoder, generate
from specdec.loop import Committed
from specdec.state import DecodeState
from specdec.stats import SpeculationStats
from specdec.streaming import AggregatedStreamer
from specdec.trace import Source, Trace
from specdec.types import Acceptance, Law, Proposal

__version__ = "0.1.0"

__all__ = [
    "Acceptance",
    "AggregatedStreamer",
    "Attachment",
    "Capabilities",
    "Committed",
    "CrossTokenizerDrafter",
    "DecodeState",
    "DraftMismatchError",
    "DraftSession",
    "Drafter",
    "DrafterError",
    "InputError",
    "Law",
    "ModelDrafter",
    "NgramDrafter",
    "NumericalError",
    "OptionError",
    "Proposal",
    "Source",
    "SpecdecError",
    "SpeculationStats",
    "SpeculativeDecoder",
    "SpeculativeEncoderDecoderOutput",
    "SpeculativeOutput",
    "Trace",
    "UnsupportedModelError",
    "UnsupportedOptionError",
    "attached",
    "bundled_pair",
    "bundled_prompts",
    "capabilities",
    "generate",
]
