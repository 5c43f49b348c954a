"""What can be decoded and what cannot: every refusal of the edge, before any forward.

What the loop does not honour is named, with the reason and the remedy; nothing is ignored.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from specdec.errors import InputError, OptionError, UnsupportedOptionError
from specdec.loop import Limits
from specdec.target import ModelRunner

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
    "transformers_version early_stopping length_penalty diversity_penalty num_beam_groups "
    "num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind "
    "target_lookbehind max_matching_ngram_size is_assistant compile_config disable_compile decoder_start_token_id "
    "encoder_no_repeat_ngram_size encoder_repetition_penalty generation_kwargs max_cache_len cache_config".split()
)
# Values, besides None and (unless one is named here) False, under which a field not honoured does nothing.
_NEUTRAL: dict[str, Any] = {"num_beams": 1, "guidance_scale": 1, "use_cache": True}
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
    "cache_implementation": "specdec has a cache of its own.",
    "past_key_values": "each call prefills its own cache.",
    "inputs_embeds": "pass token ids as input_ids=.",
    "trust_remote_code": "specdec never runs code from a hub.",
}


def check_call(target: PreTrainedModel, inputs: Tensor | None, kwargs: dict[str, Any]) -> ModelRunner:
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
        _check_ids(ids, runner.vocab_size)
        if kwargs.get("attention_mask") is not None:
            _check_padding(ids, kwargs["attention_mask"])
    return runner


def _check_ids(ids: Tensor, vocab_size: int) -> None:
    """Raises InputError for token ids that cannot be decoded."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
        raise InputError("the prompt must be an integer tensor [batch, length]; tokenize with return_tensors='pt'.")
    if ids.numel() == 0:
        raise InputError(f"the prompt is empty (shape {tuple(ids.shape)}): give at least one token, e.g. BOS.")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise InputError(f"token id {bad} is outside the target's vocabulary 0..{vocab_size - 1}: another tokenizer?")


def _check_padding(ids: Tensor, mask: Tensor) -> None:
    """Raises InputError unless the mask [B, T] of ids [B, T] hides padding at the left, and nothing else."""
    if not isinstance(mask, Tensor):
        raise InputError(f"attention_mask must be a tensor, got {type(mask).__name__}.")
    if mask.shape != ids.shape:
        raise InputError(f"attention_mask has shape {tuple(mask.shape)}, the prompt {tuple(ids.shape)}.")
    keep = mask.bool()
    if not bool(keep.any(1).all()):
        raise InputError("a row of the batch is all padding: give each row at least one token.")
    if bool((keep[:, :-1] & ~keep[:, 1:]).any()):
        raise InputError(
            "the batch is right-padded (or its mask has holes): load the tokenizer with padding_side='left'."
        )


def read_limits(config: GenerationConfig, criteria: StoppingCriteriaList, input_ids: Tensor) -> Limits:
    """Reads the length limit, EOS and padding ids; refuses what else the config asks for."""
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
    ids = [] if eos is None else torch.as_tensor(eos).flatten().tolist()
    pad = config.pad_token_id if config.pad_token_id is not None else next(iter(ids), 0)  # as transformers pads
    return Limits(int(config.max_length) - input_ids.shape[1], frozenset(int(i) for i in ids), int(pad))


def checked_mask(
    input_ids: Tensor, model_kwargs: dict[str, Any], runner: ModelRunner, config: GenerationConfig
) -> Tensor:
    """The padding mask [B, T] bool; checks what only the prepared call shows."""
    mask: Tensor | None = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    _check_padding(input_ids, mask)
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
