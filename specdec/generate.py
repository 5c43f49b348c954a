"""The drop-in edge: what `model.generate()` accepts goes in, what it returns comes out.

transformers itself prepares the call (generation config, processors, stopping criteria, padding mask)
and hands it to our loop through its public `custom_generate` hook. What the loop does not honour yet
is refused by name before any forward, never ignored.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from specdec.controller import MAX_DRAFT_TOKENS, AutoLength, Controller, FixedLength
from specdec.drafters import Drafter, DraftSession, ModelDrafter
from specdec.errors import InputError, OptionError, UnsupportedOptionError
from specdec.loop import Committed, Decoding, Limits, Rule
from specdec.probe import probe
from specdec.sampling import Sampler
from specdec.state import DecodeState
from specdec.stats import SpeculationStats
from specdec.target import ModelRunner

NumDraftTokens = int | Literal["auto"]

# GenerationConfig fields that the loop honours, or that only say how a processor of `Sampler` is built.
_HONOURED = frozenset(
    "max_length max_new_tokens min_length min_new_tokens do_sample temperature top_k top_p min_p typical_p "
    "epsilon_cutoff eta_cutoff repetition_penalty no_repeat_ngram_size bad_words_ids renormalize_logits "
    "forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens "
    "begin_suppress_tokens sequence_bias bos_token_id eos_token_id pad_token_id return_dict_in_generate "
    "num_return_sequences".split()
)
# Fields that say nothing about the output: bookkeeping, and settings of modes that are refused or not entered.
_IRRELEVANT = frozenset(
    "transformers_version early_stopping length_penalty diversity_penalty num_beam_groups constraints "
    "num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind "
    "target_lookbehind max_matching_ngram_size is_assistant compile_config disable_compile decoder_start_token_id "
    "encoder_no_repeat_ngram_size encoder_repetition_penalty generation_kwargs max_cache_len cache_config".split()
)
# Values, besides None and False, under which a field that is not honoured does nothing.
_NEUTRAL: dict[str, Any] = {"num_beams": 1, "guidance_scale": 1, "use_cache": True}


@dataclass
class SpeculativeOutput(GenerateDecoderOnlyOutput):
    """transformers' output class and the call's statistics."""

    speculation: SpeculationStats | None = None


class SpeculativeDecoder:
    """Reusable settings of speculative decoding.

    Args:
        drafter: a Drafter, or a transformers model to draft with; None decodes without drafts.
        num_draft_tokens: tokens to draft a round, or "auto": chosen each round from measured acceptance
            and costs, down to none while drafting does not pay.
        rule: "rejection" (Alg. 1, arXiv:2211.17192) or "block" (arXiv:2403.10444; chains, accepts a
            little more). Both are exact. Greedy calls use neither.

    Raises:
        OptionError: num_draft_tokens is not a positive integer up to 16 or "auto"; an unknown rule.
        UnsupportedModelError: the draft model's memory cannot be rolled back.

    Example:
        >>> decoder = SpeculativeDecoder(draft_model, num_draft_tokens=5)  # doctest: +SKIP
        >>> decoder.generate(target, **inputs, max_new_tokens=64)  # doctest: +SKIP
    """

    def __init__(
        self,
        drafter: Drafter | PreTrainedModel | None = None,
        num_draft_tokens: NumDraftTokens = "auto",
        rule: Rule = "rejection",
    ) -> None:
        if num_draft_tokens != "auto" and num_draft_tokens not in range(1, MAX_DRAFT_TOKENS + 1):
            raise OptionError(
                f"num_draft_tokens must be an integer from 1 to {MAX_DRAFT_TOKENS} or 'auto', got "
                f"{num_draft_tokens!r}. To decode without drafts, leave out the drafter."
            )
        if rule not in ("rejection", "block"):
            raise OptionError(f"rule must be 'rejection' or 'block', got {rule!r}.")
        if isinstance(drafter, PreTrainedModel):
            drafter = ModelDrafter(drafter)
        if drafter is not None and not isinstance(drafter, Drafter):
            raise OptionError(
                f"drafter must be a specdec.Drafter or a transformers model, got {type(drafter).__name__}. "
                "Instantiate the class, or load the model first."
            )
        self.drafter: Drafter | None = drafter
        self.num_draft_tokens: NumDraftTokens = num_draft_tokens
        self.rule: Rule = rule

    def generate(
        self,
        target: PreTrainedModel,
        inputs: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        on_commit: Callable[[Committed], None] | None = None,
        **kwargs: Any,
    ) -> Tensor | SpeculativeOutput:
        """`target.generate(inputs, **kwargs)`, sooner. See `specdec.generate`."""
        runner = _check_call(target, inputs, kwargs)
        if self.drafter is not None:
            self.drafter.check(target)

        def decode(
            model: PreTrainedModel,
            input_ids: Tensor,
            logits_processor: LogitsProcessorList,
            stopping_criteria: StoppingCriteriaList,
            generation_config: GenerationConfig,
            **model_kwargs: Any,
        ) -> Tensor | SpeculativeOutput:
            limits = _limits(generation_config, stopping_criteria, input_ids)
            sampler = Sampler(logits_processor, bool(generation_config.do_sample))
            mask = _checked_mask(input_ids, model_kwargs, runner, generation_config)
            probe(runner)
            seed = _seed(generator) if sampler.do_sample else None
            most = input_ids.shape[1] + limits.max_new_tokens
            state = DecodeState(input_ids.to(runner.device), mask, most, runner.vocab_size, sampler, seed)
            decoding = Decoding(
                runner,
                state,
                self.drafter.start(state) if self.drafter is not None else DraftSession(),
                self._controller(),
                limits,
                self.rule,
                on_commit,
            )
            new = decoding.run()
            pad = generation_config.pad_token_id
            sequences = _sequences(input_ids, new, pad if isinstance(pad, int) else 0)
            if not generation_config.return_dict_in_generate:
                return sequences
            return SpeculativeOutput(sequences=cast(torch.LongTensor, sequences), speculation=decoding.stats)

        with _global_rng_restored_on_error():
            output = cast(Any, target).generate(inputs, custom_generate=decode, **kwargs)
        return cast(Tensor | SpeculativeOutput, output)

    def _controller(self) -> Controller:
        if self.drafter is None:
            return FixedLength(0)
        if self.num_draft_tokens == "auto":
            return AutoLength()
        return FixedLength(self.num_draft_tokens)


def generate(
    target: PreTrainedModel,
    inputs: Tensor | None = None,
    *,
    drafter: Drafter | PreTrainedModel | None = None,
    num_draft_tokens: NumDraftTokens = "auto",
    rule: Rule = "rejection",
    generator: torch.Generator | None = None,
    on_commit: Callable[[Committed], None] | None = None,
    **kwargs: Any,
) -> Tensor | SpeculativeOutput:
    """Generates what `target.generate(inputs, **kwargs)` would, with fewer target forwards.

    Greedy output is equal token for token (up to ties within the dtype's rounding, as between any two
    ways to batch the same forward); sampled output has the same distribution.

    Args:
        target: a decoder-only Hugging Face model with full attention.
        inputs: [B, T] int64 prompt, left-padded; also as `input_ids=`.
        drafter: a Drafter or a draft model; None decodes without drafts.
        num_draft_tokens: drafted tokens a round, or "auto".
        rule: "rejection" or "block"; both exact.
        generator: source of the call's seed when sampling; torch's global generator if omitted.
        on_commit: called with each row's new tokens as soon as they are final.
        kwargs: arguments of `target.generate()`; what is not supported yet is refused by name.

    Returns:
        [B, T + new] int64, or a `SpeculativeOutput` under `return_dict_in_generate=True`.

    Raises:
        OptionError: an unknown or contradictory argument.
        UnsupportedOptionError: an option of transformers that specdec does not honour yet.
        InputError: an empty or right-padded prompt, ids out of range, more tokens than the context holds.
        DraftMismatchError: target and draft differ in vocabulary or device.
        UnsupportedModelError: a memory that cannot be rolled back.
        DrafterError, NumericalError: while decoding.

    Example:
        >>> out = specdec.generate(target, **inputs, drafter=draft, max_new_tokens=64)  # doctest: +SKIP
    """
    decoder = SpeculativeDecoder(drafter, num_draft_tokens, rule)
    return decoder.generate(target, inputs, generator=generator, on_commit=on_commit, **kwargs)


def _check_call(target: PreTrainedModel, inputs: Tensor | None, kwargs: dict[str, Any]) -> ModelRunner:
    """Everything that can be refused before transformers prepares the call."""
    if not isinstance(target, PreTrainedModel) or not target.can_generate():
        raise OptionError(
            f"target must be a transformers model with a language modelling head, got {type(target).__name__}."
        )
    known = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs", "custom_generate"}
    forward = set(inspect.signature(target.forward).parameters)
    fields = set(vars(GenerationConfig()))
    for name, value in kwargs.items():
        if name in _REFUSED_ARGUMENTS and value is not None and value is not False:
            raise UnsupportedOptionError(f"{name}= is not supported yet: {_REFUSED_ARGUMENTS[name]}")
        if name not in known | forward | fields | set(_REFUSED_ARGUMENTS):
            close = difflib.get_close_matches(name, known | fields | _OWN_ARGUMENTS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise OptionError(f"generate() has no argument {name!r}.{hint}")
    extra = {n for n in kwargs if n in forward - known - fields and kwargs[n] is not None} - {
        "input_ids",
        "attention_mask",
        *_REFUSED_ARGUMENTS,
    }
    if extra:
        raise UnsupportedOptionError(
            f"model inputs besides input_ids and attention_mask are not supported yet: {sorted(extra)}."
        )
    runner = ModelRunner(target)
    ids = inputs if inputs is not None else kwargs.get("input_ids")
    if ids is not None:
        _check_ids(ids, kwargs.get("attention_mask"), runner.vocab_size)
    return runner


_OWN_ARGUMENTS = {"drafter", "num_draft_tokens", "rule", "generator", "on_commit"}
_REFUSED_ARGUMENTS = {
    "streamer": "use on_commit=, which is called with every row's new tokens.",
    "stop_strings": "use eos_token_id=, or cut the text afterwards.",
    "stopping_criteria": "use eos_token_id= and max_new_tokens=.",
    "prefix_allowed_tokens_fn": "it indexes batch rows.",
    "synced_gpus": "each process decodes on its own.",
    "assistant_model": "pass it as drafter=.",
    "assistant_tokenizer": "give both tokenizers to specdec.ModelDrafter.",
    "negative_prompt_ids": "classifier-free guidance needs a second forward a token.",
    "negative_prompt_attention_mask": "classifier-free guidance needs a second forward a token.",
    "custom_generate": "specdec is one itself.",
    "past_key_values": "each call prefills its own cache.",
    "inputs_embeds": "pass token ids as input_ids=.",
    "trust_remote_code": "specdec never runs code from a hub.",
}


def _check_ids(ids: Tensor, mask: Tensor | None, vocab_size: int) -> None:
    """Raises InputError for prompts that cannot be decoded."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
        raise InputError("the prompt must be an integer tensor [batch, length]; tokenize with return_tensors='pt'.")
    if ids.numel() == 0:
        raise InputError(f"the prompt is empty (shape {tuple(ids.shape)}): give at least one token, e.g. BOS.")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise InputError(f"token id {bad} is outside the target's vocabulary 0..{vocab_size - 1}: another tokenizer?")
    if mask is None:
        return
    if mask.shape != ids.shape:
        raise InputError(f"attention_mask has shape {tuple(mask.shape)}, the prompt {tuple(ids.shape)}.")
    keep = mask.bool()
    if not bool(keep.any(1).all()):
        raise InputError("a row of the batch is all padding: give each row at least one token.")
    if bool((keep[:, :-1] & ~keep[:, 1:]).any()):
        raise InputError(
            "the batch is right-padded (or its mask has holes): load the tokenizer with padding_side='left'."
        )


def _limits(config: GenerationConfig, criteria: StoppingCriteriaList, input_ids: Tensor) -> Limits:
    """Reads the length limit and the EOS ids; refuses what else the config asks for."""
    for name, value in vars(config).items():
        if name.startswith("_") or name in _HONOURED | _IRRELEVANT:
            continue
        if value is not None and value != _NEUTRAL.get(name, False):
            raise UnsupportedOptionError(
                f"generation option {name}={value!r} is not supported yet. Remove it (it may come from the model's "
                "generation_config), or use model.generate()."
            )
    for criterion in criteria:
        if not isinstance(criterion, MaxLengthCriteria | EosTokenCriteria):
            raise UnsupportedOptionError(f"the stopping criterion {type(criterion).__name__} is not supported yet.")
    eos = config.eos_token_id
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    return Limits(int(config.max_length) - input_ids.shape[1], frozenset(int(i) for i in ids))


def _checked_mask(
    input_ids: Tensor, model_kwargs: dict[str, Any], runner: ModelRunner, config: GenerationConfig
) -> Tensor:
    """The padding mask [B, T] bool; checks what only the prepared call shows."""
    mask: Tensor | None = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    _check_ids(input_ids, mask, runner.vocab_size)
    longest = int(mask.sum(1).max())
    wanted = int(config.max_length) - input_ids.shape[1] + longest
    if runner.max_positions is not None and wanted > runner.max_positions:
        raise InputError(
            f"prompt ({longest} tokens) and new tokens ({wanted - longest}) need {wanted} positions, the target has "
            f"{runner.max_positions}: shorten the prompt or lower max_new_tokens."
        )
    switch = runner.rope_switch
    if switch is not None and int(mask.sum(1).min()) <= switch < wanted:
        raise InputError(
            f"the target's longrope changes all its frequencies at {switch} tokens, in the middle of this output "
            f"({wanted} tokens with the prompt): stay on one side of it, or use model.generate()."
        )
    return mask.bool()


def _seed(generator: torch.Generator | None) -> int:
    """One draw seeds the call's coins, so that calls differ and a seeded program repeats."""
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(-(2**63), 2**63 - 1, (), generator=generator, device=device))


def _sequences(input_ids: Tensor, new: list[list[int]], pad: int) -> Tensor:
    """[B, T + longest]: the prompt as given, the new tokens, padding."""
    longest = max(map(len, new))
    rows = [tokens + [pad] * (longest - len(tokens)) for tokens in new]
    return torch.cat([input_ids, torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)], dim=1)


@contextmanager
def _global_rng_restored_on_error() -> Iterator[None]:
    """A failed call leaves torch's global generator where it was."""
    before = torch.get_rng_state()
    try:
        yield
    except BaseException:
        torch.set_rng_state(before)
        raise
