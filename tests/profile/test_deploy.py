"""From a profile to what runs: a decoder here, settings elsewhere, or a refusal that says what to do."""

from __future__ import annotations

import json
import pathlib
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import typer
from models import prompts, tiny
from typer.testing import CliRunner

import specdec
from specdec.bundled import bundled_dir
from specdec.drafters import (
    CrossTokenizerDrafter,
    Drafter,
    EarlyExitDrafter,
    LookaheadDrafter,
    ModelDrafter,
    NgramDrafter,
    SuffixDrafter,
    SuffixIndex,
    TreeDrafter,
)
from specdec.errors import DraftMismatchError, InputError, OptionError, UnsupportedOptionError
from specdec.profile.choice import choose
from specdec.profile.commands import compare, recommend
from specdec.profile.deploy import to_specdec
from specdec.profile.engines import SGLANG, VLLM, notes, to_sglang, to_vllm
from specdec.profile.files import save
from specdec.profile.schema import PLAIN, Draft, Interval, Profile
from tests.profile.sample import profile, setting

NAME = "model:draft"
# Read in the released packages: keys of vLLM 0.33.0's SpeculativeConfig, and flags of SGLang 0.5.23.
VLLM_KEYS = {
    "method", "model", "num_speculative_tokens", "draft_tensor_parallel_size", "prompt_lookup_max", "prompt_lookup_min",
    "suffix_decoding_max_spec_factor", "suffix_decoding_min_token_prob", "draft_sample_method",
    "use_heterogeneous_vocab",
}  # fmt: skip
SGLANG_FLAGS = {
    "--speculative-algorithm", "--speculative-draft-model-path", "--speculative-num-steps", "--speculative-eagle-topk",
    "--speculative-num-draft-tokens", "--speculative-ngram-max-bfs-breadth",
}  # fmt: skip


def of(draft: Draft, temperature: float = 0.0, k: int = 4, **machine: str) -> Profile:
    """A profile where this draft with k tokens is the best thing to do."""
    row = replace(setting(NAME, temperature, 1, k), draft=draft.name)
    found = replace(profile(), drafts=[draft], settings=[setting(PLAIN, temperature, 1, 0), row])
    return replace(found, machine=replace(found.machine, **machine))  # type: ignore[arg-type]


def hopeless() -> Profile:
    """Nothing pays."""
    row = setting(NAME, 0.0, 1, 4)
    assert row.measured is not None
    slow = replace(row, measured=replace(row.measured, speedup=Interval(0.8, 0.7, 0.9)))
    return replace(profile(), settings=[setting(PLAIN, 0.0, 1, 0), slow])


@pytest.fixture
def saved_draft(tmp_path: pathlib.Path) -> str:
    tiny("llama", noise=0.2, dtype=torch.float32).save_pretrained(tmp_path / "draft")
    return str(tmp_path / "draft")


def test_a_saved_profile_becomes_a_decoder_that_drafts(tmp_path: pathlib.Path, saved_draft: str) -> None:
    target = tiny("llama", dtype=torch.float32)
    save(of(Draft(NAME, "model", saved_draft)), tmp_path / "profile")
    decoder = specdec.SpeculativeDecoder.from_profile(tmp_path / "profile", target=target)
    assert isinstance(decoder.drafter, ModelDrafter)
    assert (decoder.num_draft_tokens, decoder.compile) == (4, False)
    assert decoder.drafter.model.dtype == torch.float32
    inputs = prompts(2)
    out: Any = decoder.generate(target, **inputs, max_new_tokens=12, do_sample=False, return_dict_in_generate=True)
    plain: Any = target.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert torch.equal(out.sequences, plain)
    assert out.speculation.drafted > 0


def test_the_class_that_is_asked_is_the_one_that_is_made(tmp_path: pathlib.Path) -> None:
    class Own(specdec.SpeculativeDecoder):
        pass

    save(of(Draft("ngram", "ngram")), tmp_path)
    assert type(Own.from_profile(tmp_path)) is Own
    with pytest.raises(InputError, match="no profile"):
        specdec.SpeculativeDecoder.from_profile(tmp_path / "nowhere")


def test_dtype_device_and_compilation_are_the_profiles(saved_draft: str) -> None:
    half = to_specdec(of(Draft(NAME, "model", saved_draft), dtype="bfloat16", compile="yes"))
    assert isinstance(half.drafter, ModelDrafter)
    assert half.drafter.model.dtype == torch.bfloat16
    assert half.compile is True
    there = to_specdec(of(Draft(NAME, "model", saved_draft)), device="meta")
    assert isinstance(there.drafter, ModelDrafter)
    assert there.drafter.model.device.type == "meta"
    with pytest.raises(OptionError, match="'int4', no dtype"):
        to_specdec(of(Draft(NAME, "model", saved_draft), dtype="int4"))


@pytest.mark.parametrize(
    ("kind", "fields", "wanted"),
    [
        ("ngram", {}, NgramDrafter),
        ("lookahead", {}, LookaheadDrafter),
        ("suffix", {}, SuffixDrafter),
        ("early-exit", {"exit_layer": 2}, EarlyExitDrafter),
        ("tree", {"path": "DRAFT"}, TreeDrafter),
    ],
)
def test_each_strategy(kind: str, fields: dict[str, Any], wanted: type[Drafter], saved_draft: str) -> None:
    fields = {name: saved_draft if value == "DRAFT" else value for name, value in fields.items()}
    decoder = to_specdec(of(Draft("it", kind, **fields), k=3))
    assert type(decoder.drafter) is wanted
    assert decoder.num_draft_tokens == 3
    if isinstance(decoder.drafter, EarlyExitDrafter):
        assert decoder.drafter.exit_layer == 2


def bundled(draft: Draft, **machine: str) -> Profile:
    found = of(draft, **machine)
    tokenizer = str(bundled_dir() / "pair" / "target")
    return replace(found, subject=replace(found.subject, target="bundled", tokenizer=tokenizer))


def test_the_bundled_draft_an_index_and_another_tokenizer(tmp_path: pathlib.Path) -> None:
    pair = to_specdec(bundled(Draft("model:bundled", "model", "bundled"), dtype="bfloat16"))
    assert isinstance(pair.drafter, ModelDrafter)
    SuffixIndex.build([[5, 6, 7, 8]]).save(tmp_path / "index.npz")
    suffix = to_specdec(bundled(Draft("suffix:index", "suffix", str(tmp_path / "index.npz")))).drafter
    assert isinstance(suffix, SuffixDrafter) and suffix.index is not None
    other = pathlib.Path(__file__).parents[2] / "drafts" / "other"
    cross = to_specdec(bundled(Draft("cross-tokenizer:other", "cross-tokenizer", str(other)))).drafter
    assert isinstance(cross, CrossTokenizerDrafter)


def test_plain_decoding_where_nothing_pays() -> None:
    decoder = to_specdec(hopeless())
    assert decoder.drafter is None
    assert to_vllm(hopeless()) == {} and to_sglang(hopeless()) == []
    assert "Nothing pays" in notes(VLLM, hopeless())[1]


def test_a_draft_that_is_gone_is_named(tmp_path: pathlib.Path) -> None:
    gone = str(tmp_path / "gone")
    for draft in (Draft(NAME, "model", gone), Draft("tree:gone", "tree", gone), Draft("x", "cross-tokenizer", gone)):
        with pytest.raises(OptionError, match=f"{draft.name} was at .*gone"):
            to_specdec(of(draft))
    (tmp_path / "gone").mkdir()
    with pytest.raises(OptionError, match="cannot be loaded from"):
        to_specdec(of(Draft(NAME, "model", gone)))
    with pytest.raises(OptionError, match="does not say where"):
        to_specdec(of(Draft(NAME, "model")))
    with pytest.raises(OptionError, match="kind 'medusa'"):
        to_specdec(of(Draft("medusa", "medusa")))
    with pytest.raises(OptionError, match="index"):
        to_specdec(bundled(Draft("suffix:gone", "suffix", gone + ".npz")))
    found = replace(of(Draft("ngram", "ngram")), drafts=[])
    with pytest.raises(OptionError, match="does not say what that is"):
        to_specdec(found)


def test_a_draft_that_does_not_fit_is_refused_before_it_runs(tmp_path: pathlib.Path, saved_draft: str) -> None:
    found = of(Draft(NAME, "model", saved_draft))
    with pytest.raises(DraftMismatchError, match="on meta"):
        to_specdec(found, target=tiny("llama", dtype=torch.float32), device="meta")
    pair = bundled_dir() / "pair" / "target"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pair / name, saved_draft)
    same = replace(found, subject=replace(found.subject, tokenizer=str(pair)))
    assert to_specdec(same).drafter is not None
    other = pathlib.Path(__file__).parents[2] / "drafts" / "other"
    with pytest.raises(DraftMismatchError):
        to_specdec(replace(found, subject=replace(found.subject, tokenizer=str(other))))


def test_what_was_not_profiled_is_refused() -> None:
    assert choose(profile()).recommendation.temperature == 0
    assert choose(profile(), 4, 1.0).num_draft_tokens == 1
    assert choose(profile(), draft="ngram").draft == profile().drafts[1]
    with pytest.raises(OptionError, match="temperature 0 with batch 1; temperature 0 with batch 4"):
        choose(profile(), 2)
    with pytest.raises(OptionError, match=r"temperature 0\.5"):
        choose(profile(), 1, 0.5)
    with pytest.raises(OptionError, match="its drafts are model:draft, ngram"):
        choose(profile(), draft="suffix")


MODEL = Draft(NAME, "model", "org/draft")


def test_vllm() -> None:
    assert to_vllm(of(MODEL)) == {"method": "draft_model", "model": "org/draft", "num_speculative_tokens": 4}
    assert to_vllm(of(MODEL), draft_tensor_parallel_size=2)["draft_tensor_parallel_size"] == 2
    sampled = to_vllm(of(MODEL, temperature=0.7, k=2))
    assert sampled["draft_sample_method"] == "probabilistic" and sampled["num_speculative_tokens"] == 2
    own = NgramDrafter()
    assert to_vllm(of(Draft("ngram", "ngram"))) == {
        "method": "ngram",
        "num_speculative_tokens": 4,
        "prompt_lookup_max": own.max_ngram,
        "prompt_lookup_min": own.min_ngram,
    }
    suffix = to_vllm(of(Draft("suffix", "suffix")))
    assert suffix["method"] == "suffix"
    assert suffix["suffix_decoding_max_spec_factor"] == SuffixDrafter().alpha
    cross = to_vllm(of(Draft("cross", "cross-tokenizer", "org/other")))
    assert cross["method"] == "draft_model" and cross["use_heterogeneous_vocab"] is True
    for config in (sampled, suffix, cross):
        assert set(config) <= VLLM_KEYS
        assert json.loads(json.dumps(config)) == config
    for size in (0, -1):
        with pytest.raises(OptionError, match="draft_tensor_parallel_size"):
            to_vllm(of(MODEL), draft_tensor_parallel_size=size)
    with pytest.raises(OptionError, match="draft models only"):
        to_vllm(of(Draft("ngram", "ngram")), draft_tensor_parallel_size=1)


def flags(words: list[str]) -> dict[str, str]:
    assert set(words[::2]) <= SGLANG_FLAGS
    return {name.removeprefix("--speculative-"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def test_sglang_counts_the_token_that_a_round_starts_from() -> None:
    assert flags(to_sglang(of(MODEL))) == {
        "algorithm": "STANDALONE",
        "draft-model-path": "org/draft",
        "num-steps": "4",
        "eagle-topk": "1",
        "num-draft-tokens": "5",
    }
    assert flags(to_sglang(of(Draft("ngram", "ngram")))) == {
        "algorithm": "NGRAM",
        "num-draft-tokens": "5",
        "ngram-max-bfs-breadth": "1",
    }
    tree = Draft("tree", "tree", "org/draft")
    assert flags(to_sglang(of(tree)))["num-draft-tokens"] == "17"
    assert flags(to_sglang(of(tree, k=1))) | {"draft-model-path": ""} == {
        "algorithm": "STANDALONE",
        "draft-model-path": "",
        "num-steps": "1",
        "eagle-topk": "8",
        "num-draft-tokens": "9",  # one step makes no more than its eight children
    }


@pytest.mark.parametrize(
    ("run", "draft", "temperature", "words"),
    [
        (to_vllm, Draft("x", "tree", "p"), 0.0, "no trees"),
        (to_vllm, Draft("x", "early-exit", exit_layer=3), 0.0, "own layers"),
        (to_vllm, Draft("x", "lookahead"), 0.0, "no lookahead"),
        (to_vllm, Draft("x", "suffix", "index.npz"), 0.0, "no index"),
        (to_vllm, Draft("x", "cross-tokenizer", "p"), 0.7, "likeliest tokens only"),
        (to_sglang, Draft("x", "suffix"), 0.0, "no suffix"),
        (to_sglang, Draft("x", "early-exit", exit_layer=3), 0.0, "own layers"),
        (to_sglang, Draft("x", "lookahead"), 0.0, "no lookahead"),
        (to_sglang, Draft("x", "cross-tokenizer", "p"), 0.0, "target's vocabulary"),
        (to_sglang, Draft("x", "tree", "p"), 0.7, "drawn from the draft"),
        (to_sglang, Draft("x", "medusa"), 0.0, "nothing like 'medusa'"),
    ],
)
def test_what_an_engine_lacks_is_refused(
    run: Callable[[Profile], object], draft: Draft, temperature: float, words: str
) -> None:
    with pytest.raises(UnsupportedOptionError, match=words) as caught:
        run(of(draft, temperature))
    assert str(caught.value).startswith(VLLM if run is to_vllm else SGLANG)
    assert "without a draft" in str(caught.value)


def test_a_refusal_names_what_the_engine_could_run() -> None:
    best = of(Draft("lookahead", "lookahead"))
    second = setting("ngram", 0.0, 1, 1)
    found = replace(best, drafts=[*best.drafts, Draft("ngram", "ngram")], settings=[*best.settings, second])
    with pytest.raises(UnsupportedOptionError, match=r"Choose draft='ngram' \(1\.18 times"):
        to_vllm(found)
    assert to_vllm(found, draft="ngram")["method"] == "ngram"


def test_notes_say_the_version_and_what_will_differ() -> None:
    for engine in (VLLM, SGLANG):
        assert notes(engine, of(MODEL))[0] == f"For {engine}."
        assert any("1.69" in note and "measured" in note for note in notes(engine, of(MODEL)))
    assert any("0.15.0 or later" in note for note in notes(VLLM, of(MODEL)))
    assert not any("greedily" in note for engine in (VLLM, SGLANG) for note in notes(engine, of(MODEL)))
    assert all(any("greedily" in n for n in notes(engine, of(MODEL, 0.7))) for engine in (VLLM, SGLANG))


app = typer.Typer()
app.command()(recommend)
app.command()(compare)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_commands_print_what_engines_take(tmp_path: pathlib.Path) -> None:
    save(of(MODEL), tmp_path)
    found = invoke("recommend", str(tmp_path), "--vllm", "--draft-tensor-parallel-size", "2")
    assert found.exit_code == 0
    assert json.loads(found.stdout) == to_vllm(of(MODEL), draft_tensor_parallel_size=2)
    assert VLLM in found.stderr
    found = invoke("recommend", str(tmp_path), "--sglang")
    assert shlex.split(found.stdout) == to_sglang(of(MODEL))
    assert SGLANG in found.stderr


def test_the_command_recommends_anew(tmp_path: pathlib.Path) -> None:
    save(profile(), tmp_path)
    found = invoke("recommend", str(tmp_path), "--batch", "4", "--temperature", "0", "--price-per-hour", "2.5")
    assert found.exit_code == 0 and "1.43" in found.stdout and "1.69" not in found.stdout
    assert "1.44" in found.stdout  # dollars
    assert "1.69" in invoke("recommend", str(tmp_path)).stdout
    assert "1.18" in invoke("recommend", str(tmp_path), "--draft", "ngram").stdout


def test_the_commands_end_with_one_line_and_a_status(tmp_path: pathlib.Path) -> None:
    save(profile(), tmp_path)
    save(hopeless(), tmp_path / "hopeless")
    for arguments, words in (
        ((str(tmp_path), "--vllm", "--sglang"), "one at a time"),
        ((str(tmp_path), "--draft-tensor-parallel-size", "2"), "add --vllm"),
        ((str(tmp_path), "--batch", "3"), "no setting of this batch"),
        ((str(tmp_path), "--batch", "3", "--vllm"), "was not profiled"),
        ((str(tmp_path), "--draft", "nothing"), "no draft 'nothing'"),
        ((str(tmp_path), "--price-per-hour", "-1"), "price"),
        ((str(tmp_path / "nowhere"),), "no profile"),
    ):
        found = invoke("recommend", *arguments)
        assert (found.exit_code, found.stdout) == (2, "")
        assert words in " ".join(found.stderr.split())
    nothing = invoke("recommend", str(tmp_path / "hopeless"), "--vllm")
    assert (nothing.exit_code, nothing.stdout) == (1, "") and "Nothing pays" in nothing.stderr
    missing = invoke("compare", str(tmp_path), str(tmp_path))
    assert missing.exit_code == 2 and "no records" in missing.stderr
