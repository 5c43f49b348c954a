"""What a profile refuses, and what it skips by name."""

from __future__ import annotations

import json
import pathlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import specdec
from specdec.errors import DraftMismatchError, InputError, OptionError
from tests.profile.profiles import TINY, profile, texts

pytestmark = pytest.mark.usefixtures("few_costs")


def test_settings_that_changed_are_not_resumed(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        profile(tmp_path / "none", TINY, resume=True)
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("def f(x):\nclass A:\n")
    asked = replace(TINY, prompts=prompts)
    profile(out, asked)
    with pytest.raises(OptionError, match="these differ: num_draft_tokens, seed"):
        profile(out, replace(asked, seed=3, num_draft_tokens=(1,)), resume=True)
    with pytest.raises(OptionError, match="holds a profile already"):
        profile(out, asked)
    prompts.write_text("def g(x):\nclass A:\n")
    with pytest.raises(OptionError, match="these differ: prompts_sha1"):
        profile(out, asked, resume=True)


def test_a_directory_without_measurements_may_be_used_again(tmp_path: pathlib.Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "x = 1\n" * 2000}) + "\n")
    with pytest.raises(InputError, match="none of the prompts can be used"):
        profile(tmp_path / "out", replace(TINY, prompts=prompts))
    prompts.write_text(json.dumps({"prompt": "def f(x):"}) + "\n")
    assert profile(tmp_path / "out", replace(TINY, prompts=prompts)).subject.used == 1


def test_what_cannot_be_done_is_said_before_anything_is_measured(tmp_path: pathlib.Path) -> None:
    other = specdec.bundled.bundled_dir() / "other"
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"prompts": tmp_path / "missing.jsonl"}, InputError, "missing.jsonl"),
        ({"strategies": ("magic",)}, OptionError, "there is no strategy 'magic'"),
        ({"strategies": ("ngram", "ngram")}, OptionError, "asked for twice"),
        ({"strategies": ("early-exit:99",)}, OptionError, "exit_layer=99"),
        ({"strategies": ("cross-tokenizer",)}, OptionError, "tokenizer is not the target's"),
        ({"drafts": (str(tmp_path),)}, OptionError, "neither a drafter"),
        ({"device": "gpu"}, OptionError, "--device gpu cannot be used here"),
        ({"chat": True}, OptionError, "--chat needs a chat template"),
        ({"drafts": (str(other),)}, DraftMismatchError, "add --strategy cross-tokenizer"),
    ]
    for number, (change, error, words) in enumerate(cases):
        out = tmp_path / str(number)
        with pytest.raises(error, match=words):
            profile(out, replace(TINY, **change))
        assert not out.exists()


def test_prompts_that_do_not_fit_are_skipped_by_name(tmp_path: pathlib.Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "def f(x):"}, {"prompt": "x = 1\n" * 2000}, {"nothing": 1}, {"prompt": "class A:"}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = profile(tmp_path / "out", replace(TINY, prompts=prompts, max_prompts=None))
    assert found.subject.used == 2
    assert sum(found.subject.skipped.values()) == 2
    assert any("longer than the context of 1024 tokens" in reason for reason in found.subject.skipped)
    prompts.write_text(json.dumps(lines[1]) + "\n")
    with pytest.raises(InputError, match="none of the prompts can be used: longer than the context"):
        profile(tmp_path / "none", replace(TINY, prompts=prompts, max_prompts=None))


def test_a_draft_of_another_tokenizer_is_measured_through_its_strategy(tmp_path: pathlib.Path) -> None:
    other = specdec.bundled.bundled_dir() / "other"
    found = profile(tmp_path, replace(TINY, drafts=(str(other),), strategies=("cross-tokenizer", "lookahead")))
    assert [d.kind for d in found.drafts] == ["cross-tokenizer", "lookahead"]
    assert found.agreements == []
    assert all(s.predicted is None for s in found.settings)
    assert {s.draft for s in found.settings if s.measured} == {"plain", "cross-tokenizer:other", "lookahead"}


def test_what_else_a_checkpoint_asks_for_is_switched_off(tmp_path: pathlib.Path) -> None:
    """It would be in the loop's texts, and not in the distributions that alpha is taken from."""
    target, draft, tokenizer = specdec.bundled_pair(torch.float32)
    target.save_pretrained(tmp_path / "target")
    draft.save_pretrained(tmp_path / "draft")
    for name in ("target", "draft"):
        tokenizer.save_pretrained(tmp_path / name)
    kept = tmp_path / "target" / "generation_config.json"
    asked = {"suppress_tokens": list(range(100, 2000)), "forced_eos_token_id": 0, "min_p": 0.5, "do_sample": True}
    kept.write_text(json.dumps(json.loads(kept.read_text()) | asked))
    paths = {"target": str(tmp_path / "target"), "drafts": (str(tmp_path / "draft"),)}
    found = profile(tmp_path / "out", replace(TINY, **paths, prompts=None))
    plain = profile(tmp_path / "plain", TINY)
    assert texts(tmp_path / "out") == texts(tmp_path / "plain")
    assert found.agreements[0].alpha == plain.agreements[0].alpha


def test_a_prompt_that_is_too_long_for_a_draft_is_skipped(tmp_path: pathlib.Path) -> None:
    """The loop would stop drafting there, and a forward over the text would fail."""
    target, _, tokenizer = specdec.bundled_pair(torch.float32)
    config = GPT2Config(vocab_size=4096, n_positions=24, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "draft")
    target.save_pretrained(tmp_path / "target")
    for name in ("target", "draft"):
        tokenizer.save_pretrained(tmp_path / name)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("def f(x):\n" + "x + " * 60 + "\n")
    paths = {"target": str(tmp_path / "target"), "drafts": (str(tmp_path / "draft"),), "prompts": prompts}
    found = profile(tmp_path / "out", replace(TINY, **paths))
    assert found.subject.used == 1
    assert any("longer than the context of 24 tokens" in reason for reason in found.subject.skipped)
