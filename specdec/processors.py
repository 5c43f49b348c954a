"""What is known about logits processors: which ignore the prefix, which hold something per row, which are refused."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation import logits_process as hf

from specdec.errors import UnsupportedOptionError, is_out_of_memory


def _types(names: str) -> frozenset[type]:
    """Classes of transformers' logits_process by name; those that this version lacks are left out."""
    return frozenset(getattr(hf, name) for name in names.split() if hasattr(hf, name))


# Row by row functions of the scores alone (checked against one call per row in tests/test_sampling.py).
IGNORE_PREFIX = _types(
    "TemperatureLogitsWarper TopKLogitsWarper TopPLogitsWarper TopHLogitsWarper MinPLogitsWarper TypicalLogitsWarper "
    "EpsilonLogitsWarper EtaLogitsWarper InfNanRemoveLogitsProcessor LogitNormalization SuppressTokensLogitsProcessor"
)
# Functions of prefix and scores that have an answer for any prefix.
_ANY_PREFIX = _types(
    "RepetitionPenaltyLogitsProcessor NoRepeatNGramLogitsProcessor NoBadWordsLogitsProcessor "
    "SequenceBiasLogitsProcessor MinLengthLogitsProcessor MinNewTokensLengthLogitsProcessor "
    "ForcedEOSTokenLogitsProcessor ForcedBOSTokenLogitsProcessor ExponentialDecayLengthPenalty "
    "SuppressTokensAtBeginLogitsProcessor WatermarkLogitsProcessor EncoderRepetitionPenaltyLogitsProcessor "
    "EncoderNoRepeatNGramLogitsProcessor"
)
_CLASSIFIER_FREE = "guides with a second forward a token, whose state cannot follow drafts that are rejected"
_AUDIO = "belongs to a model of its own kind, which specdec does not decode"
_STATEFUL = {
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": _CLASSIFIER_FREE,
    "ClassifierFreeGuidanceLogitsProcessor": _CLASSIFIER_FREE,
    "DiaClassifierFreeGuidanceLogitsProcessor": _CLASSIFIER_FREE,
    "SynthIDTextWatermarkLogitsProcessor": "keeps a state from one call to the next, which drafts would disturb",
    "AlternatingCodebooksLogitsProcessor": _AUDIO,
    "WhisperNoSpeechDetection": "runs the model itself to look for silence (no_speech_threshold)",
    "BarkEosPrioritizerLogitsProcessor": _AUDIO,
    "DiaEOSChannelFilterLogitsProcessor": _AUDIO,
    "DiaEOSDelayPatternLogitsProcessor": _AUDIO,
}


def refuse_stateful(processor: LogitsProcessor) -> None:
    """Raises UnsupportedOptionError for a processor of transformers that cannot be asked about drafts."""
    for kind in type(processor).__mro__:
        if kind.__name__ in _STATEFUL and kind.__module__.startswith("transformers."):
            raise UnsupportedOptionError(
                f"{type(processor).__name__} {_STATEFUL[kind.__name__]}. Remove the option that adds it, or use "
                "model.generate()."
            )


def is_own(processor: LogitsProcessor) -> bool:
    """Is this a user's (or another library's) processor, of which nothing is known?"""
    known = type(processor) in IGNORE_PREFIX | _ANY_PREFIX or type(processor) is hf.PrefixConstrainedLogitsProcessor
    return not known


def asks_any_prefix(processor: LogitsProcessor) -> bool:
    """May it be asked about a prefix that it forbids?"""
    return type(processor) in IGNORE_PREFIX | _ANY_PREFIX


def check_own(processors: Sequence[LogitsProcessor], input_ids: Tensor, vocab_size: int) -> None:
    """Asks processors of the user's twice, and in another order, before any forward: do they answer alike?

    Args:
        input_ids: [B, P] the prompt as transformers would show it.

    Raises:
        UnsupportedOptionError: one that changes from call to call, or that treats rows by their index (fine
            where there is one row).
    """
    batch_size = input_ids.shape[0]
    # Not constant: a bias per row that multiplies would not show on zeros.
    scores = torch.linspace(-1, 1, vocab_size, device=input_ids.device).expand(batch_size, -1)
    for processor in processors:
        if not is_own(processor):
            continue
        name = type(processor).__name__
        first = processor(input_ids, scores.clone())
        if not _same(first, processor(input_ids, scores.clone())):
            raise UnsupportedOptionError(
                f"the logits processor {name} gives two answers to one question, so it keeps a state or draws random "
                "numbers; specdec asks about draft tokens that may be rejected. Make it a function of "
                "(input_ids, scores), or use model.generate()."
            )
        if batch_size == 1:
            continue
        moved = torch.arange(batch_size, device=input_ids.device).roll(1)  # every row under another index
        last = moved[:1]
        refusal = UnsupportedOptionError(
            f"the logits processor {name} treats rows of the batch by their index, and specdec asks about rows in "
            "groups of its own. Decode one prompt a call, or make it look at input_ids only."
        )
        try:
            alike = all(_same(first[rows], processor(input_ids[rows], scores[rows].clone())) for rows in (moved, last))
        except (IndexError, RuntimeError) as error:  # a shape or an index of the whole batch
            if is_out_of_memory(error):
                raise
            raise refusal from error
        if not alike:
            raise refusal


def _same(one: Any, other: Any) -> bool:
    both = isinstance(one, Tensor) and isinstance(other, Tensor)
    return both and one.shape == other.shape and torch.allclose(one.float(), other.float(), equal_nan=True)


def for_rows(processor: LogitsProcessor, requests: list[int], batch_size: int) -> LogitsProcessor:
    """The processor for a group of nodes of the given requests, where it holds something per row of the batch."""
    if type(processor) is hf.PrefixConstrainedLogitsProcessor:
        allowed = processor._prefix_allowed_tokens_fn
        return _with(processor, _prefix_allowed_tokens_fn=lambda row, ids: allowed(requests[row], ids), _num_beams=1)
    if type(processor) is hf.RepetitionPenaltyLogitsProcessor:
        ignored = getattr(processor, "prompt_ignore_length", None)  # the rows' left padding
        return _with(processor, prompt_ignore_length=ignored[requests]) if isinstance(ignored, Tensor) else processor
    if type(processor) is hf.EncoderRepetitionPenaltyLogitsProcessor:
        ids = processor.encoder_input_ids  # one row per prompt, of which several sequences may be returned
        return _with(processor, encoder_input_ids=ids[[r // (batch_size // len(ids)) for r in requests]])
    if type(processor) is hf.EncoderNoRepeatNGramLogitsProcessor:
        every = processor.generated_ngrams
        chosen = [every[r // (batch_size // len(every))] for r in requests]
        return _with(processor, generated_ngrams=chosen, batch_size=len(requests))
    return processor


def _with(processor: LogitsProcessor, **changed: Any) -> LogitsProcessor:
    """A shallow copy with other values of the named attributes."""
    other = copy.copy(processor)
    vars(other).update(changed)
    return other
