"""`GenerationTesterMixin` of transformers, as far as it is about greedy decoding and sampling, written afresh.

A test bears the name of its peer and makes its calls. Different from there: prompts are left-padded (the peer's
common inputs are right-padded, which specdec refuses), eight new tokens instead of three (so that there is
something to speculate), and greedy output must equal transformers' own token by token. See LEFT_OUT.md.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, PENALTY_KNOWS_PADDING, prompts, tiny
from transformers import DynamicCache, GenerationMixin, LogitsProcessor, PreTrainedModel
from transformers_suite.expectations import (
    TOLERANCE,
    assert_same_caches,
    assert_same_outputs,
    assert_sampled_from_scores,
    check_cache,
    check_output,
)
from transformers_suite.sides import Forwards, Side, embed, plain, standard

NEW = 8
PROMPT = 11
INPUTS = prompts(2)  # row 1 is left-padded
ONE = prompts(1)  # the peer's assisted generation takes one row
LENGTH = {"max_new_tokens": NEW, "min_new_tokens": NEW}
PROCESSORS = {"bad_words_ids": [[1, 0]], "remove_invalid_values": True}
if PENALTY_KNOWS_PADDING:
    PROCESSORS["repetition_penalty"] = 1.2
WARPERS = {**PROCESSORS, "top_k": 10, "top_p": 0.7, "temperature": 0.7}
EVERYTHING = {
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "return_dict_in_generate": True,
}
SCORES = {"output_scores": True, "return_dict_in_generate": True}
NO_END = {"pad_token_id": -1, "eos_token_id": -1}  # no token has this id: the peer's way to forbid an early end


def test_greedy_generate(model: PreTrainedModel, side: Side) -> None:
    """Length and tokens; and that a drafting side got there with fewer forwards than tokens."""
    arguments = {**INPUTS, **LENGTH, **PROCESSORS, "do_sample": False}
    output = model.generate(**arguments)
    assert output.shape == (2, PROMPT + NEW)
    assert output.tolist() == plain(model, **arguments).tolist()
    with Forwards(model) as forwards:  # the second call: whatever a side finds out about a model is known by now
        model.generate(**arguments)
    if side.name == "control":
        assert forwards.count == NEW
    elif side.name == "model":
        assert forwards.count < NEW
    else:
        assert forwards.count <= NEW


def test_greedy_generate_dict_outputs(model: PreTrainedModel) -> None:
    output = model.generate(**INPUTS, **LENGTH, **PROCESSORS, **EVERYTHING, do_sample=False, use_cache=False)
    check_output(output, model.config, 2, PROMPT, use_cache=False)


def test_greedy_generate_dict_outputs_use_cache(model: PreTrainedModel) -> None:
    """The peer looks at shapes; here everything must be what transformers returns, at every real token."""
    arguments = {**INPUTS, **LENGTH, **PROCESSORS, **EVERYTHING, "do_sample": False, "use_cache": True}
    output, expected = model.generate(**arguments), plain(model, **arguments)
    check_output(output, model.config, 2, PROMPT)
    assert_same_outputs(output, expected)
    for one, other in zip(output.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)
    for step, (ours, theirs) in enumerate(zip(output.hidden_states, expected.hidden_states, strict=True)):
        real = slice(None) if step else INPUTS["attention_mask"].bool()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one[real], other[real], **TOLERANCE)
    mask = torch.nn.functional.pad(INPUTS["attention_mask"], (0, NEW), value=1)
    assert_same_caches(output.past_key_values, expected.past_key_values, mask)


def test_sample_generate(model: PreTrainedModel) -> None:
    output = model.generate(**INPUTS, **LENGTH, **WARPERS, do_sample=True)
    assert output.shape == (2, PROMPT + NEW)
    assert output[:, :PROMPT].tolist() == INPUTS["input_ids"].tolist()


def test_sample_generate_dict_output(model: PreTrainedModel) -> None:
    """Two sequences a prompt; top-k left at most ten tokens, and one of them was drawn."""
    output = model.generate(
        **INPUTS, **LENGTH, **WARPERS, **EVERYTHING, do_sample=True, num_return_sequences=2, use_cache=False
    )
    check_output(output, model.config, 4, PROMPT, use_cache=False)
    assert_sampled_from_scores(output, PROMPT)
    assert all((scores.isfinite().sum(1) <= 10).all() for scores in output.scores)


def test_generate_without_input_ids(model: PreTrainedModel) -> None:
    """Generation starts from BOS, and cannot start without one."""
    model.generation_config.bos_token_id = 5
    output = model.generate(do_sample=False, max_new_tokens=NEW, remove_invalid_values=True)
    assert output.shape == (1, 1 + NEW)
    assert output[0, 0] == 5
    assert output.tolist() == plain(model, do_sample=False, max_new_tokens=NEW).tolist()
    model.generation_config.bos_token_id = None
    with pytest.raises(ValueError, match="bos_token_id"):
        model.generate(do_sample=False, max_new_tokens=NEW)


def assistant(kind: str, architecture: str, model: PreTrainedModel) -> PreTrainedModel:
    """ "same" is always accepted, "random" hardly ever, "noisy" now and then."""
    if kind == "same":
        return model
    draft = copy.deepcopy(tiny(architecture, noise=0.02) if kind == "noisy" else tiny(architecture, seed=7))
    draft.generation_config.num_assistant_tokens = 2
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    return draft


@pytest.mark.parametrize("kind", ["random", "same", "noisy"])
def test_assisted_decoding_matches_greedy_search(kind: str, bare_model: PreTrainedModel, architecture: str) -> None:
    arguments = {**ONE, **NO_END, **PROCESSORS, **EVERYTHING, "max_new_tokens": NEW, "do_sample": False}
    expected = plain(bare_model, **arguments)
    draft = assistant(kind, architecture, bare_model)
    output = bare_model.generate(**arguments, assistant_model=draft)
    assert_same_outputs(output, expected)
    check_output(output, bare_model.config, 1, PROMPT)
    with Forwards(bare_model) as forwards:
        bare_model.generate(**arguments, assistant_model=draft)
    assert kind != "noisy" or forwards.count < NEW  # with "same", the draft's forwards count as well


def test_prompt_lookup_decoding_matches_greedy_search(bare_model: PreTrainedModel) -> None:
    """On a prompt that holds its own continuation once already, so that lookup finds something."""
    ids = torch.cat([plain(bare_model, **ONE, max_new_tokens=NEW), ONE["input_ids"][:, -3:]], 1)
    arguments = {"input_ids": ids, **NO_END, **PROCESSORS, **EVERYTHING, "max_new_tokens": NEW, "do_sample": False}
    expected = plain(bare_model, **arguments)
    output = bare_model.generate(**arguments, prompt_lookup_num_tokens=2)
    assert_same_outputs(output, expected)
    check_output(output, bare_model.config, 1, ids.shape[1])


class Script(LogitsProcessor):
    """Forces the tokens of a script, by position: whatever is drafted from it will be accepted."""

    def __init__(self, script: list[int], start: int) -> None:
        self._script, self._start = script, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = self._script[input_ids.shape[1] - self._start]
        forced = torch.full_like(scores, float("-inf"))
        forced[:, token] = 0.0
        return forced


def test_prompt_lookup_decoding_stops_at_eos(bare_llama: PreTrainedModel) -> None:
    """The peer asks the candidate generator alone; here the whole call: nothing drafted behind EOS is kept."""
    unigram, eos = 51, 40
    ids = ONE["input_ids"].clone() % 40
    ids[0, [3, -1]] = unigram
    ids[0, 4] = eos
    script = ids[0, 4:].tolist()  # what follows the earlier occurrence: EOS, and more
    output = bare_llama.generate(
        ids,
        max_new_tokens=len(script),
        eos_token_id=eos,
        pad_token_id=0,
        prompt_lookup_num_tokens=4,
        max_matching_ngram_size=1,
        logits_processor=[Script(script, PROMPT)],
    )
    assert output.tolist() == [[*ids[0].tolist(), eos]]


@pytest.mark.parametrize("kind", ["same", "noisy"])
def test_assisted_decoding_sample(kind: str, bare_model: PreTrainedModel, architecture: str) -> None:
    output = bare_model.generate(
        **ONE, **NO_END, **PROCESSORS, **EVERYTHING, max_new_tokens=NEW, do_sample=True, top_k=5,
        assistant_model=assistant(kind, architecture, bare_model),
    )  # fmt: skip
    check_output(output, bare_model.config, 1, PROMPT)
    assert_sampled_from_scores(output, PROMPT)


def test_left_padding_compatibility(model: PreTrainedModel) -> None:
    """32 columns of padding change no logits. The peer compares one forward's; here those of every step."""
    ids = ONE["input_ids"]
    padded = torch.cat([torch.zeros(1, 32, dtype=ids.dtype), ids], 1)
    mask = torch.cat([torch.zeros(1, 32, dtype=ids.dtype), torch.ones_like(ids)], 1)
    arguments = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    expected = model.generate(ids, **arguments)
    output = model.generate(input_ids=padded, attention_mask=mask, **arguments)
    assert output.sequences[:, 32:].tolist() == expected.sequences.tolist()
    for one, other in zip(output.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_past_key_values_format(batch_size: int, model: PreTrainedModel) -> None:
    output = model.generate(**prompts(batch_size), max_new_tokens=NEW, return_dict_in_generate=True)
    check_cache(output.past_key_values, model.config, batch_size, PROMPT + NEW - 1)


def test_generate_from_random_inputs_embeds(model: PreTrainedModel) -> None:
    """Embeddings beside input_ids are what is read: others give other scores."""
    embeds = embed(model, INPUTS["input_ids"])
    arguments = {**INPUTS, **LENGTH, **SCORES, "do_sample": False}
    output = model.generate(**arguments, inputs_embeds=embeds)
    other = model.generate(**arguments, inputs_embeds=torch.rand_like(embeds))
    assert not any(torch.allclose(a, b) for a, b in zip(output.scores, other.scores, strict=True))


def test_generate_from_inputs_embeds(model: PreTrainedModel) -> None:
    """With input_ids beside them, the prompt is part of the output; without, only what is new."""
    arguments = {"attention_mask": INPUTS["attention_mask"], **LENGTH, **SCORES, "do_sample": False}
    expected = plain(model, input_ids=INPUTS["input_ids"], **arguments)
    embeds = embed(model, INPUTS["input_ids"])
    output = model.generate(input_ids=INPUTS["input_ids"], inputs_embeds=embeds, **arguments)
    assert_same_outputs(output, expected)
    alone = model.generate(inputs_embeds=embeds, **arguments)
    expected.sequences = expected.sequences[:, PROMPT:]
    assert_same_outputs(alone, expected)


def test_generate_from_inputs_embeds_with_static_cache(model: PreTrainedModel) -> None:
    model.generation_config.eos_token_id = -1
    output = model.generate(
        inputs_embeds=embed(model, INPUTS["input_ids"]),
        attention_mask=INPUTS["attention_mask"],
        max_new_tokens=NEW,
        cache_implementation="static",
        return_dict_in_generate=True,
    )
    assert output.sequences.shape == (2, NEW)
    check_cache(output.past_key_values, model.config, 2, PROMPT + NEW - 1)


def continued(outputs: Any, attention_mask: torch.Tensor) -> dict[str, Any]:
    """Inputs of a call that goes on where the outputs end."""
    added = outputs.sequences.shape[1] - attention_mask.shape[1]
    return {
        "input_ids": outputs.sequences,
        "attention_mask": torch.nn.functional.pad(attention_mask, (0, added), value=1),
        "past_key_values": outputs.past_key_values,
    }


def test_generate_continue_from_past_key_values(model: PreTrainedModel) -> None:
    """n tokens at once, or n - 1 and then one more from the returned cache: the same text and the same cache."""
    arguments = {**NO_END, **SCORES, "do_sample": False, "use_cache": True}
    expected = model.generate(**INPUTS, **arguments, max_new_tokens=NEW)
    first = model.generate(**INPUTS, **arguments, max_new_tokens=NEW - 3)
    output = model.generate(**continued(first, INPUTS["attention_mask"]), **arguments, max_new_tokens=3)
    output.scores = first.scores + output.scores
    assert_same_outputs(output, expected)
    assert_same_caches(output.past_key_values, expected.past_key_values)
    assert output.sequences.tolist() == plain(model, **INPUTS, **NO_END, max_new_tokens=NEW).tolist()


def test_generate_continue_from_inputs_embeds(model: PreTrainedModel) -> None:
    """As above, where every call gets the embeddings of the whole text so far."""
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = -1
    arguments = {"return_dict_in_generate": True, "do_sample": False}
    embeds = embed(model, INPUTS["input_ids"])
    expected = model.generate(inputs_embeds=embeds, max_new_tokens=NEW, **arguments)
    first = model.generate(inputs_embeds=embeds, max_new_tokens=NEW - 3, **arguments)
    second = model.generate(
        inputs_embeds=torch.cat([embeds, embed(model, first.sequences)], 1),
        max_new_tokens=3,
        past_key_values=first.past_key_values,
        **arguments,
    )
    assert torch.cat([first.sequences, second.sequences], 1).tolist() == expected.sequences.tolist()
    assert_same_caches(second.past_key_values, expected.past_key_values)


def test_a_cache_goes_from_one_side_to_the_other(model: PreTrainedModel) -> None:
    """What this side returns, transformers continues; what transformers returns, this side continues, in place."""
    arguments = {**NO_END, **SCORES, "do_sample": False}
    mask = INPUTS["attention_mask"]
    expected = plain(model, **INPUTS, **arguments, max_new_tokens=NEW)
    begun = model.generate(**INPUTS, **arguments, max_new_tokens=NEW - 3)
    begun.past_key_values = standard(begun.past_key_values)
    output = plain(model, **continued(begun, mask), **arguments, max_new_tokens=3)
    assert output.sequences.tolist() == expected.sequences.tolist()

    begun = plain(model, **INPUTS, **arguments, max_new_tokens=NEW - 3)
    cache = begun.past_key_values
    output = model.generate(**continued(begun, mask), **arguments, max_new_tokens=3)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert cache.get_seq_length() == PROMPT + NEW - 1
    real = torch.nn.functional.pad(mask, (0, NEW), value=1)
    assert_same_caches(cache, expected.past_key_values, real)


@pytest.mark.parametrize("implementation", ["static", "dynamic"])
def test_generate_with_static_cache(implementation: str, model: PreTrainedModel) -> None:
    """The length that the cache is laid out for, and the output of the default cache. "dynamic" is that by name."""
    arguments = {**INPUTS, **SCORES, "max_new_tokens": 20, "use_cache": True, "do_sample": False}
    output = model.generate(**arguments, cache_implementation=implementation)
    check_cache(output.past_key_values, model.config, 2, PROMPT + 20 - 1)
    assert_same_outputs(output, plain(model, **arguments))


def test_a_cache_and_a_kind_of_cache(llama: PreTrainedModel) -> None:
    """Two answers to one question are an error."""
    with pytest.raises(ValueError, match="cache_implementation"):
        llama.generate(
            **INPUTS, max_new_tokens=3, past_key_values=DynamicCache(config=llama.config), cache_implementation="static"
        )


def test_generate_methods_with_logits_to_keep(model: PreTrainedModel) -> None:
    """logits_to_keep=0 computes all logits of the prompt, and changes no token."""
    arguments = {**INPUTS, "max_new_tokens": 10, "do_sample": False}
    assert model.generate(**arguments, logits_to_keep=0).tolist() == plain(model, **arguments).tolist()


def test_assisted_decoding_with_num_logits_to_keep(bare_model: PreTrainedModel, architecture: str) -> None:
    arguments = {**ONE, "max_new_tokens": 10, "do_sample": False}
    expected = plain(bare_model, **arguments)
    draft = assistant("noisy", architecture, bare_model)
    output = bare_model.generate(**arguments, assistant_model=draft, logits_to_keep=0)
    assert output.tolist() == expected.tolist()


def test_inherits_generation_mixin(architecture: str, side: Side) -> None:
    """The model stays what it was: its class inside the block, and its own generate() behind it."""
    target = copy.deepcopy(tiny(architecture))
    before = type(target), target.generate.__func__
    with side.attach(target, tiny(architecture, noise=0.02)):
        assert GenerationMixin in type(target).__bases__
        assert target.can_generate()
    assert (type(target), target.generate.__func__) == before


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_eager_matches_sdpa_generate(architecture: str, side: Side) -> None:
    # One row: transformers' eager attention gives NaN in float64 for left-padded rows.
    outputs = []
    for attention in ("eager", "sdpa"):
        target = copy.deepcopy(tiny(architecture, attention=attention))
        with side.attach(target, tiny(architecture, noise=0.02, attention=attention)):
            outputs.append(target.generate(**ONE, **SCORES, max_new_tokens=NEW, do_sample=False))
    assert_same_outputs(*outputs)


def test_generate_with_and_without_position_ids(model: PreTrainedModel) -> None:
    """Positions that generate() would infer itself change nothing."""
    arguments = {**INPUTS, "max_new_tokens": NEW, "use_cache": True, "do_sample": False}
    mask = INPUTS["attention_mask"]
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    output = model.generate(**arguments, position_ids=positions)
    assert output.tolist() == model.generate(**arguments).tolist() == plain(model, **arguments).tolist()


def test_generate_with_position_ids_of_the_callers_own(model: PreTrainedModel) -> None:
    """Every second position for the prompt; a new token's is the one behind the last."""
    arguments = {**INPUTS, "max_new_tokens": NEW, "do_sample": False}
    positions = (INPUTS["attention_mask"].cumsum(-1) - 1).clamp(min=0) * 2
    expected = plain(model, **arguments, position_ids=positions)
    assert expected.tolist() != plain(model, **arguments).tolist()
    assert model.generate(**arguments, position_ids=positions).tolist() == expected.tolist()


def test_generate_tied_weights(llama: PreTrainedModel) -> None:
    """A model whose head is its embedding; it stays so."""
    llama.config.tie_word_embeddings = True
    llama.lm_head.weight = llama.model.embed_tokens.weight
    arguments = {**ONE, "max_new_tokens": 20, "do_sample": False, "repetition_penalty": 1.5}
    output = llama.generate(**arguments)
    assert output.tolist() == plain(llama, **arguments).tolist()
    assert len(set(output[0, PROMPT:].tolist())) >= 5, "a degenerate model proves nothing"
    assert llama.lm_head.weight is llama.model.embed_tokens.weight


def test_models_are_worth_comparing() -> None:
    """Random models that write one token over and over would agree whatever is done to them."""
    for architecture in ARCHITECTURES:
        output = plain(tiny(architecture), **INPUTS, max_new_tokens=NEW, do_sample=False)
        assert all(len(set(row.tolist())) >= NEW // 2 for row in output[:, PROMPT:])
