"""Calls of the peer that specdec refuses: with the error that says so, before any forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import prompts, tiny
from transformers import StaticCache
from transformers_suite.sides import Forwards

import specdec

_BEAMS = {"num_beams": 2}
_GROUPS = {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 2.0}
_WORDS = {"num_beams": 2, "force_words_ids": [[16, 17, 18]]}
_CONTRAST = {"penalty_alpha": 0.6, "top_k": 4}
_HUB = {"custom_generate": "transformers-community/custom_generate_example", "trust_remote_code": True}

# By the peer's test; what goes wrong first is named by its argument.
REFUSED: dict[str, dict[str, Any]] = {
    "test_beam_search_generate": _BEAMS,
    "test_beam_search_generate_dict_output": {**_BEAMS, "return_dict_in_generate": True, "use_cache": False},
    "test_beam_search_generate_dict_outputs_use_cache": {**_BEAMS, "return_dict_in_generate": True},
    "test_beam_search_low_memory": {**_BEAMS, "low_memory": True},
    "test_beam_sample_generate": {**_BEAMS, "do_sample": True},
    "test_beam_sample_generate_dict_output": {**_BEAMS, "do_sample": True, "return_dict_in_generate": True},
    "test_transition_scores_beam_search_decoder_only": {**_BEAMS, "output_scores": True, "length_penalty": 0.0},
    "test_beam_search_advanced_stopping_criteria": {**_BEAMS, "stop_strings": ":"},
    "test_group_beam_search_generate": _GROUPS,
    "test_group_beam_search_generate_dict_output": {**_GROUPS, "return_dict_in_generate": True},
    "test_constrained_beam_search_generate": _WORDS,
    "test_constrained_beam_search_generate_dict_output": {**_WORDS, "return_dict_in_generate": True},
    "test_contrastive_generate": _CONTRAST,
    "test_contrastive_generate_dict_outputs_use_cache": {**_CONTRAST, "return_dict_in_generate": True},
    "test_contrastive_generate_low_memory": {**_CONTRAST, "low_memory": True},
    "test_dola_decoding_sample": {"do_sample": True, "dola_layers": "low"},
    "test_hub_gen_strategies": {"custom_generate": "transformers-community/dola", "dola_layers": "low"},
    "test_cfg_mixin": {"guidance_scale": 1.5, "negative_prompt_ids": torch.tensor([[3, 4]])},
    "test_generate_with_quant_cache": {"cache_implementation": "quantized", "cache_config": {"nbits": 2}},
    "test_offloaded_cache_implementation": {"cache_implementation": "offloaded"},
    "test_custom_generate_callable": {"custom_generate": lambda *_, **__: "callable_success"},
    "test_custom_generate_from_argument_in_generate": _HUB,
    "test_custom_generate_bad_requirements": _HUB,
    "test_custom_generate_requires_trust_remote_code": {**_HUB, "trust_remote_code": False},
    "test_custom_generate_local_directory": {"custom_generate": "./here", "trust_remote_code": True},
    "a StaticCache of the caller's": {"past_key_values": StaticCache(config=tiny("llama").config, max_cache_len=30)},
    "output_attentions of every ..._dict_output": {"output_attentions": True, "return_dict_in_generate": True},
}


@pytest.mark.parametrize("peer", REFUSED)
def test_refused(peer: str) -> None:
    """A ValueError, as transformers' own refusals are; and the model is whole again behind it."""
    target = tiny("llama")
    arguments = {**prompts(2), "max_new_tokens": 3, **REFUSED[peer]}
    named = "|".join(REFUSED[peer])
    with specdec.attached(target, drafter=tiny("llama", noise=0.02)):
        with Forwards(target) as forwards, pytest.raises(specdec.UnsupportedOptionError, match=named) as caught:
            target.generate(**arguments)
        assert isinstance(caught.value, ValueError)
        assert forwards.count == 0
    assert "generate" not in vars(target)


def test_right_padding_of_the_common_inputs() -> None:
    """The peer's models get a lower triangular mask: row 0 has one real token, and padding at the right."""
    target, ids = tiny("llama"), prompts(1)["input_ids"].expand(2, -1)
    with specdec.attached(target), pytest.raises(specdec.InputError, match="padding_side='left'"):
        target.generate(ids, attention_mask=torch.tril(torch.ones_like(ids)), max_new_tokens=3)
