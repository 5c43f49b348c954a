"""Logits processors -> the distribution that tokens are drawn from.

transformers' processors see one prefix per row. In a window every node has a prefix of its own: the
row's tokens (left padding included, as `model.generate()` would show them) and the path to the node.
Processors that ignore the prefix run once over all nodes; the others run once per prefix length.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation import logits_process as hf

from specdec.errors import UnsupportedOptionError

# Row by row functions of the scores alone (checked against one call per row in tests/test_sampling.py).
_IGNORE_PREFIX: frozenset[type] = frozenset(
    {
        hf.TemperatureLogitsWarper,
        hf.TopKLogitsWarper,
        hf.TopPLogitsWarper,
        hf.MinPLogitsWarper,
        hf.TypicalLogitsWarper,
        hf.EpsilonLogitsWarper,
        hf.EtaLogitsWarper,
        hf.InfNanRemoveLogitsProcessor,
        hf.LogitNormalization,
        hf.SuppressTokensLogitsProcessor,
    }
)

# Indexed by batch row, or with a memory of earlier calls: neither survives being asked about drafts.
_REFUSED: tuple[type, ...] = (
    hf.PrefixConstrainedLogitsProcessor,
    hf.EncoderRepetitionPenaltyLogitsProcessor,
    hf.EncoderNoRepeatNGramLogitsProcessor,
    hf.ClassifierFreeGuidanceLogitsProcessor,
    hf.UnbatchedClassifierFreeGuidanceLogitsProcessor,
    hf.SynthIDTextWatermarkLogitsProcessor,
    hf.WatermarkLogitsProcessor,
    hf.AlternatingCodebooksLogitsProcessor,
    hf.WhisperTimeStampLogitsProcessor,
    hf.WhisperNoSpeechDetection,
    hf.BarkEosPrioritizerLogitsProcessor,
    hf.DiaClassifierFreeGuidanceLogitsProcessor,
    hf.DiaEOSChannelFilterLogitsProcessor,
    hf.DiaEOSDelayPatternLogitsProcessor,
)


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The tokens before each node's successor."""

    paths: Sequence[Sequence[Tensor]]  # B rows of up to M int64 vectors, left padding included
    requests: Sequence[int]  # B, each row's index in the user's batch


class Sampler:
    """The processors of one call, applied to nodes.

    Args:
        processors: in order. Those that specdec does not know are taken for pure functions of
            (input_ids, scores) and called once per distinct prefix length.
        do_sample: False means greedy, temperature 0.

    Raises:
        UnsupportedOptionError: a processor indexes the batch or keeps a state between calls.
    """

    def __init__(self, processors: Sequence[LogitsProcessor], do_sample: bool) -> None:
        for processor in processors:
            if isinstance(processor, _REFUSED):
                raise UnsupportedOptionError(
                    f"{type(processor).__name__} indexes batch rows or keeps a state between calls; specdec asks "
                    "about draft tokens that may be rejected, so it cannot be honoured. Remove the option that "
                    "adds it, or use model.generate()."
                )
        self.processors = list(processors)
        self.do_sample = do_sample
        self.needs_prefix = any(type(p) not in _IGNORE_PREFIX for p in self.processors)

    def scores(self, logits: Tensor, prefixes: Prefixes | None) -> Tensor:
        """Processed scores of every node, float32 as in transformers.

        Args:
            logits: [B, M, V].
            prefixes: may be None if not `needs_prefix`.
        """
        scores = logits.to(torch.float32)
        flat = scores.reshape(-1, scores.shape[-1])
        groups = None
        for processor in self.processors:
            if type(processor) in _IGNORE_PREFIX:
                flat = processor(flat.new_empty(len(flat), 0, dtype=torch.int64), flat)
                continue
            assert prefixes is not None
            groups = groups or _by_length(prefixes, scores.shape[1])
            flat = flat.clone()
            for group in groups:
                one = _for_rows(processor, group.requests)
                flat[group.nodes] = one(group.input_ids, flat[group.nodes])
        return flat.view(scores.shape)

    def probs(self, logits: Tensor, prefixes: Prefixes | None) -> Tensor:
        """The distribution of every node, [B, M, V] float32."""
        return self.scores(logits, prefixes).softmax(-1)


@dataclass(frozen=True, slots=True)
class _Group:
    """Nodes whose prefixes have one length."""

    nodes: Tensor  # [G] int64, flat node indices
    input_ids: Tensor  # [G, length]
    requests: list[int]  # [G]


def _by_length(prefixes: Prefixes, nodes_per_row: int) -> list[_Group]:
    groups: dict[int, list[tuple[int, Tensor, int]]] = defaultdict(list)
    for row, (paths, request) in enumerate(zip(prefixes.paths, prefixes.requests, strict=True)):
        for node, path in enumerate(paths):
            groups[len(path)].append((row * nodes_per_row + node, path, request))
    out = []
    for members in groups.values():
        nodes, paths, requests = zip(*members, strict=True)
        out.append(_Group(torch.tensor(nodes, device=paths[0].device), torch.stack(paths), list(requests)))
    return out


def _for_rows(processor: LogitsProcessor, requests: list[int]) -> LogitsProcessor:
    """The processor for a group of nodes, where it holds something per row of the user's batch."""
    if type(processor) is hf.RepetitionPenaltyLogitsProcessor:
        ignored = getattr(processor, "prompt_ignore_length", None)  # the rows' left padding
        if isinstance(ignored, Tensor):
            return hf.RepetitionPenaltyLogitsProcessor(processor.penalty, ignored[requests])
    return processor
