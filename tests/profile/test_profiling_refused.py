"""What a profile refuses, and what it skips by name."""

from __future__ import annotations

import json
import pathlib
from dataclasses import replace
from typing import Any

import pytest

import specdec
from specdec.errors import DraftMismatchError, InputError, OptionError
from tests.profile.profiles import TINY, profile

pytestmark = pytest.mark.usefixtures("few_costs")


def test_settings_that_changed_are_not_resumed(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        profile(tmp_path / "none", TINY, resume=True)
    (tmp_path / "parts").mkdir()
    settings = TINY.to_json() | {"processes": 1}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(OptionError, match="these differ: num_draft_tokens, seed"):
        profile(tmp_path, replace(TINY, seed=3, num_draft_tokens=(1,)), resume=True)
    with pytest.raises(OptionError, match="holds a profile already"):
        profile(tmp_path, TINY)


def test_what_cannot_be_done_is_said_before_anything_is_measured(tmp_path: pathlib.Path) -> None:
    other = specdec.bundled.bundled_dir() / "other"
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"prompts": tmp_path / "missing.jsonl"}, InputError, "missing.jsonl"),
        ({"strategies": ("magic",)}, OptionError, "there is no strategy 'magic'"),
        ({"strategies": ("ngram", "ngram")}, OptionError, "asked for twice"),
        ({"strategies": ("early-exit:99",)}, OptionError, "exit_layer=99"),
        ({"strategies": ("cross-tokenizer",)}, OptionError, "tokenizer is not the target's"),
        ({"drafts": (str(tmp_path),)}, OptionError, "neither a drafter"),
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
