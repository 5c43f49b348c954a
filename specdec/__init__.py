"""specdec: speculative decoding for Hugging Face transformers. The same output, sooner."""

from specdec.attach import Attachment, attached
from specdec.bundled import bundled_pair, bundled_prompts
from specdec.capabilities import Capabilities, capabilities
from specdec.decode import SpeculativeEncoderDecoderOutput, SpeculativeOutput
from specdec.drafters import (
    CrossTokenizerDrafter,
    Drafter,
    DraftSession,
    EarlyExitDrafter,
    LayerSkipDrafter,
    LookaheadDrafter,
    MixedDrafter,
    ModelDrafter,
    NgramDrafter,
    SkipSet,
    SuffixDrafter,
    SuffixIndex,
    TreeDrafter,
    search_skip,
)
from specdec.errors import (
    DrafterError,
    DraftMismatchError,
    InputError,
    NumericalError,
    OptionError,
    RankError,
    SpecdecError,
    UnsupportedModelError,
    UnsupportedOptionError,
)
from specdec.generate import SpeculativeDecoder, generate
from specdec.generate import read_profiles_with as _read_profiles_with
from specdec.loop import Committed
from specdec.profile.deploy import from_directory as _from_directory
from specdec.state import DecodeState
from specdec.stats import SpeculationStats
from specdec.streaming import AggregatedStreamer
from specdec.trace import Source, Trace
from specdec.types import Acceptance, Law, Proposal
from specdec.version import __version__ as __version__

_read_profiles_with(_from_directory)

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
    "EarlyExitDrafter",
    "InputError",
    "Law",
    "LayerSkipDrafter",
    "LookaheadDrafter",
    "MixedDrafter",
    "ModelDrafter",
    "NgramDrafter",
    "NumericalError",
    "OptionError",
    "Proposal",
    "RankError",
    "SkipSet",
    "Source",
    "SpecdecError",
    "SpeculationStats",
    "SpeculativeDecoder",
    "SpeculativeEncoderDecoderOutput",
    "SpeculativeOutput",
    "SuffixDrafter",
    "SuffixIndex",
    "Trace",
    "TreeDrafter",
    "UnsupportedModelError",
    "UnsupportedOptionError",
    "attached",
    "bundled_pair",
    "bundled_prompts",
    "capabilities",
    "generate",
    "search_skip",
]
