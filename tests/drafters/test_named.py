"""Drafters by name, at the edge and on the command line."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from models import prompts, tiny
from typer.testing import CliRunner

import specdec
from specdec.cli import app
from specdec.drafters.named import named
from specdec.errors import DraftMismatchError, OptionError

NAMES = {
    "ngram": specdec.NgramDrafter,
    "suffix": specdec.SuffixDrafter,
    "early-exit": specdec.EarlyExitDrafter,
    "early-exit:2": specdec.EarlyExitDrafter,
    "lookahead": specdec.LookaheadDrafter,
}


def generate(drafter: Any, **arguments: Any) -> Any:
    arguments = {"max_new_tokens": 24, "do_sample": False, **arguments}
    return specdec.generate(tiny("llama"), **prompts(3), drafter=drafter, **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_drafter_with_its_defaults(name: str) -> None:
    assert type(named(name)) is NAMES[name]
    assert type(specdec.SpeculativeDecoder(name).drafter) is NAMES[name]
    expected = tiny("llama").generate(**prompts(3), max_new_tokens=24, do_sample=False)
    assert torch.equal(generate(name), expected)


def test_layers_behind_the_colon() -> None:
    drafter = named("early-exit:2")
    assert isinstance(drafter, specdec.EarlyExitDrafter) and drafter.exit_layer == 2
    with pytest.raises(OptionError, match="number of layers"):
        named("early-exit:few")
    with pytest.raises(OptionError, match="leaves nothing out"):
        generate("early-exit:3")


def test_a_tree_drafts_with_the_assistant_model() -> None:
    out = generate("tree", assistant_model=tiny("llama", noise=0.02), return_dict_in_generate=True)
    expected = tiny("llama").generate(**prompts(3), max_new_tokens=24, do_sample=False)
    assert torch.equal(out.sequences, expected)
    assert out.speculation.draft_calls > 0
    for arguments in ({}, {"assistant_model": None}):
        with pytest.raises(OptionError, match="needs a draft model"):
            generate("tree", **arguments)
    with pytest.raises(OptionError, match="needs a draft model"):
        specdec.SpeculativeDecoder("tree")


@pytest.mark.parametrize("name", ["", "n-gram", "early_exit", "lookahead:3", "ngram:2"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(OptionError, match="there is no drafter"):
        specdec.SpeculativeDecoder(name)


def test_an_index_on_disk(tmp_path: pathlib.Path) -> None:
    target = tiny("llama")
    expected = target.generate(**prompts(3), max_new_tokens=24, do_sample=False)
    file = tmp_path / "index.npz"
    specdec.SuffixIndex.build([row.tolist() for row in expected], vocab_size=96).save(file)
    out = generate(f"suffix:{file}", return_dict_in_generate=True, num_draft_tokens=4)
    assert torch.equal(out.sequences, expected)
    assert out.speculation.acceptance_length > 2  # it has the answers
    specdec.SuffixIndex.build([[1, 2, 300]], vocab_size=400).save(file)
    with pytest.raises(DraftMismatchError):
        generate(f"suffix:{file}")


def test_lookahead_has_a_depth_of_its_own() -> None:
    """Under "auto", which would count its guesses as drafts that fail."""
    out = generate("lookahead", return_dict_in_generate=True)
    assert len(out.speculation.drafted_per_depth) == 6  # W + N - 3
    out = generate("lookahead", return_dict_in_generate=True, num_draft_tokens=3)
    assert len(out.speculation.drafted_per_depth) == 3


@pytest.mark.parametrize("draft", ["suffix", "early-exit:6", "lookahead", "tree"])
def test_on_the_command_line(draft: str) -> None:
    result = CliRunner().invoke(
        app, ["generate", "x = [1, 2, 3,", "--draft", draft, "-n", "12", "--repeats", "1", "--compile", "no"]
    )
    assert result.exit_code == 0, result.output
    assert "outputs are equal" in result.output


def test_a_tree_of_another_target_needs_a_draft(tmp_path: pathlib.Path) -> None:
    target, _, tokenizer = specdec.bundled_pair()
    target.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    arguments = ["generate", "x = 1", "--target", str(tmp_path), "--draft", "tree", "-n", "4"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "tree:MODEL" in result.output
