"""Every argument of transformers' `generate()` and every field of its GenerationConfig: what becomes of it.

Four fates. Honoured: the loop or a processor does what it says. Mapped: transformers' own names of speculation
become ours. Without effect: it says nothing about the output. Refused: a typed error, before any forward, that
names the remedy. docs/generate.md has a row for each; tests/test_generate_table.py holds the two together.
"""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.stopping_criteria import StopStringCriteria
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from specdec.controller import MAX_DRAFT_TOKENS
from specdec.drafters import CrossTokenizerDrafter, Drafter, EarlyExitDrafter, ModelDrafter, NgramDrafter
from specdec.errors import OptionError, UnsupportedOptionError
from specdec.loop import Rule
from specdec.target import parameters
from specdec.types import Compile
from specdec.wrapped import unwrap

HONOURED = frozenset(
    # fields
    "max_length max_new_tokens min_length min_new_tokens max_time stop_strings do_sample temperature top_k top_p top_h "
    "min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty encoder_repetition_penalty no_repeat_ngram_size "
    "encoder_no_repeat_ngram_size bad_words_ids renormalize_logits forced_bos_token_id forced_eos_token_id "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens sequence_bias "
    "watermarking_config num_return_sequences output_scores output_logits output_hidden_states return_dict_in_generate "
    "pad_token_id bos_token_id eos_token_id prefill_chunk_size "
    # arguments
    "inputs generation_config logits_processor stopping_criteria prefix_allowed_tokens_fn streamer tokenizer "
    "input_ids inputs_embeds attention_mask position_ids past_key_values logits_to_keep decoder_start_token_id".split()
)
MAPPED = frozenset(
    "assistant_model assistant_tokenizer assistant_early_exit prompt_lookup_num_tokens max_matching_ngram_size "
    "num_assistant_tokens num_assistant_tokens_schedule cache_implementation use_cache".split()
)
WITHOUT_EFFECT = frozenset(
    "transformers_version early_stopping length_penalty diversity_penalty num_beam_groups low_memory "
    "assistant_confidence_threshold assistant_lookbehind target_lookbehind compile_config disable_compile "
    "cache_config max_cache_len continuous_batching_config".split()
)
_FREE = "classifier-free guidance runs a second forward a token: use model.generate()."
_MODE = "transformers runs this mode from a hub repository: use model.generate()."
_WORDS = "it needs beams: use model.generate(num_beams=...), or prefix_allowed_tokens_fn= to constrain the text."
REFUSED = {
    "num_beams": "speculation follows one continuation a row: set num_beams=1 (with do_sample=True and "
    "num_return_sequences=n for several), or use model.generate() for beams.",
    "constraints": _WORDS,
    "force_words_ids": _WORDS,
    "penalty_alpha": _MODE,
    "dola_layers": _MODE,
    "guidance_scale": _FREE,
    "negative_prompt_ids": _FREE,
    "negative_prompt_attention_mask": _FREE,
    "token_healing": "heal the prompt first with model.heal_tokens(input_ids, tokenizer), and pass what it returns.",
    "output_attentions": "run the returned sequences once through the model with output_attentions=True.",
    "is_assistant": "it is transformers' mark of a draft model: leave it out.",
    "use_mtp": "drafting with the target's own prediction heads is not built yet: use another drafter.",
    "speculation_type": "this kind of draft model is not built yet: use another drafter.",
    "assistant_ensemble_weight": "it changes the output's distribution, and specdec returns exactly the target's: "
    "leave it out.",
    "synced_gpus": "ranks accept different amounts, so that a sharded forward would wait for ever: gather the model "
    "on each rank, or use model.generate().",
    "custom_generate": "specdec is one itself: pass either, or call model.generate(custom_generate=decoder).",
    "trust_remote_code": "specdec never runs code from a hub.",
}
_CACHES = ("dynamic", "static", "hybrid", "sliding_window", "hybrid_chunked", "hybrid_sliding", "hybrid_chunked_static")
_REFUSED_CACHES = {
    "quantized": "its keys and values cannot be rolled back",
    "offloaded": "its layers live on another device between forwards",
    "offloaded_static": "its layers live on another device between forwards",
    "paged": "it is transformers' continuous batching",
}
# Values, besides None and (unless one is named here) False, under which a refused field does nothing.
_NEUTRAL: dict[str, Any] = {"num_beams": 1, "guidance_scale": 1, "penalty_alpha": 0}
OWN = frozenset("drafter num_draft_tokens rule compile generator on_commit on_finish".split())


@dataclass(slots=True)
class Call:
    """One call, read: what goes to transformers, and what is ours."""

    kwargs: dict[str, Any]  # for target.generate()
    drafter: Drafter | None
    num_draft_tokens: int | str
    rule: Rule
    tokenizer: Any = None
    streamer: Any = None
    compile: Compile = False
    debts: dict[Any, float] = field(default_factory=dict)  # that calls with drafts leave to the next ones like them


def read_call(
    target: PreTrainedModel,
    kwargs: dict[str, Any],
    drafter: Drafter | None,
    num_draft_tokens: int | str,
    rule: Rule,
) -> Call:
    """Checks and maps the arguments of one call.

    Args:
        kwargs: as the user gave them; not changed.
        drafter, num_draft_tokens, rule: the decoder's settings; transformers' names may set what they leave open.

    Raises:
        OptionError: an unknown argument, or two that contradict each other.
        UnsupportedOptionError: an option that specdec refuses.
    """
    _check_names(target, kwargs)
    settings = _Settings(target, kwargs)
    for name in REFUSED:
        refuse(name, settings.get(name))
    _check_cache(settings.get("cache_implementation"))
    if kwargs.get("past_key_values") is not None and kwargs.get("cache_implementation") is not None:
        raise OptionError("past_key_values= and cache_implementation= were both given: leave one out.")
    # A refused option that the call switches off overrules a config that switches it on.
    fields = _known_names() & vars(target.generation_config).keys()
    dropped = (MAPPED - {"use_cache"}) | (REFUSED.keys() - fields)
    rest = {n: v for n, v in kwargs.items() if n not in dropped}
    drafter, num_draft_tokens = _mapped(settings, drafter, num_draft_tokens)
    streamer, tokenizer = rest.pop("streamer", None), rest.pop("tokenizer", None)
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise OptionError(f"streamer needs the methods put and end of transformers' streamers, got {streamer!r}.")
    chunk = settings.get("prefill_chunk_size")
    if chunk is not None and (type(chunk) is not int or chunk < 1):
        raise OptionError(f"prefill_chunk_size must be a positive integer, got {chunk!r}.")
    strings = settings.get("stop_strings")
    if strings is not None:
        if tokenizer is None:
            raise OptionError("stop_strings= needs the target's tokenizer: pass tokenizer= as well.")
        own = StopStringCriteria(tokenizer, strings)
        rest["stopping_criteria"] = [*(rest.get("stopping_criteria") or []), own]
    # None as an argument overrules what a config says: these are settled here.
    for name in ("stop_strings", "cache_implementation", "prompt_lookup_num_tokens", "assistant_early_exit"):
        rest.pop(name, None)
        if settings.get(name) is not None:
            rest[name] = None
    return Call(rest, drafter, num_draft_tokens, rule, tokenizer, streamer)


def check_config(config: GenerationConfig) -> None:
    """Raises UnsupportedOptionError for a field of the resolved config that is refused or unknown."""
    known = HONOURED | MAPPED | WITHOUT_EFFECT
    for name, value in vars(config).items():
        # What GenerationConfig itself does not define (some checkpoints carry notes of their own) says nothing.
        if name.startswith("_") or name not in _known_names() or name in known or value is None or value is False:
            continue
        if name not in REFUSED:
            raise UnsupportedOptionError(
                f"generation option {name}={value!r} is unknown to this version of specdec. Remove it (it may come "
                "from the model's generation_config), or use model.generate()."
            )
        refuse(name, value)
    _check_cache(config.cache_implementation)
    if config.prompt_lookup_num_tokens is not None:
        raise UnsupportedOptionError(
            "prompt_lookup_num_tokens makes model.generate() draft by itself: leave it out beside custom_generate=, "
            "and give the decoder a specdec.NgramDrafter()."
        )
    if config.assistant_early_exit is not None:
        raise UnsupportedOptionError(
            "assistant_early_exit makes model.generate() draft by itself: leave it out beside custom_generate=, and "
            "give the decoder a specdec.EarlyExitDrafter(exit_layer)."
        )


def check_sharding(target: PreTrainedModel) -> None:
    """Raises UnsupportedOptionError for a target whose ranks must run forwards in step, each on a batch of its own.

    Ranks that split its tensors, and nothing else, decode one batch together (`ranks`).
    """
    sharded = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(target)
    if sharded and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise UnsupportedOptionError(f"the target is sharded by FSDP or DeepSpeed ZeRO-3: {REFUSED['synced_gpus']}")
    mesh: Any = getattr(target, "_device_mesh", None)
    if mesh is not None and mesh.size() > (target.tp_size or 1):
        raise UnsupportedOptionError(
            f"the target is spread over {mesh.size()} processes by more than its tensors (stages, data), which "
            "specdec does not bring together: load it with tp_plan='auto' alone (docs/big_models.md), or use "
            "model.generate()."
        )


def refuse(name: str, value: Any) -> None:
    """Raises UnsupportedOptionError unless the value leaves a refused option switched off."""
    if value is None or value is False or (not isinstance(value, torch.Tensor) and value == _NEUTRAL.get(name, False)):
        return
    shown = "" if name in ("negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate") else repr(value)
    raise UnsupportedOptionError(
        f"{name}={shown} cannot be honoured: {REFUSED[name]} (An option that you did not give comes from the model's "
        "generation_config.)"
    )


def _check_cache(kind: str | None) -> None:
    if kind is not None and kind not in _CACHES:
        why = _REFUSED_CACHES.get(kind, "specdec does not know it")
        raise UnsupportedOptionError(
            f"cache_implementation={kind!r} cannot be honoured: {why}. Leave it out: specdec has a preallocated cache "
            "of its own. (It may come from the model's generation_config; then pass cache_implementation='dynamic'.)"
        )


def _check_names(target: PreTrainedModel, kwargs: dict[str, Any]) -> None:
    """Raises OptionError for a name that neither transformers, the model nor specdec knows."""
    known = _known_names()
    prepare: Any = target.prepare_inputs_for_generation
    kind: Any = type(target)  # Whisper's generate takes more than others'
    taken = known | parameters(target.forward) | parameters(prepare) | parameters(kind.generate)
    for name in kwargs:
        if name not in taken or name in ("self", "kwargs"):
            close = difflib.get_close_matches(name, known | OWN, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise OptionError(f"generate() has no argument {name!r}.{hint}")


@lru_cache(maxsize=1)
def _known_names() -> frozenset[str]:
    """What transformers' generate() and its config take, and what specdec adds."""
    arguments = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    return frozenset(arguments | set(vars(GenerationConfig())) | HONOURED | MAPPED | set(REFUSED))


class _Settings:
    """A call's settings: its arguments first, then its generation_config, then the model's."""

    def __init__(self, target: PreTrainedModel, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("generation_config")
        if given is not None and not isinstance(given, GenerationConfig):
            raise OptionError(
                f"generation_config must be a transformers GenerationConfig, got {type(given).__name__}: "
                "GenerationConfig(**values) makes one of a dict."
            )
        self.kwargs = kwargs
        self._configs = [c for c in (given, target.generation_config) if c is not None]

    def get(self, name: str) -> Any:
        if name in self.kwargs:
            return self.kwargs[name]
        return next((v for c in self._configs if (v := getattr(c, name, None)) is not None), None)


def _mapped(
    settings: _Settings, drafter: Drafter | None, num_draft_tokens: int | str
) -> tuple[Drafter | None, int | str]:
    """transformers' own names of speculation, in our terms."""
    assistant = settings.get("assistant_model")
    lookup = settings.get("prompt_lookup_num_tokens")
    early_exit = settings.get("assistant_early_exit")
    ways = ("assistant_model", "assistant_early_exit", "prompt_lookup_num_tokens")
    asked = [n for n in ways if settings.kwargs.get(n) is not None]
    if drafter is not None and asked:
        raise OptionError(f"drafter= and {asked[0]}= were both given: which one should draft? Leave one out.")
    if len(asked) > 1:
        raise OptionError(f"{asked[0]}= and {asked[1]}= were both given: leave one out.")
    if settings.kwargs.get("assistant_tokenizer") is not None and (drafter is not None or assistant is None):
        raise OptionError(
            "assistant_tokenizer= is that of an assistant_model=: leave it out, or give a drafter= its tokenizers when "
            "you make it."
        )
    count = settings.get("num_assistant_tokens")
    schedule = settings.get("num_assistant_tokens_schedule")
    if drafter is None and assistant is not None:
        own = getattr(assistant, "generation_config", None)
        count = count if count is not None else getattr(own, "num_assistant_tokens", None)
        schedule = schedule if schedule is not None else getattr(own, "num_assistant_tokens_schedule", None)
        if not isinstance(unwrap(assistant), PreTrainedModel):
            raise OptionError(f"assistant_model must be a transformers model, got {type(assistant).__name__}.")
        tokenizer, other = settings.get("tokenizer"), settings.get("assistant_tokenizer")
        if other is not None and tokenizer is None:
            raise OptionError("assistant_tokenizer= needs the target's tokenizer beside it: pass tokenizer= as well.")
        if other is None:
            drafter = ModelDrafter(assistant)
        elif tokenizer.get_vocab() == other.get_vocab():
            drafter = ModelDrafter(assistant, tokenizer=tokenizer, draft_tokenizer=other)
        else:
            drafter = CrossTokenizerDrafter(assistant, target_tokenizer=tokenizer, draft_tokenizer=other)
    elif drafter is None and early_exit is not None and (lookup is None or "assistant_early_exit" in asked):
        drafter = EarlyExitDrafter(early_exit)
    elif drafter is None and lookup is not None:
        longest = settings.get("max_matching_ngram_size")
        drafter = NgramDrafter() if longest is None else NgramDrafter(min_ngram=1, max_ngram=longest)
        count, schedule = lookup, "constant"
    if num_draft_tokens != "auto" or count is None or str(schedule).startswith("heuristic"):
        return drafter, num_draft_tokens
    if type(count) is not int or count < 1:
        raise OptionError(f"the number of draft tokens must be a positive integer, got {count!r}.")
    return drafter, min(count, MAX_DRAFT_TOKENS)
