"""One prepared call, decoded: its parts are put together, the loop runs, the output takes transformers' form."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

from specdec.cache.exchange import columns
from specdec.compiled import CompiledRunner, chance, compiled, note_uncompiled
from specdec.controller import MAX_DRAFT_TOKENS, AutoLength, AutoSwitch, Controller, FixedLength
from specdec.drafters import Drafter, DraftSession
from specdec.errors import DraftMismatchError, InputError, UnsupportedOptionError
from specdec.inputs import Prompt, read_prompt
from specdec.loop import ADVANCE_WINDOW, Committed, Decoding
from specdec.memory import check_past, close_memory, keeps_memory, opened_memory
from specdec.options import Call, check_config
from specdec.probe import probe
from specdec.processors import check_own
from specdec.recording import Recorder
from specdec.sampling import Sampler
from specdec.state import DecodeState
from specdec.stats import GraphUse, SpeculationStats
from specdec.stopping import Limits
from specdec.streaming import Stream
from specdec.target import ModelRunner
from specdec.types import Proposal

logger = logging.getLogger("specdec")
_WARNED: weakref.WeakSet[type] = weakref.WeakSet()  # model classes that decode without drafts: say it once
OnCommit = Callable[[Committed], None]
OnFinish = Callable[[SpeculationStats], None]


@dataclass
class SpeculativeOutput(GenerateDecoderOnlyOutput):
    """transformers' output class and the call's statistics.

    `past_key_values` is a RollbackCache: pass it to the next specdec call, which reads only what is new, or
    `past_key_values.to_dynamic_cache()` to transformers.
    """

    speculation: SpeculationStats | None = None


@dataclass
class SpeculativeEncoderDecoderOutput(GenerateEncoderDecoderOutput):
    """transformers' output class for encoder-decoders and the call's statistics; `past_key_values` is None."""

    speculation: SpeculationStats | None = None


Output = SpeculativeOutput | SpeculativeEncoderDecoderOutput | GenerateEncoderDecoderOutput


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call as transformers hands it to the hook."""

    input_ids: Tensor
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    config: GenerationConfig
    model_kwargs: dict[str, Any]


def decode(
    runner: ModelRunner,
    call: Call,
    prepared: Prepared,
    past: Cache | None,
    generator: torch.Generator | None = None,
    on_commit: OnCommit | None = None,
    on_finish: OnFinish | None = None,
) -> Tensor | Output:
    """Runs the loop on a call that transformers has prepared."""
    config, input_ids = prepared.config, prepared.input_ids
    check_config(config)
    limits = Limits.read(prepared.stopping_criteria, input_ids.shape[1], config.pad_token_id)
    sampler = Sampler(prepared.logits_processor, bool(config.do_sample), len(input_ids))
    known = 0 if past is None else columns(past)
    prompt = read_prompt(
        runner, input_ids, prepared.model_kwargs, config, known, limits.max_new_tokens, call.drafter is not None
    )
    check_own(prepared.logits_processor, prompt.shown, runner.vocab_size)
    returns_all = bool(config.return_dict_in_generate)
    recorder = Recorder(
        len(input_ids),
        limits.pad_token_id,
        keeps_scores=returns_all and bool(config.output_scores),
        keeps_logits=returns_all and bool(config.output_logits),
        keeps_hidden=returns_all and bool(config.output_hidden_states),
        whole_hidden=config.use_cache is False,
    )
    if recorder.keeps_hidden and config.prefill_chunk_size is not None:
        raise UnsupportedOptionError(
            "output_hidden_states and prefill_chunk_size exclude each other: the prompt's hidden states are those of "
            "one forward. Leave one out."
        )
    _check_ranks(runner, call.drafter)
    if runner.ranks is not None:
        said = (limits.max_new_tokens, bool(config.do_sample), type(call.drafter).__name__, call.num_draft_tokens)
        runner.ranks.check_same([prompt.ids, prompt.mask], said)
    probe(runner)
    check_layout(runner, prompt)
    drafter = _fitting(runner, call.drafter)
    graphs, uncompiled = GraphUse(), runner
    runner = _compiled(runner, call, prompt, recorder, limits.max_new_tokens, graphs)
    if isinstance(runner, CompiledRunner) and sampler.do_sample and not recorder.wanted:
        runner.chance = chance(sampler, runner, call.compile, graphs, len(prompt.ids))
    keeps = keeps_memory(runner)
    if past is not None:
        check_past(runner)
    keep_rows = keeps and (past is not None or (returns_all and config.use_cache is not False))
    most = prompt.mask.shape[1] + limits.max_new_tokens
    with opened_memory(runner, prompt, past, keep_rows, most) as (memory, prompt):
        seen = list(memory.seen)
        seed = _seed(generator) if sampler.do_sample else None
        if seed is not None and runner.ranks is not None:
            (seed,) = runner.ranks.agree([seed])
        state = DecodeState(prompt.shown, prompt.ids, prompt.mask, most, runner.vocab_size, sampler, seed)
        state.encoded = None if prompt.extra is None else prompt.extra.encoded
        state.compile, state.graphs, state.max_new_tokens = call.compile, graphs, limits.max_new_tokens
        state.target = runner
        alike = (type(drafter), len(prompt.ids), sampler.do_sample, isinstance(runner, CompiledRunner))
        controller = _controller(call, drafter, call.debts.get(alike, 0.0))
        publish = _publisher(call, prompt, limits, on_commit)
        decoding = Decoding(
            runner,
            state,
            # Last of what may raise (a streamer takes the prompt before): from here on `run` closes the session.
            _session(runner, drafter, state),
            controller,
            limits,
            call.rule,
            publish,
            memory,
            prompt.extra,
            recorder if recorder.wanted else None,
            config.prefill_chunk_size,
            ADVANCE_WINDOW,
            runner.ranks,
        )
        new = decoding.run()
        if call.num_draft_tokens == "auto":
            call.debts[alike] = controller.debt
        if keep_rows:
            close_memory(runner, memory, prompt, new)
            if past is not None and past is not memory.cache:
                memory.cache.to_dynamic_cache(into=past)
    decoding.stats.graphs = graphs
    if call.compile == "auto":
        _note(uncompiled, drafter, graphs, decoding.stats)
    if decoding.stats.trace is not None:
        decoding.stats.trace.tokenizer = call.tokenizer
    if on_finish is not None:
        on_finish(decoding.stats)
    sequences = _sequences(prompt.shown, new, limits.pad_token_id)
    if not returns_all:
        return sequences
    lengths = list(map(len, new))
    if runner.is_encoder_decoder:
        outputs: Any = prepared.model_kwargs["encoder_outputs"]
        fields: dict[str, Any] = {
            "sequences": sequences,
            "scores": recorder.scores(max(lengths), lengths),
            "logits": recorder.logits(max(lengths), lengths),
            "encoder_hidden_states": outputs.get("hidden_states") if recorder.keeps_hidden else None,
            "decoder_hidden_states": recorder.hidden_states(_fed(prompt, seen), max(lengths), lengths),
        }
        kind: Any = type(runner.model)
        if kind.generate is not GenerationMixin.generate:  # Whisper's cuts every field into segments
            return GenerateEncoderDecoderOutput(**fields)
        return SpeculativeEncoderDecoderOutput(**fields, speculation=decoding.stats)
    returned = past if past is not None else memory.cache if keep_rows else None
    return SpeculativeOutput(
        sequences=cast(torch.LongTensor, sequences),
        scores=cast(Any, recorder.scores(max(lengths), lengths)),
        logits=cast(Any, recorder.logits(max(lengths), lengths)),
        hidden_states=cast(Any, recorder.hidden_states(_fed(prompt, seen), max(lengths), lengths)),
        past_key_values=returned,
        speculation=decoding.stats,
    )


def check_layout(runner: ModelRunner, prompt: Prompt) -> None:
    """Raises before any decoding forward for prompts whose rows this model cannot decode together.

    Raises:
        InputError: rows of different lengths, of which the model would see the padding.
        UnsupportedOptionError: what a ragged prompt of a recurrent model brings cannot be fed in parts.
    """
    is_ragged = not bool(prompt.mask.all())
    name = type(runner.model).__name__
    if is_ragged and runner.layout.level and not runner.layout.padded:
        raise InputError(
            f"{name} counts padding as positions, so prompts of different lengths cannot share a batch: give prompts "
            "of one length, or one a call."
        )
    if is_ragged and runner.replays and prompt.extra is not None and prompt.extra.once:
        raise UnsupportedOptionError(
            f"{name} is recurrent, so prompts of different lengths are fed in parts, which {sorted(prompt.extra.once)} "
            "forbid: give prompts of one length, or one a call."
        )


def _check_ranks(runner: ModelRunner, drafter: Drafter | None) -> None:
    """Raises DraftMismatchError for a sharded draft whose processes are not those of the target."""
    ranks = None if drafter is None else drafter.ranks(runner.model)
    if ranks is not None and (runner.ranks is None or not ranks.meets_same(runner.ranks)):
        raise DraftMismatchError(
            "the draft is sharded over other processes than the target: shard both in the same way, or load the draft "
            "whole on every rank (without tp_plan)."
        )


class _Listening(DraftSession):
    """Of a process that is told what rank 0 has drafted."""

    observes = "nothing"

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        return Proposal.empty(state.batch_size, state.device)


def _session(runner: ModelRunner, drafter: Drafter | None, state: DecodeState) -> DraftSession:
    """Opens the drafter's session; of several processes that share the target, in those that draft."""
    if drafter is None:
        return DraftSession()
    if runner.ranks is None or runner.ranks.leads or drafter.ranks(runner.model) is not None:
        return drafter.start(state)
    return _Listening()


def _compiled(
    runner: ModelRunner, call: Call, prompt: Prompt, recorder: Recorder, tokens: int, graphs: GraphUse
) -> ModelRunner:
    """The target's runner, through a graph where the call asks for it and brings nothing that a graph lacks."""
    reason = None
    if prompt.extra is not None and not runner.attends_to_encoder:
        reason = "the prompt brings more than token ids (embeddings, images, positions or token types)"
    elif recorder.keeps_hidden:
        reason = "hidden states were asked for, which the graph does not return"
    if call.compile is False or reason is None:
        return compiled(runner, call.compile, tokens, graphs, "target")
    graphs.roles["target"] = reason
    return runner


def _note(target: ModelRunner, drafter: Drafter | None, graphs: GraphUse, stats: SpeculationStats) -> None:
    """What was decoded uncompiled, for the next call's "auto"."""
    if graphs.roles.get("target") != "compiled":
        note_uncompiled(target.model, stats.prefill_seconds + stats.verify_seconds, stats.new_tokens)
    if drafter is not None and graphs.roles.get("draft") not in (None, "compiled"):
        model = getattr(drafter, "model", None)
        if model is not None:
            note_uncompiled(model, stats.draft_seconds, stats.new_tokens)


def _fitting(runner: ModelRunner, drafter: Drafter | None) -> Drafter | None:
    """The drafter, or none where the model cannot verify several tokens at once: plain decoding, said once."""
    if drafter is None or not runner.layout.stepwise:
        return drafter
    kind = type(runner.model)
    if kind not in _WARNED:
        _WARNED.add(kind)
        logger.warning(
            "%s forgets its state in a cached forward of several tokens, so drafts cannot be verified: it is decoded "
            "without them.",
            kind.__name__,
        )
    return None


def _controller(call: Call, drafter: Drafter | None, debt: float) -> Controller:
    if drafter is None:
        return FixedLength(0)
    if isinstance(call.num_draft_tokens, str):
        depth = drafter.depth
        return AutoLength(debt=debt) if depth is None else AutoSwitch(min(depth, MAX_DRAFT_TOKENS), debt)
    return FixedLength(call.num_draft_tokens)


def _publisher(call: Call, prompt: Prompt, limits: Limits, on_commit: OnCommit | None) -> OnCommit | None:
    """Hands committed tokens to the streamer and to on_commit."""
    if call.streamer is None:
        return on_commit
    stream = Stream(call.streamer, len(prompt.ids), limits.pad_token_id)
    stream.prompt(prompt.shown)

    def publish(part: Committed) -> None:
        stream.add(part.request, part.tokens, part.finished)
        if on_commit is not None:
            on_commit(part)

    return publish


def _fed(prompt: Prompt, seen: list[int]) -> Tensor:
    """[B, columns] bool: where the tokens of the prompt's forward stand in the user's layout."""
    mask = prompt.mask.cpu()
    if not any(seen):
        return mask
    lengths = mask.sum(1) - torch.tensor(seen)
    width = int(lengths.max())
    return torch.arange(width) >= width - lengths[:, None]


def _seed(generator: torch.Generator | None) -> int:
    """One draw seeds the call's coins, so that calls differ and a seeded program repeats."""
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(-(2**63), 2**63 - 1, (), generator=generator, device=device))


def _sequences(shown: Tensor, new: list[list[int]], pad: int) -> Tensor:
    """[B, P + longest]: the prompt as given, the new tokens, padding."""
    longest = max(map(len, new))
    rows = [tokens + [pad] * (longest - len(tokens)) for tokens in new]
    return torch.cat([shown, torch.tensor(rows, device=shown.device)], dim=1)
