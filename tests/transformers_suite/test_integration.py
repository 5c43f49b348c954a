"""`GenerationIntegrationTests` of transformers, where they are about greedy decoding and sampling, written afresh.

A test bears the name of its peer. Where the peer pins the text of a checkpoint from the hub, the text here is what
transformers itself generates, from a tiny random model or from the bundled pair.
"""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import pytest
import torch
from models import prompts, tiny
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    WatermarkDetector,
    WatermarkingConfig,
    pipeline,
)
from transformers_suite.expectations import TOLERANCE, assert_same_caches, assert_same_outputs
from transformers_suite.sides import Forwards, Side, Writer, embed, plain, warnings_of

import specdec

IDS = prompts(1)["input_ids"]
INPUTS = prompts(2)
PROMPT = 11
GENERATE = "transformers.generation.utils"
SCORES = {"output_scores": True, "return_dict_in_generate": True}
default_length = pytest.mark.filterwarnings("ignore:Using the model-agnostic default")


def test_generation_config_defaults(llama: PreTrainedModel, tmp_path: pathlib.Path) -> None:
    """What a GenerationConfig says explicitly counts, even where it says the global default."""
    llama.generation_config.min_length = 50
    llama.generation_config.max_length = 50
    config = GenerationConfig(temperature=1.0, max_length=20, min_length=0, do_sample=False, eos_token_id=-1)
    assert llama.generate(IDS, generation_config=config).shape == (1, 20)
    llama.generation_config.cache_implementation = "dynamic"
    llama.generation_config.use_cache = None
    llama.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).max_length == 50


def test_generation_config_deprecation(llama: PreTrainedModel) -> None:
    """Config and arguments in one call are warned about, once; arguments alone are not."""
    with warnings_of(GENERATE) as said:
        llama.generate(IDS, generation_config=GenerationConfig(temperature=1.0, max_new_tokens=3), do_sample=False)
    assert sum("Passing `generation_config` together with" in message for message in said) == 1
    with warnings_of(GENERATE) as said:
        llama.generate(IDS, do_sample=False, max_new_tokens=3)
    assert said == []


def test_max_length_if_input_embeds(llama: PreTrainedModel) -> None:
    """max_length counts the prompt, whether it came as ids or as embeddings."""
    output = llama.generate(input_ids=IDS, max_length=20)
    embedded = llama.generate(inputs_embeds=embed(llama, IDS), max_length=20)
    assert output.shape[1] == PROMPT + embedded.shape[1] == 20
    assert output[:, PROMPT:].tolist() == embedded.tolist()


@default_length
def test_min_length_if_input_embeds(llama: PreTrainedModel) -> None:
    """min_length counts the prompt in both forms: EOS is held back for as many tokens."""
    eos = int(plain(llama, IDS, max_new_tokens=1)[0, -1])
    arguments = {"min_length": PROMPT + 4, "eos_token_id": eos}
    output = llama.generate(input_ids=IDS, **arguments)
    embedded = llama.generate(inputs_embeds=embed(llama, IDS), **arguments)
    assert output.shape[1] == PROMPT + embedded.shape[1] >= PROMPT + 4
    assert output[:, PROMPT:].tolist() == embedded.tolist()


def test_generate_inputs_embeds_one_token(llama: PreTrainedModel) -> None:
    """A prompt of one embedding is a prompt, not a continuation."""
    one = IDS[:, :1]
    output = llama.generate(inputs_embeds=embed(llama, one), do_sample=False, max_length=15)
    assert output.tolist() == plain(llama, one, do_sample=False, max_length=15)[:, 1:].tolist()


def test_generate_from_inputs_embeds_with_bos_token_id_is_none(llama: PreTrainedModel) -> None:
    """Embeddings need no BOS; nothing at all does."""
    output = llama.generate(inputs_embeds=embed(llama, IDS), max_length=20, bos_token_id=None)
    assert output.shape == (1, 20 - PROMPT)
    with pytest.raises(ValueError, match="bos_token_id"):
        llama.generate(max_length=20, bos_token_id=None)


def test_assisted_generation_early_exit(bare_llama: PreTrainedModel) -> None:
    """Drafts of the first layers change no token; and the config still says how many layers there are."""
    output = bare_llama.generate(IDS, do_sample=False, max_new_tokens=20, assistant_early_exit=1)
    assert output.tolist() == plain(bare_llama, IDS, do_sample=False, max_new_tokens=20).tolist()
    assert bare_llama.config.num_hidden_layers == 3


def test_custom_stopping_criteria_overload_error(llama: PreTrainedModel) -> None:
    """A criterion that generate() also makes by itself is warned about; the custom one counts."""
    criteria = StoppingCriteriaList([MaxLengthCriteria(max_length=18)])
    with warnings_of(GENERATE) as said:
        output = llama.generate(IDS, stopping_criteria=criteria, max_length=14)
    assert output.shape == (1, 18)
    assert sum("custom stopping criteria of type" in message and "MaxLength" in message for message in said) == 1


class LongerThan(StoppingCriteria):
    """Ends everything at a length; answers with one bool, as old criteria do."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> bool:
        return input_ids.shape[-1] >= self._length


@pytest.mark.parametrize("max_length", [22, 18])
def test_custom_stopping_criteria(max_length: int, llama: PreTrainedModel) -> None:
    """Whichever of criterion and max_length comes first."""
    output = llama.generate(IDS, stopping_criteria=[LongerThan(20)], max_length=max_length)
    assert output.tolist() == plain(llama, IDS, max_length=min(20, max_length)).tolist()


class LastTokenIsOdd(StoppingCriteria):
    """Ends each row for itself."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids[:, -1] % 2 == 1


@pytest.mark.parametrize("eos_token_id", [None, -1])
def test_custom_stopping_criteria_per_row(eos_token_id: int | None, llama: PreTrainedModel) -> None:
    """Without an EOS id transformers lets rows that are done run on; with one it pads them."""
    arguments = {**prompts(3), "max_new_tokens": 12, "eos_token_id": eos_token_id, "pad_token_id": 0}
    expected = plain(llama, **arguments, stopping_criteria=[LastTokenIsOdd()])
    assert expected.shape[1] < PROMPT + 12
    assert llama.generate(**arguments, stopping_criteria=[LastTokenIsOdd()]).tolist() == expected.tolist()


def test_max_time(llama: PreTrainedModel) -> None:
    """Time that is up at once leaves at least the first token, and all of max_new_tokens if there is plenty."""
    assert llama.generate(IDS, max_new_tokens=12, max_time=600.0).shape == (1, PROMPT + 12)
    # A block of accepted tokens is one step, as in transformers' own assisted generation.
    assert PROMPT < llama.generate(IDS, max_new_tokens=12, max_time=1e-9).shape[1] < PROMPT + 12


def test_stop_sequence_stopping_criteria(writer: Writer, side: Side) -> None:
    """The pipeline generates, and stops at a sequence."""
    generator = pipeline("text-generation", model=writer.target, tokenizer=writer.tokenizer)
    prompt = "def fibonacci(n):"
    with Forwards(writer.target) as forwards:
        (output,) = generator(prompt, max_new_tokens=16, do_sample=False)
    ids = plain(writer.target, **writer.tokens(prompt), max_new_tokens=16, do_sample=False)
    text = writer.tokenizer.decode(ids[0], skip_special_tokens=True)
    assert output == {"generated_text": text}
    if side.name == "control":
        assert forwards.count == ids.shape[1] - writer.tokens(prompt)["input_ids"].shape[1]
    sequence = text[len(prompt) :].split()[1]  # the second word that it writes
    (output,) = generator(prompt, stop_sequence=sequence, do_sample=False, max_new_tokens=16)
    assert output["generated_text"] == text[: text.index(sequence, len(prompt)) + len(sequence)]


def test_pipeline_of_a_batch(writer: Writer) -> None:
    """The pipeline pads at the left; each text is what its prompt gives alone."""
    given = ["def fibonacci(n):", "import os\nimport"]
    generator = pipeline("text-generation", model=writer.target, tokenizer=writer.tokenizer)
    outputs = generator(given, batch_size=2, max_new_tokens=8, do_sample=False, return_full_text=False)
    for prompt, (output,) in zip(given, outputs, strict=True):
        inputs = writer.tokens(prompt)
        ids = plain(writer.target, **inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert output == {"generated_text": writer.tokenizer.decode(ids, skip_special_tokens=True)}


def test_pipeline_that_samples(writer: Writer) -> None:
    """As the pipeline does by default; several texts of one prompt."""
    generator = pipeline("text-generation", model=writer.target, tokenizer=writer.tokenizer)
    outputs = generator("def f(", num_return_sequences=3, max_new_tokens=6)
    texts = [output["generated_text"] for output in outputs]
    assert len(set(texts)) > 1
    assert all(text.startswith("def f(") for text in texts)


def test_pipeline_with_an_assistant(bare_writer: Writer) -> None:
    target, draft, tokenizer = bare_writer
    generator = pipeline("text-generation", model=target, tokenizer=tokenizer, assistant_model=draft)
    (output,) = generator("def fibonacci(n):", max_new_tokens=8, do_sample=False)
    ids = plain(target, **bare_writer.tokens("def fibonacci(n):"), max_new_tokens=8, do_sample=False)
    assert output == {"generated_text": tokenizer.decode(ids[0], skip_special_tokens=True)}


def test_per_row_stopping_criteria(writer: Writer) -> None:
    """A stop string ends its row; the others go on, and the row is padded."""
    inputs = writer.tokens(["def fibonacci(n):", "class A:\n    def __init__(self", "import os\nimport"])
    arguments = {**inputs, "max_new_tokens": 12, "do_sample": False}
    free = plain(writer.target, **arguments)
    words = writer.tokenizer.decode(free[1, inputs["input_ids"].shape[1] :]).split()
    strings = {"stop_strings": [words[0]], "tokenizer": writer.tokenizer}
    expected = plain(writer.target, **arguments, **strings)
    pad = writer.tokenizer.pad_token_id
    assert [int(row[-1] == pad) for row in expected] == [0, 1, 0]
    assert not (free == pad)[:, -1].any()
    assert writer.target.generate(**arguments, **strings).tolist() == expected.tolist()


def test_logits_processor_not_inplace(llama: PreTrainedModel) -> None:
    """Without a processor, scores are logits; with one, the logits stay what they were."""
    arguments = {"output_logits": True, **SCORES, "max_new_tokens": 8}
    output = llama.generate(IDS, **arguments)
    warm = llama.generate(IDS, temperature=0.5, do_sample=True, **arguments)
    assert output.logits[-1].tolist() == output.scores[-1].tolist()
    assert warm.logits[-1].tolist() != warm.scores[-1].tolist()
    torch.testing.assert_close(warm.logits[0], output.logits[0], **TOLERANCE)


def test_a_pad_token_outside_the_vocabulary(llama: PreTrainedModel) -> None:
    """Nothing is padded in a batch of one, so it does not matter which token it would be."""
    eos = int(plain(llama, IDS, max_new_tokens=5)[0, -1])
    output = llama.generate(IDS, **SCORES, eos_token_id=eos, pad_token_id=500, max_new_tokens=12)
    assert output.sequences.tolist() == plain(llama, IDS, max_new_tokens=5).tolist()
    assert len(output.scores) == 5


def test_eos_token_id_int_and_list_top_k_top_sampling(llama: PreTrainedModel) -> None:
    """Sampling ends behind one of the EOS ids, or at the length limit."""
    for eos in (40, [40, 41], list(range(30, 60))):
        output = llama.generate(IDS, do_sample=True, top_k=0, eos_token_id=eos, max_new_tokens=30)[0, PROMPT:]
        ends = torch.isin(output, torch.tensor(eos))
        assert not ends[:-1].any()
        assert ends[-1] or len(output) == 30
    assert len(output) < 30, "the last case would end early but for a miracle"


def test_eos_token_id_int_and_list_greedy_search(llama: PreTrainedModel) -> None:
    free = plain(llama, IDS, max_new_tokens=12)
    eos = int(free[0, PROMPT + 6])
    assert eos not in free[0, PROMPT : PROMPT + 6]
    for ids in (eos, [eos, 1], [1, eos]):
        output = llama.generate(IDS, eos_token_id=ids, do_sample=False, max_new_tokens=12)
        assert output.tolist() == free[:, : PROMPT + 7].tolist()


def test_default_max_length_warning(llama: PreTrainedModel, recwarn: pytest.WarningsRecorder) -> None:
    """Twenty new tokens, with a warning, unless something sets a length."""
    with pytest.warns(UserWarning, match="default `max_length`"):
        assert llama.generate(IDS).shape == (1, PROMPT + 20)
    assert llama.generate(IDS, max_length=20).shape == (1, 20)
    llama.generation_config.max_length = 15
    assert llama.generate(IDS).shape == (1, 15)
    assert len(recwarn) == 0


def test_model_generation_config_can_override_defaults(llama: PreTrainedModel) -> None:
    llama.generation_config.max_new_tokens = 30
    output = llama.generate(**INPUTS, do_sample=False)
    assert output.shape == (2, PROMPT + 30)
    assert output.tolist() == plain(llama, **INPUTS, do_sample=False).tolist()


def test_length_warning_assisted_generation(bare_llama: PreTrainedModel, recwarn: pytest.WarningsRecorder) -> None:
    """min_new_tokens is feasible for the output, so nobody is warned about the draft's shorter calls."""
    draft = tiny("llama", noise=0.02)
    bare_llama.generate(IDS, assistant_model=draft, min_new_tokens=5, max_length=20)
    assert len(recwarn) == 0


@default_length
def test_generated_length_assisted_generation(bare_llama: PreTrainedModel) -> None:
    eos = int(plain(bare_llama, IDS, max_new_tokens=4)[0, -1])  # would end the text early
    draft, arguments = tiny("llama", noise=0.02), {"eos_token_id": eos}
    output = bare_llama.generate(IDS, assistant_model=draft, min_new_tokens=10, max_new_tokens=20, **arguments)
    assert PROMPT + 10 <= output.shape[1] <= PROMPT + 20
    output = bare_llama.generate(IDS, assistant_model=draft, min_new_tokens=10, **arguments)
    assert PROMPT + 10 <= output.shape[1] <= PROMPT + 20
    output = bare_llama.generate(IDS, assistant_model=draft, max_new_tokens=7, **arguments)
    assert output.shape[1] == PROMPT + 4


def test_model_kwarg_assisted_decoding_decoder_only(bare_side: Side) -> None:
    """token_type_ids reach the target: they change the text, and assisted text follows."""
    target, draft = copy.deepcopy(tiny("gpt2")), tiny("gpt2", noise=0.02)
    arguments = {"input_ids": IDS, "max_new_tokens": 12, "do_sample": False}
    types = torch.zeros_like(IDS)
    without = plain(target, **arguments)
    expected = plain(target, **arguments, token_type_ids=types)
    assert expected.tolist() != without.tolist()
    with bare_side.attach(target, draft):
        assert target.generate(**arguments, token_type_ids=types).tolist() == expected.tolist()
        assisted = target.generate(**arguments, token_type_ids=types, assistant_model=draft)
    assert assisted.tolist() == expected.tolist()


def test_speculative_decoding_equals_regular_decoding(bare_writer: Writer) -> None:
    """A trained pair, prompts of random tokens. (The peer's pair has two tokenizers; see LEFT_OUT.md.)"""
    target, draft, _ = bare_writer
    draft.generation_config.num_assistant_tokens = 4
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    for length, max_new_tokens in ((20, 10), (70, 24)):
        ids = torch.randint(50, 1000, (1, length))
        arguments = {"input_ids": ids, "do_sample": False, "max_new_tokens": max_new_tokens}
        expected = plain(target, **arguments)
        with Forwards(target) as forwards:
            output = target.generate(**arguments, assistant_model=draft)
        assert output.tolist() == expected.tolist()
        assert forwards.count < max_new_tokens


REPETITIVE = "self.a = a\nself.b = b\nself.a = a\nself.b = b\nself.a"


def test_prompt_lookup_speculates(bare_writer: Writer) -> None:
    """On text that repeats itself, lookup needs fewer forwards than it returns tokens; on transformers as well."""
    inputs = bare_writer.tokens(REPETITIVE)
    arguments = {**inputs, "do_sample": False, "max_new_tokens": 12}
    with Forwards(bare_writer.target) as forwards:
        output = bare_writer.target.generate(**arguments, prompt_lookup_num_tokens=4)
    assert output.tolist() == plain(bare_writer.target, **arguments).tolist()
    assert forwards.count < output.shape[1] - inputs["input_ids"].shape[1]


@pytest.mark.parametrize("side", [Side("model"), Side("ngram")], ids=["model", "ngram"])
def test_what_is_attached_speculates(writer: Writer, side: Side) -> None:
    """The suite's drafters are not idle: with either of them there are fewer forwards than tokens."""
    with Forwards(writer.target) as forwards:
        writer.target.generate(**writer.tokens(REPETITIVE), do_sample=False, min_new_tokens=12, max_new_tokens=12)
    assert forwards.count < 12


def test_compare_unprocessed_logit_scores(llama: PreTrainedModel) -> None:
    """output_logits is what the model's forward gives, sampled or not."""
    with torch.no_grad():
        expected = llama(IDS).logits[:, -1].float()
    output = llama.generate(IDS, return_dict_in_generate=True, output_logits=True, max_new_tokens=1, do_sample=True)
    torch.testing.assert_close(output.logits[0], expected, **TOLERANCE)


def test_return_unprocessed_logit_scores(llama: PreTrainedModel) -> None:
    arguments = {"output_logits": True, **SCORES, "max_new_tokens": 6, "do_sample": False}
    output = llama.generate(IDS, **arguments, bad_words_ids=[[0], [1], [2]])
    for logits, scores in zip(output.logits, output.scores, strict=True):
        assert scores[:, :3].isneginf().all()
        assert logits[:, 3:].tolist() == scores[:, 3:].tolist()
        assert logits.isfinite().all()
    output = llama.generate(IDS, **arguments)
    for logits, scores in zip(output.logits, output.scores, strict=True):
        assert logits.tolist() == scores.tolist()


def test_special_tokens_fall_back_to_model_default(llama: PreTrainedModel) -> None:
    """A config without BOS takes the model's, and is not changed by that."""
    llama.generation_config.bos_token_id = 7
    length = {"max_new_tokens": 3}
    assert llama.generate(**length)[0, 0] == 7
    assert llama.generate(generation_config=GenerationConfig(bos_token_id=50, **length))[0, 0] == 50
    config = GenerationConfig(bos_token_id=None, **length)
    assert llama.generate(generation_config=config)[0, 0] == 7
    llama.generation_config.bos_token_id = 50
    assert llama.generate(generation_config=config)[0, 0] == 50
    assert config.bos_token_id is None


def test_validate_generation_inputs(llama: PreTrainedModel, side: Side) -> None:
    """Typos and arguments that nobody uses are errors; the model's own arguments are not."""
    with pytest.raises(ValueError, match="do_samples"):
        llama.generate(IDS, do_samples=True)
    with pytest.raises(ValueError, match="foo") as caught:
        llama.generate(IDS, foo="bar")
    assert isinstance(caught.value, specdec.OptionError) == side.is_ours
    assert llama.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2).shape == (1, PROMPT + 2)


def test_custom_logits_processor(llama: PreTrainedModel) -> None:
    """A processor that generate() also makes by itself is warned about; the custom one counts, alone as well."""
    eos = int(plain(llama, IDS, max_new_tokens=1)[0, -1])
    arguments = {"eos_token_id": eos, "max_new_tokens": 12}
    processors = LogitsProcessorList([MinLengthLogitsProcessor(min_length=PROMPT + 5, eos_token_id=eos)])
    with warnings_of(GENERATE) as said:
        output = llama.generate(IDS, logits_processor=processors, min_length=PROMPT + 2, **arguments)
    assert sum("custom logits processor of type" in message and "MinLength" in message for message in said) == 1
    assert output.shape[1] >= PROMPT + 5
    with warnings_of(GENERATE) as said:
        alone = llama.generate(IDS, logits_processor=processors, **arguments)
    assert said == []
    assert alone.tolist() == output.tolist() == plain(llama, IDS, min_length=PROMPT + 5, **arguments).tolist()


def test_transition_scores_greedy_search(llama: PreTrainedModel) -> None:
    """compute_transition_scores() reads the output: the score of each token that was taken."""
    output = llama.generate(**INPUTS, **SCORES, max_new_tokens=8, do_sample=False)
    expected = torch.stack(output.scores, 1).max(2).values
    torch.testing.assert_close(llama.compute_transition_scores(output.sequences, output.scores), expected)


@pytest.mark.parametrize("sampling", [{"do_sample": False}, {"do_sample": True, "top_k": 5}])
def test_transition_scores_greedy_search_normalized(sampling: dict[str, Any], llama: PreTrainedModel) -> None:
    """Normalised: the log-probability that each token had, from a forward over the finished text."""
    output = llama.generate(**INPUTS, **SCORES, **sampling, max_new_tokens=8)
    found = llama.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    new = output.sequences[:, PROMPT:]
    mask = torch.nn.functional.pad(INPUTS["attention_mask"], (0, new.shape[1]), value=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = llama(output.sequences, attention_mask=mask, position_ids=positions).logits[:, PROMPT - 1 : -1].float()
    if "top_k" in sampling:
        logits = logits.masked_fill(logits < logits.topk(5).values[..., -1:], float("-inf"))
    expected = logits.log_softmax(-1).gather(2, new[:, :, None])[:, :, 0]
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_generate_input_ids_as_kwarg(llama: PreTrainedModel) -> None:
    output = llama.generate(IDS, max_length=15)
    assert output.shape == (1, 15)
    assert output.tolist() == llama.generate(input_ids=IDS, max_length=15).tolist()


def test_generate_inputs_and_encoder_kwargs(llama: PreTrainedModel) -> None:
    """The prompt given twice is an error."""
    with pytest.raises(ValueError, match="input_ids"):
        llama.generate(IDS, input_ids=IDS, max_length=15)


def test_generate_can_restart_from_cache_and_new_tokens_only(llama: PreTrainedModel) -> None:
    """With a mask for the whole sequence, the tokens may be the whole sequence or only those behind the cache."""
    arguments = {**SCORES, "use_cache": True, "do_sample": False}
    mask = torch.ones_like(IDS)
    begun = llama.generate(IDS, attention_mask=mask, **arguments, max_new_tokens=4)
    expected = llama.generate(IDS, attention_mask=mask, **arguments, max_new_tokens=8)
    arguments = {**arguments, "attention_mask": torch.ones(1, PROMPT + 4, dtype=torch.int64), "max_new_tokens": 4}
    first, expected.scores = expected.sequences, expected.scores[4:]

    whole = llama.generate(begun.sequences, past_key_values=copy.deepcopy(begun.past_key_values), **arguments)
    assert_same_outputs(whole, expected)
    assert_same_caches(whole.past_key_values, expected.past_key_values)

    last = begun.sequences[:, -1:]
    rest = llama.generate(last, past_key_values=copy.deepcopy(begun.past_key_values), **arguments)
    expected.sequences = first[:, -5:]  # the token that was given, and the new ones
    assert_same_outputs(rest, expected)
    assert_same_caches(rest.past_key_values, expected.past_key_values)


def test_green_red_watermark_generation(llama: PreTrainedModel) -> None:
    """Given as an object or as a dict; and the detector finds the watermark, not in other text."""
    arguments = {"do_sample": False, "max_new_tokens": 40}
    config = {"bias": 8.0, "context_width": 1, "seeding_scheme": "selfhash", "greenlist_ratio": 0.25}
    output = llama.generate(IDS, watermarking_config=WatermarkingConfig(**config), **arguments)
    assert output.tolist() == plain(llama, IDS, watermarking_config=WatermarkingConfig(**config), **arguments).tolist()
    assert output.tolist() == llama.generate(IDS, watermarking_config=config, **arguments).tolist()
    llama.config.bos_token_id = 1  # the detector cannot do without one
    detector = WatermarkDetector(llama.config, "cpu", {**config, "hashing_key": 15485863})
    unmarked = llama.generate(IDS, **arguments)
    found = [detector(ids[:, PROMPT:], return_dict=True).prediction.tolist() for ids in (output, unmarked)]
    assert found == [[True], [False]]
