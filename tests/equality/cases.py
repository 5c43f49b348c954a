"""One case for each thing that a call of generate() can ask for: name -> the call's arguments.

Names begin with the argument or field that the case is about; docs/generate.md refers to them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from equality import own
from equality.coupling import GumbelChoice
from equality.letters import letters
from models import prompts, tiny
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import logits_process as hf

PROMPT = prompts(1)["input_ids"].shape[1]
NEW_TOKENS = 24
LEAVE_OUT = object()  # an argument that every other case has
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """The call that a case changes.

    Args:
        free: [B, N] the new tokens of the call without the case's arguments.
    """

    batch_size: int
    free: Tensor

    def token(self, row: int, step: int) -> int:
        """A token of the unchanged text; rows count from 0 and begin anew behind the last."""
        return int(self.free[row % self.batch_size, step])

    def ending(self, row: int, step: int) -> int:
        """A token of the unchanged row at `step` or a little behind, which no row has near its beginning."""
        early = set(self.free[:, :8].flatten().tolist())
        return next(int(t) for t in self.free[row % self.batch_size, step:] if int(t) not in early)

    def text(self, row: int, begin: int, end: int) -> str:
        """Some tokens of the unchanged text, without the first token's first letter if it has several."""
        tokens = [letters().convert_ids_to_tokens(self.token(row, step)) for step in range(begin, end)]
        return (tokens[0][1:] or tokens[0]) + "".join(tokens[1:])


@dataclass(frozen=True)
class Case:
    """What a case asks for.

    Args:
        build: the call's arguments besides prompt and length; called once for each side, so that what keeps a state
            is new.
        target: the model, if not the plain tiny one.
        speculates_by_itself: the arguments name the drafter.
        reference: arguments that transformers is given instead: what only specdec can do at this batch size.
        shown: how many columns of the output are the prompt's.
        changes: whether the text differs from that of a call without these arguments.
        distinct: at least so many different tokens in every row, pads left out; 1 where some rows end at once.
    """

    build: Callable[[Setting], Arguments]
    target: Callable[[], PreTrainedModel] = field(default=lambda: tiny("llama"))
    speculates_by_itself: bool = False
    reference: Arguments = field(default_factory=dict)
    shown: int = PROMPT
    changes: bool = True
    distinct: int = 8


_REPETITIVE: Arguments = {"prefix_allowed_tokens_fn": own.five_letters, "max_new_tokens": 40}


def _is(arguments: Arguments, **settings: Any) -> Case:
    """The same arguments for every setting."""
    return Case(lambda _: dict(arguments), **settings)


def _same(arguments: Arguments, **settings: Any) -> Case:
    """Arguments under which the text is what it is without them."""
    return _is(arguments, changes=False, **settings)


def _warper(kind: type, *arguments: Any) -> Case:
    """transformers adds warpers under do_sample only, where texts are drawn; here one is given by hand."""
    return Case(lambda _: {"logits_processor": [kind(*arguments)]})


def _ends(s: Setting) -> list[int]:
    """Ids that end the rows at different steps."""
    return [s.ending(row, 9 + 4 * row) for row in range(s.batch_size)]


@cache
def _changed(**settings: Any) -> PreTrainedModel:
    """A checkpoint whose own generation config says something."""
    model = copy.deepcopy(tiny("llama"))
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


@cache
def _overflows() -> PreTrainedModel:
    """Token 7 has a logit of plus or minus infinity in float32."""
    model: Any = copy.deepcopy(tiny("llama"))
    with torch.no_grad():
        model.lm_head.weight[7] *= 1e40
    return model


def _embeds(batch_size: int) -> Arguments:
    inputs = prompts(batch_size)
    embeddings: Any = tiny("llama").get_input_embeddings()
    return {"inputs_embeds": embeddings(inputs["input_ids"]).detach(), "attention_mask": inputs["attention_mask"]}


def _holes(batch_size: int) -> Arguments:
    """Padding in the middle, as batches of conversations have it after their second turn."""
    mask = prompts(batch_size)["attention_mask"]
    for row in range(batch_size):
        mask[row, 7 : 7 + (row + 1) % 3] = 0
    return {"attention_mask": mask}


def _repeated(count: int) -> Arguments:
    """Several sequences a prompt, which transformers allows only where they are drawn: here all draw the same."""
    return {"num_return_sequences": count, "do_sample": True, "logits_processor": [GumbelChoice()]}


def _positions(batch_size: int) -> Arguments:
    """A document that is quoted from its middle, with a gap."""
    mask = prompts(batch_size)["attention_mask"]
    plain = (mask.cumsum(1) - 1).clamp(min=0)
    return {"position_ids": torch.where(plain > 3, plain + 9, plain)}


LENGTHS: dict[str, Case] = {
    "max_new_tokens": _is({"max_new_tokens": 31}),
    "max_length": _is({"max_new_tokens": None, "max_length": PROMPT + 29}),
    "eos_token_id": Case(lambda s: {"eos_token_id": s.ending(0, 12)}),
    "eos_token_id_list": Case(lambda s: {"eos_token_id": _ends(s)}),
    "pad_token_id": Case(lambda s: {"eos_token_id": _ends(s), "pad_token_id": 5}),
    "min_length": Case(lambda s: {"eos_token_id": _ends(s), "min_length": PROMPT + 17}),
    "min_new_tokens": Case(lambda s: {"eos_token_id": _ends(s), "min_new_tokens": 17}),
    "forced_eos_token_id": _is({"forced_eos_token_id": 9}),
    "forced_bos_token_id": Case(
        lambda s: {
            "input_ids": torch.arange(3, 3 + s.batch_size)[:, None], "attention_mask": LEAVE_OUT,
            "forced_bos_token_id": 17,
        },
        shown=1,
    ),
    "exponential_decay_length_penalty": Case(
        lambda s: {"eos_token_id": _ends(s)[:1], "exponential_decay_length_penalty": (12, 1.3), "max_new_tokens": 40}
    ),
    "stop_strings": Case(
        lambda s: {
            "stop_strings": [s.text(row, 8 + 4 * row, 11 + 4 * row) for row in range(s.batch_size)],
            "tokenizer": letters(),
        }
    ),
    "stop_strings_one": Case(lambda s: {"stop_strings": s.text(0, 8, 12), "tokenizer": letters()}),
    "stop_strings_and_eos": Case(
        lambda s: {
            "stop_strings": [s.text(row, 8 + 4 * row, 11 + 4 * row) for row in range(s.batch_size)],
            "tokenizer": letters(), "eos_token_id": s.ending(1, 20),
        }
    ),
    "stop_strings_from_the_prompt_on": Case(
        lambda s: {
            "stop_strings": letters().decode(prompts(s.batch_size)["input_ids"][0, -2:]) + s.text(0, 0, 2)[:1],
            "tokenizer": letters(), "eos_token_id": s.ending(1, 20),
        },
        distinct=1,
    ),
    "stopping_criteria_per_row": Case(lambda s: {"stopping_criteria": [own.EndsWith(torch.tensor(_ends(s)))]}),
    "stopping_criteria_per_row_and_eos": Case(
        lambda s: {"stopping_criteria": [own.EndsWith(torch.tensor(_ends(s)))], "eos_token_id": s.ending(2, 11)}
    ),
    "stopping_criteria_for_all": Case(
        lambda s: {
            "stopping_criteria": [own.AnyEndsWith(torch.tensor([s.ending(1, 14)]))], "eos_token_id": s.ending(0, 9),
        }
    ),
    "stopping_criteria_that_look_at_all": Case(lambda s: {"stopping_criteria": [own.LooksAtAll()]}),
    "stopping_criteria_like_lm_eval": Case(
        lambda s: {
            "stopping_criteria": [own.MultiTokenEos("ab", letters(), PROMPT, s.batch_size)],
            "prefix_allowed_tokens_fn": own.sets_per_row,
        }
    ),
    "stopping_criteria_of_scores": Case(
        lambda s: {
            "stopping_criteria": [own.Unsure(0.15)], "eos_token_id": s.ending(0, 20),
            "output_scores": True, "return_dict_in_generate": True,
        }
    ),
}  # fmt: skip

PROCESSORS: dict[str, Case] = {
    "temperature": _warper(hf.TemperatureLogitsWarper, 0.5),
    "top_k": _warper(hf.TopKLogitsWarper, 2),
    "top_p": _warper(hf.TopPLogitsWarper, 0.6),
    "top_h": _warper(hf.TopHLogitsWarper, 0.3),
    "min_p": _warper(hf.MinPLogitsWarper, 0.3),
    "typical_p": _warper(hf.TypicalLogitsWarper, 0.5),
    "epsilon_cutoff": _warper(hf.EpsilonLogitsWarper, 0.2),
    "eta_cutoff": _warper(hf.EtaLogitsWarper, 0.4),
    "repetition_penalty": _is({"repetition_penalty": 1.8}),
    "encoder_repetition_penalty": _is({"encoder_repetition_penalty": 2.0}, distinct=5),
    "no_repeat_ngram_size": _is({"no_repeat_ngram_size": 1}),
    "encoder_no_repeat_ngram_size": _is({"encoder_no_repeat_ngram_size": 1}),
    "bad_words_ids": Case(lambda s: {"bad_words_ids": [[s.token(0, 3)], [s.token(1, 6), s.token(1, 7)]]}),
    "sequence_bias": Case(
        lambda s: {"sequence_bias": [[[s.token(0, 3)], -30.0], [[s.token(1, 5), 44], 60.0], [[9], 6.0]]}
    ),
    "suppress_tokens": Case(lambda s: {"suppress_tokens": [s.token(0, 2), s.token(1, 8), s.token(2, 15)]}),
    "begin_suppress_tokens": Case(lambda s: {"begin_suppress_tokens": [s.token(row, 0) for row in range(3)]}),
    "watermarking_config": _is({"watermarking_config": {"greenlist_ratio": 0.3, "bias": 6.0}}),
    "watermarking_config_selfhash": _is(
        {"watermarking_config": {"bias": 6.0, "seeding_scheme": "selfhash", "context_width": 3}}
    ),
    "renormalize_logits": _same({"renormalize_logits": True}),
    "remove_invalid_values": _is({"remove_invalid_values": True}, target=_overflows, distinct=1),
    "prefix_allowed_tokens_fn": _is({"prefix_allowed_tokens_fn": own.sets_per_row}),
    "prefix_allowed_tokens_fn_trie": Case(lambda _: {"prefix_allowed_tokens_fn": own.trie(PROMPT)}),
    "logits_processor": Case(lambda _: {"logits_processor": [own.ForbidTheTokenBeforeLast()]}),
    "logits_processor_grammar": Case(lambda _: {"logits_processor": [own.Grammar(PROMPT)]}),
    "processors_together": Case(
        lambda s: {
            "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[s.token(0, 3)]],
            "eos_token_id": _ends(s), "min_new_tokens": 12, "prefix_allowed_tokens_fn": own.sets_per_row,
            "logits_processor": [hf.TopKLogitsWarper(5)],
        }
    ),
}  # fmt: skip

INPUTS: dict[str, Case] = {
    "inputs": Case(lambda s: {"inputs": prompts(s.batch_size)["input_ids"], "input_ids": LEAVE_OUT}, changes=False),
    "attention_mask": _same({}),
    "attention_mask_with_holes": Case(lambda s: _holes(s.batch_size)),
    "position_ids": Case(lambda s: _positions(s.batch_size)),
    "inputs_embeds": Case(
        lambda s: {"input_ids": LEAVE_OUT, **_embeds(s.batch_size)}, shown=0
    ),
    "inputs_embeds_and_penalty": Case(
        lambda s: {"input_ids": LEAVE_OUT, **_embeds(s.batch_size), "no_repeat_ngram_size": 1}, shown=0
    ),
    "inputs_embeds_with_ids": Case(lambda s: _embeds(s.batch_size), changes=False),
    "bos_token_id": Case(
        lambda s: {
            "input_ids": LEAVE_OUT, "attention_mask": LEAVE_OUT, "bos_token_id": 5, **_repeated(s.batch_size)
        },
        shown=1,
    ),
    "num_return_sequences": Case(
        lambda s: {**{n: t[-1:] for n, t in prompts(3).items()}, "repetition_penalty": 1.3, **_repeated(s.batch_size)}
    ),
    "num_return_sequences_of_a_batch": Case(
        lambda _: {"encoder_repetition_penalty": 1.3, "encoder_no_repeat_ngram_size": 2, **_repeated(2)}
    ),
    "logits_to_keep": _same({"logits_to_keep": 5}),
    "generation_config": _is(
        {
            "generation_config": GenerationConfig(max_new_tokens=27, repetition_penalty=1.5, pad_token_id=0),
            "max_new_tokens": LEAVE_OUT,
        }
    ),
    "generation_config_of_the_checkpoint": _is(
        {}, target=lambda: _changed(repetition_penalty=1.5, cache_implementation="static")
    ),
}  # fmt: skip

# The text is the same; what changes is how it is computed.
MEANS: dict[str, Case] = {
    "use_cache": _same({"use_cache": False}),
    # transformers keeps a static cache on the model, so not on one that other tests share.
    "cache_implementation_static": _same({"cache_implementation": "static"}, target=_changed),
    "cache_implementation_dynamic": _same({"cache_implementation": "dynamic"}),
    "prefill_chunk_size": _same({"prefill_chunk_size": 4}),
    "assistant_model": Case(
        lambda _: {"assistant_model": tiny("llama", noise=0.02)},
        speculates_by_itself=True, changes=False, reference={"assistant_model": None},
    ),
    "num_assistant_tokens": Case(
        lambda _: {
            "assistant_model": tiny("llama", noise=0.02), "num_assistant_tokens": 3,
            "num_assistant_tokens_schedule": "constant",
        },
        speculates_by_itself=True, changes=False, reference={"assistant_model": None},
    ),
    "num_assistant_tokens_schedule": Case(
        lambda _: {
            "assistant_model": tiny("llama", noise=0.02), "num_assistant_tokens": 7,
            "num_assistant_tokens_schedule": "heuristic",
        },
        speculates_by_itself=True, changes=False, reference={"assistant_model": None},
    ),
    "prompt_lookup_num_tokens": _is(
        {"prompt_lookup_num_tokens": 4, **_REPETITIVE},
        speculates_by_itself=True, distinct=3, reference={"prompt_lookup_num_tokens": None},
    ),
    "max_matching_ngram_size": _is(
        {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1, **_REPETITIVE},
        speculates_by_itself=True, distinct=3, reference={"prompt_lookup_num_tokens": None},
    ),
    "prompt_lookup_num_tokens_of_the_checkpoint": _is(
        _REPETITIVE, target=lambda: _changed(prompt_lookup_num_tokens=4),
        speculates_by_itself=True, distinct=3, reference={"prompt_lookup_num_tokens": None},
    ),
}  # fmt: skip

CASES: dict[str, Case] = {**LENGTHS, **PROCESSORS, **INPUTS, **MEANS}
