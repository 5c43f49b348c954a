"""What is no setting is refused where it is given, in words that help."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from models import prompts, tiny
from typer.testing import CliRunner

import specdec
from specdec.cli import app
from specdec.errors import DraftMismatchError, OptionError

MODEL, NGRAM, CROSS = specdec.ModelDrafter, specdec.NgramDrafter, specdec.CrossTokenizerDrafter
TREE, MIXED, SKIP = specdec.TreeDrafter, specdec.MixedDrafter, specdec.LayerSkipDrafter


def draft() -> Any:
    return tiny("llama")


REFUSED: dict[str, Callable[[], Any]] = {
    "a model's name": lambda: MODEL("gpt2"),
    "a tree of a model's name": lambda: TREE("gpt2"),
    "a tokenizer's name": lambda: MODEL(draft(), tokenizer="x", draft_tokenizer="y"),
    "two tokenizers' names": lambda: CROSS(draft(), target_tokenizer="x", draft_tokenizer="y"),
    "an index of a tokenizer's name": lambda: specdec.SuffixIndex.build([[1, 2]], tokenizer="x"),
    "suffixes of a tokenizer's name": lambda: specdec.SuffixDrafter(tokenizer="x"),
    "one layer": lambda: SKIP(5),
    "layers by name": lambda: SKIP(["3"]),
    "one drafter": lambda: MIXED(NGRAM()),
    "a draft model in a mix": lambda: MIXED(draft()),
    "a name in a mix": lambda: MIXED(["suffix"]),
    "one cost": lambda: MIXED([NGRAM()], costs=1),
    "a cost that is none": lambda: MIXED([NGRAM()], costs=["a"]),
    "half a level": lambda: MIXED([NGRAM()], depths=[1.5]),
    "one width": lambda: TREE(draft(), widths=4),
    "one parent": lambda: TREE(draft(), parents=4),
    "widths of numpy": lambda: TREE(draft(), widths=np.array([2, 1])),
    "one acceptance": lambda: TREE(draft(), acceptance=0.7),
    "acceptances that are none": lambda: TREE(draft(), acceptance=["a"]),
    "halves of n-grams": lambda: NGRAM(3.5, 1.5),
    "n-grams by name": lambda: NGRAM("3"),
    "confidence by name": lambda: MODEL(draft(), min_confidence="0.2"),
    "no confidence": lambda: MODEL(draft(), min_confidence=None),
    "an index too small": lambda: specdec.SuffixIndex.build([[1] * 100], max_bytes=10),
    "no file": lambda: specdec.SkipSet.load("nowhere.json", draft()),
    "texts that are none": lambda: specdec.search_skip(draft(), ["abc"]),
    "ids of another tokenizer": lambda: specdec.search_skip(draft(), [[1, 2, 10**6]]),
    "a search's file": lambda: specdec.search_skip(draft(), [[1, 2]], start="skip.json"),
    "a target's name": lambda: specdec.search_skip("gpt2", [[1, 2]]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    with pytest.raises(OptionError):
        REFUSED[case]()


def test_indices_of_numpy_are_indices() -> None:
    assert SKIP(list(np.array([1, 2]))).skip == (1, 2)


def generate(**arguments: Any) -> Any:
    return specdec.generate(tiny("llama"), **prompts(1), max_new_tokens=4, do_sample=False, **arguments)


def test_tokenizers_are_never_ignored() -> None:
    _, small, tokenizer = specdec.bundled_pair()
    other = pathlib.Path(__file__).parent.parent.parent / "drafts" / "other"
    foreign = specdec.loading.AutoTokenizer.from_pretrained(other)
    both = {"tokenizer": tokenizer, "assistant_tokenizer": foreign}
    for arguments in ({"drafter": "ngram"}, {}):
        with pytest.raises(OptionError, match="assistant_tokenizer= is that of"):
            generate(**arguments, **both)
    with pytest.raises(DraftMismatchError, match="CrossTokenizerDrafter"):
        generate(drafter="tree", assistant_model=small, **both)
    with pytest.raises(OptionError, match="tokenizer= as well"):
        generate(drafter="tree", assistant_model=small, assistant_tokenizer=foreign)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["generate", "x = 1", "-n", "4", "--repeats", "1", "--compile", "no", *arguments])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize("name", ["sufix", "tree:", "tree:nowhere"])
def test_an_unknown_draft_on_the_command_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = specdec.loading.AutoModelForCausalLM.from_pretrained

    def nowhere(path: Any, **arguments: Any) -> Any:
        if str(path) in ("sufix", "", "nowhere"):  # without asking a hub
            raise OSError("no local folder")
        return load(path, **arguments)

    monkeypatch.setattr(specdec.loading.AutoModelForCausalLM, "from_pretrained", nowhere)
    code, output = run("--draft", name)
    assert code == 2
    assert f"--draft {name} is neither a drafter" in output


def test_an_exit_past_the_end_is_said_before_anything_else() -> None:
    code, output = run("--draft", "early-exit:99")
    assert code == 2
    assert output.startswith("error: exit_layer=99")


def test_a_draft_of_another_tokenizer_on_the_command_line() -> None:
    code, output = run("--draft", str(pathlib.Path(__file__).parent.parent.parent / "drafts" / "other"))
    assert code == 0, output
    assert "outputs are equal" in output
