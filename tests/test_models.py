"""Every kind of memory, end to end: greedy output equals transformers', token for token, or the model is refused."""

from __future__ import annotations

import copy
import logging
import pathlib
import re
from functools import cache
from typing import Any

import families
import pytest
import torch
from equality.coupling import GumbelChoice, GumbelNoise
from families import ARCHITECTURES, NEW_TOKENS, family, inputs
from lossless.registry import EACH_CHANGE
from models import prompts
from torch import Tensor
from transformers import LogitsProcessorList, WhisperForCausalLM
from typer.testing import CliRunner

import specdec
from specdec import decode as decoding
from specdec.cli import app

WORKING = families.names("attention", "sliding", "moe", "recurrent", "encoder-decoder")
LEVEL = {"bloom", "falcon_alibi", "t5", "bart"}  # a round ends where the slowest row's does
FORGETFUL = {"mamba", "falcon_mamba", "jamba"}  # a cached forward of several tokens drops their state


@cache
def reference(name: str, batch_size: int) -> Tensor:
    return family(name).generate(**inputs(name, batch_size), max_new_tokens=NEW_TOKENS, do_sample=False)


def drafter(kind: str, name: str) -> specdec.Drafter:
    if kind == "ngram":
        return specdec.NgramDrafter(min_ngram=1)
    return specdec.ModelDrafter(family(name, ARCHITECTURES[name].noise if kind == "model" else 0.0))


def decode(name: str, batch_size: int, draft: specdec.Drafter | None, **kwargs: Any) -> tuple[Tensor, Any]:
    """The output and its statistics, which Whisper's generate does not return."""
    stats: list[specdec.SpeculationStats] = []
    arguments = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "num_draft_tokens": 4, **kwargs}
    out = specdec.generate(family(name), **inputs(name, batch_size), **arguments, drafter=draft, on_finish=stats.append)
    return out, stats[0]


def settings() -> list[Any]:
    """At each change ragged rows of all families, one row of a few; a draft that is the target itself is long."""
    each_change = {("model", 3): WORKING, ("ngram", 3): WORKING, ("model", 1): [*EACH_CHANGE, *FORGETFUL]}
    return [
        pytest.param(name, kind, n, marks=() if name in each_change.get((kind, n), ()) else pytest.mark.long)
        for name in WORKING
        for kind in ("model", "ngram", "self")
        for n in (1, 3)
    ]


@pytest.mark.parametrize(("name", "kind", "batch_size"), settings())
def test_equals_generate(name: str, kind: str, batch_size: int) -> None:
    """48 tokens, past windows and chunks of 8; rejections and full acceptances both happen."""
    out, stats = decode(name, batch_size, drafter(kind, name))
    assert torch.equal(out, reference(name, batch_size))
    if name in FORGETFUL:
        assert stats.drafted == 0
    elif kind == "self":
        assert stats.acceptance_rate == 1.0
        assert stats.rounds == -(-(NEW_TOKENS - 1) // 5)
    elif kind == "model":
        assert 0.05 < stats.acceptance_rate < 0.95
        assert stats.accepted_per_depth[-1] > 0 or (batch_size > 1 and name in LEVEL)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in EACH_CHANGE else pytest.mark.long) for n in WORKING])
def test_auto_number_of_draft_tokens(name: str) -> None:
    """Any number from round to round, down to none, changes no token."""
    out, _ = decode(name, 3, drafter("model", name), num_draft_tokens="auto")
    assert torch.equal(out, reference(name, 3))


@pytest.mark.parametrize("name", ["mistral", "gemma2", "mamba2", "falcon_h1", "qwen3_next", "bloom", "t5", "whisper"])
def test_rows_end_one_by_one(name: str) -> None:
    """Rows that leave the batch take their windows, states and cross-attention along."""
    free = reference(name, 3)[:, -NEW_TOKENS:]
    eos = [int(free[0, 17]), int(free[-1, 29])]
    arguments = {"eos_token_id": eos, "pad_token_id": 0}
    expected = family(name).generate(**inputs(name, 3), max_new_tokens=NEW_TOKENS, do_sample=False, **arguments)
    out, _ = decode(name, 3, drafter("model", name), **arguments)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("choice", [pytest.param(GumbelNoise, marks=pytest.mark.long), GumbelChoice])
@pytest.mark.parametrize("rule", ["rejection", "block"])
@pytest.mark.parametrize("name", ["gemma2", "mamba2", "falcon_h1", "bloom", "bart", "whisper"])
def test_sampling_is_coupled(name: str, rule: Any, choice: type[GumbelNoise]) -> None:
    """Randomness that is a function of the text gives one text: greedy under noise, and through the rule itself."""
    noisy = {"logits_processor": LogitsProcessorList([GumbelNoise()]), "do_sample": False}
    expected = family(name).generate(**inputs(name, 3), max_new_tokens=NEW_TOKENS, **noisy)
    arguments = {"logits_processor": LogitsProcessorList([choice()]), "do_sample": choice is GumbelChoice}
    if choice is GumbelChoice:
        arguments |= {"top_k": 0}
    stats: list[specdec.SpeculationStats] = []
    out = specdec.generate(
        family(name), **inputs(name, 3), **arguments, drafter=drafter("model", name), num_draft_tokens=4, rule=rule,
        max_new_tokens=NEW_TOKENS, on_finish=stats.append,
    )  # fmt: skip
    assert torch.equal(out, expected)
    assert stats[0].accepted > 0


_TARGETS, _DRAFTS = "llama mamba2 mistral t5 bloom".split(), "mamba2 mamba mistral bloom gemma2 lfm2".split()
_PAIRS = [  # each of them at each change, all pairs in the long run
    pytest.param(target, draft, marks=() if (i + j) % 3 == 0 else pytest.mark.long)
    for i, target in enumerate(_TARGETS)
    for j, draft in enumerate(_DRAFTS)
]


@pytest.mark.parametrize(("target", "draft"), _PAIRS)
def test_any_memory_drafts_for_any_other(target: str, draft: str) -> None:
    """They share nothing but the vocabulary; a bad draft costs time, never a token."""
    out, stats = decode(target, 3, specdec.ModelDrafter(family(draft)))
    assert torch.equal(out, reference(target, 3))
    assert stats.drafted > 0


def test_a_draft_without_an_encoder_reads_the_targets() -> None:
    """distil-whisper's decoder alone drafts for Whisper; a language model drafts for T5."""
    target = family("whisper")
    draft = WhisperForCausalLM(copy.deepcopy(target.config)).to(target.dtype).eval()
    draft.model.decoder.load_state_dict(target.model.decoder.state_dict())
    draft.proj_out.load_state_dict(target.proj_out.state_dict())
    out, stats = decode("whisper", 3, specdec.ModelDrafter(draft))
    assert torch.equal(out, reference("whisper", 3))
    assert stats.acceptance_rate == 1.0


def test_a_draft_with_an_encoder_needs_a_target_with_one() -> None:
    with pytest.raises(specdec.DraftMismatchError, match="decoder-only draft"):
        decode("llama", 1, specdec.ModelDrafter(family("t5")))


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_the_encoder_runs_once(name: str) -> None:
    """And the cross-attention's keys are made once, for all tokens and rounds."""
    model, calls = family(name), {"encoder": 0, "keys": 0}
    keys = next(m for n, m in model.named_modules() if re.search(r"(EncDecAttention\.k|encoder_attn\.k_proj)$", n))

    def count(what: str) -> Any:
        return lambda *_: calls.update({what: calls[what] + 1})

    decode(name, 1, None, max_new_tokens=2)  # probed
    handles = [model.get_encoder().register_forward_hook(count("encoder")), keys.register_forward_hook(count("keys"))]
    decode(name, 3, specdec.NgramDrafter(min_ngram=1))
    for handle in handles:
        handle.remove()
    assert calls == {"encoder": 1, "keys": 1}


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoder_outputs(name: str) -> None:
    """The output class of transformers, with its scores and the decoder's beginning that the user chose."""
    start = torch.tensor([[family(name).config.decoder_start_token_id, 7, 8]]).expand(2, -1)
    arguments = {"decoder_input_ids": start, "max_new_tokens": 20, "return_dict_in_generate": True}
    arguments |= {"output_scores": True, "output_logits": True, "output_hidden_states": True, "num_return_sequences": 2}
    arguments |= {"do_sample": True, "top_k": 1}
    expected = family(name).generate(**inputs(name, 2), **arguments)
    out = specdec.generate(family(name), **inputs(name, 2), **arguments, drafter=drafter("model", name))
    assert isinstance(out, specdec.SpeculativeEncoderDecoderOutput)
    assert torch.equal(out.sequences, expected.sequences)
    for field in ("scores", "logits", "encoder_hidden_states"):
        for one, two in zip(getattr(out, field), getattr(expected, field), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    for ours, theirs in zip(out.decoder_hidden_states, expected.decoder_hidden_states, strict=True):
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", [5, 9])
def test_where_an_encoder_decoder_begins(start: int) -> None:
    arguments = {**inputs("t5", 2), "decoder_start_token_id": start, "max_new_tokens": 12}
    out = specdec.generate(family("t5"), **arguments, drafter=family("t5"))
    assert torch.equal(out, family("t5").generate(**arguments))
    assert (out[:, 0] == start).all()


def test_padded_beginnings_of_a_decoder() -> None:
    """T5's positions are relative, so padding does no harm; Bart counts it, and refuses."""
    ids = torch.tensor([[5, 6, 7], [0, 5, 9]])
    arguments = {"decoder_input_ids": ids, "decoder_attention_mask": (ids != 0).long(), "max_new_tokens": 20}
    arguments |= {"decoder_start_token_id": torch.tensor([5, 0])}
    target = family("t5")
    out = specdec.generate(target, **inputs("t5", 2), **arguments, drafter=drafter("model", "t5"))
    assert torch.equal(out, target.generate(**inputs("t5", 2), **arguments))
    with pytest.raises(specdec.InputError, match="one length"):
        specdec.generate(family("bart"), **inputs("bart", 2), **arguments)


@pytest.mark.parametrize("name", sorted(FORGETFUL))
def test_a_forgetful_model_is_decoded_plainly_and_says_so(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_WARNED", set())
    with caplog.at_level(logging.WARNING, "specdec"):
        for _ in range(2):
            out, stats = decode(name, 3, drafter("self", name))
    assert torch.equal(out, reference(name, 3))
    assert stats.drafted == 0
    assert [r.message for r in caplog.records if "without them" in r.message] == [caplog.records[-1].message]


REFUSED = {
    "recurrent_gemma": "state outside its cache",
    "rwkv": "takes no cache",
    "xlstm": "cannot be rolled back",
    "gpt_neo": "local attention",
}


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, role: str) -> None:
    """As target and as draft, by an error that says why and what to use."""
    assert set(REFUSED) == set(families.names("refused"))
    target, draft = (family(name), None) if role == "target" else (family("llama"), family(name))
    with pytest.raises(specdec.UnsupportedModelError, match=REFUSED[name]) as caught:
        specdec.generate(target, prompts(1)["input_ids"], drafter=draft, max_new_tokens=4)
    assert "model.generate()" in str(caught.value)


@pytest.mark.parametrize("kind", ["quantized", "offloaded", "offloaded_static"])
@pytest.mark.parametrize("name", ["gemma2", "falcon_h1"])
def test_other_caches_are_refused_by_name(name: str, kind: str) -> None:
    with pytest.raises(specdec.UnsupportedOptionError, match=kind):
        specdec.generate(family(name), **prompts(1), cache_implementation=kind, max_new_tokens=4)


@pytest.mark.parametrize("name", ["mistral", "mamba2", "t5"])
def test_a_cache_that_cannot_be_taken_over(name: str) -> None:
    model = family(name)
    output = model.generate(**inputs(name, 1), max_new_tokens=4, return_dict_in_generate=True)
    with pytest.raises(specdec.UnsupportedOptionError, match="past_key_values"):
        specdec.generate(model, **inputs(name, 1), past_key_values=output.past_key_values, max_new_tokens=4)


@pytest.mark.parametrize("advance_window", [0, 1, 3, 100])
@pytest.mark.parametrize("name", ["mamba2", "falcon_h1"])
def test_pending_tokens_are_bounded(name: str, advance_window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a row waits for its snapshot to move on, the output stays; the bound bounds what it feeds again."""
    widths: list[int] = []
    forward = decoding.ModelRunner.forward

    def watch(self: Any, window: Any, *args: Any, **kwargs: Any) -> Any:
        widths.append(window.tokens.shape[1])
        return forward(self, window, *args, **kwargs)

    monkeypatch.setattr("specdec.decode.ADVANCE_WINDOW", advance_window)
    monkeypatch.setattr(decoding.ModelRunner, "forward", watch)
    out, stats = decode(name, 3, drafter("ngram", name))
    assert torch.equal(out, reference(name, 3))
    longest = inputs(name, 1)["input_ids"].shape[1]
    assert max(widths) <= max(longest, advance_window + 1 + 4 + 4)
    assert stats.refed_tokens > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_page_says_what_the_probe_finds(name: str) -> None:
    """docs/models.md has a row for every family, with the drafts and batches that its model admits."""
    page = (pathlib.Path(__file__).parent.parent / "docs" / "models.md").read_text()
    (row,) = re.findall(rf"^\| {name} \|.*$", page, re.MULTILINE)
    found = specdec.capabilities(family(name))
    assert [cell.strip() for cell in row.split("|")][-3:-1] == [found.drafts, found.batches]
    assert (found.reason is not None) == (found.drafts == "refused") == (name in REFUSED)


def test_capabilities_change_nothing() -> None:
    """Neither the model, its config, nor the global generator."""
    model = family("falcon_h1")
    config, state = copy.deepcopy(model.config.to_dict()), torch.get_rng_state()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    specdec.capabilities(model)
    assert model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "drafts", "status"),
    [
        ("gemma2", "trees of drafts", 0),
        ("mamba", "no drafts", 0),
        ("t5", "slowest row", 0),
        ("recurrent_gemma", "why", 1),
    ],
)
def test_check_command(name: str, drafts: str, status: int, tmp_path: pathlib.Path) -> None:
    family(name).save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--dtype", "float32"])
    assert result.exit_code == status, result.output
    assert drafts in result.output
    assert type(family(name)).__name__ in result.output


def test_check_command_says_what_is_wrong(tmp_path: pathlib.Path) -> None:
    result = CliRunner().invoke(app, ["check", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "error:" in result.output
    assert CliRunner().invoke(app, ["check", "--dtype", "float8"]).exit_code == 2


@pytest.mark.parametrize("name", ["bloom", "mamba2", "falcon_h1", "gemma2", "mamba"])
def test_hidden_states_of_ragged_prompts(name: str) -> None:
    """Prompts that are fed in parts, or behind padding, show the states that transformers shows."""
    arguments = {**inputs(name, 3), "max_new_tokens": 12, "return_dict_in_generate": True, "output_hidden_states": True}
    expected = family(name).generate(**arguments)
    out = specdec.generate(family(name), **arguments, drafter=drafter("model", name), num_draft_tokens=4)
    assert torch.equal(out.sequences, expected.sequences)
    mask = inputs(name, 3)["attention_mask"].bool()
    for step, (ours, theirs) in enumerate(zip(out.hidden_states, expected.hidden_states, strict=True)):
        for one, two in zip(ours, theirs, strict=True):
            seen = mask if step == 0 else torch.ones(3, 1, dtype=torch.bool)
            torch.testing.assert_close(one[seen], two[seen], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["recurrent_gemma", "xlstm"])
def test_training_mode_excuses_nothing(name: str) -> None:
    """Without dropout there is an output to be equal to."""
    model = copy.deepcopy(family(name)).train()
    with pytest.raises(specdec.UnsupportedModelError):
        specdec.generate(model, prompts(1)["input_ids"], max_new_tokens=4)


def test_other_inputs_of_an_encoder() -> None:
    """Embeddings, or what the encoder has made already."""
    target, given = family("t5"), inputs("t5", 3)
    embeds = target.get_input_embeddings()(given["input_ids"])
    encoded = target.get_encoder()(**given)
    for other in ({"inputs_embeds": embeds}, {"encoder_outputs": encoded}):
        arguments = {**other, "attention_mask": given["attention_mask"], "max_new_tokens": 20}
        expected = target.generate(**arguments)
        assert torch.equal(specdec.generate(target, **arguments, drafter=family("llama")), expected)
        with pytest.raises(specdec.DraftMismatchError, match="input_ids"):
            specdec.generate(target, **arguments, drafter=family("t5", 0.02))


def test_drafts_of_another_family_are_refused() -> None:
    target = family("whisper")
    with pytest.raises(specdec.DraftMismatchError, match="encoder reads"):
        decode("whisper", 1, specdec.ModelDrafter(family("t5")))
    config = copy.deepcopy(target.config)
    config.d_model = 2 * config.d_model
    with pytest.raises(specdec.DraftMismatchError, match="width"):
        decode("whisper", 1, specdec.ModelDrafter(WhisperForCausalLM(config).to(target.dtype).eval()))


def alike(one: Any, other: Any) -> bool:
    """The same tensors in the same structure."""
    if isinstance(one, Tensor):
        return torch.allclose(one.double(), other.double(), atol=1e-6)
    if isinstance(one, dict):
        return all(alike(one[k], other[k]) for k in one.keys() - {"past_key_values"})
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


@pytest.mark.parametrize(
    ("segments", "options"),
    [
        (1, {"return_dict_in_generate": True, "output_scores": True}),
        (1, {"return_timestamps": True}),
        (1, {"return_timestamps": True, "return_segments": True}),
        (3, {"return_timestamps": True}),
    ],
    ids=["scores", "timestamps", "segments", "long"],
)
def test_whisper_decides_what_it_returns(segments: int, options: dict[str, Any]) -> None:
    """Its own generate() calls the decoder once a segment, and cuts what that returns."""
    target = copy.deepcopy(family("whisper"))
    config = target.generation_config
    config.no_timestamps_token_id, config.is_multilingual, config.eos_token_id = 80, False, 3
    config.bos_token_id = config.decoder_start_token_id = 1
    features = torch.cat([inputs("whisper", 2)["input_features"]] * segments, dim=2)
    arguments = {"input_features": features, "attention_mask": torch.ones(2, features.shape[2]), **options}
    expected = target.generate(**arguments, max_new_tokens=20)
    stats: list[specdec.SpeculationStats] = []
    out = specdec.generate(
        target, **arguments, max_new_tokens=20, drafter=drafter("model", "whisper"), on_finish=stats.append
    )
    assert alike(expected, out)
    assert len(stats) == segments
    assert all(s.accepted > 0 for s in stats)


def test_whispers_search_for_silence_is_refused() -> None:
    options = {
        "return_timestamps": True,
        "no_speech_threshold": 0.6,
        "logprob_threshold": -1.0,
        "temperature": (0.0, 0.2),
    }
    target = copy.deepcopy(family("whisper"))
    config = target.generation_config
    config.no_timestamps_token_id, config.is_multilingual, config.eos_token_id = 80, False, 3
    config.bos_token_id = config.decoder_start_token_id = 1
    with pytest.raises(specdec.UnsupportedOptionError, match="no_speech_threshold"):
        specdec.generate(target, **inputs("whisper", 2), **options, max_new_tokens=8)


@pytest.mark.parametrize("k", [5, 8, 16])
def test_a_ring_grows_in_the_middle_of_a_drafted_chain(k: int) -> None:
    """Buffers that double between two drafted tokens keep the first: the target itself as draft is always right."""
    prompt = {"input_ids": prompts(1, length=58)["input_ids"]}
    for name in ("mistral", "gemma2"):
        config = copy.deepcopy(family(name).config)
        config.sliding_window = 4096
        model = type(family(name))(config).to(family(name).dtype).eval()
        model.load_state_dict(family(name).state_dict())
        out = specdec.generate(
            model, **prompt, drafter=model, num_draft_tokens=k, max_new_tokens=40, return_dict_in_generate=True
        )
        assert torch.equal(out.sequences, model.generate(**prompt, max_new_tokens=40))
        assert out.speculation.acceptance_rate == 1.0
