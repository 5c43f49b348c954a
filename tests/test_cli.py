"""The command line, as a user types it."""

from __future__ import annotations

import pathlib

import pytest
from typer.testing import CliRunner

from specdec.cli import app

FAST = ["-n", "12", "--repeats", "1"]


def run(*arguments: str, stdin: str | None = None) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, ["generate", *arguments], input=stdin)
    return result.exit_code, result.output


def test_the_bundled_pair_by_default() -> None:
    code, output = run(*FAST, "--dtype", "float32")
    assert code == 0, output
    assert "def heapreplace" in output
    assert "target.generate()" in output
    assert "outputs are equal: 12 of 12 tokens." in output
    assert "\x1b[" not in output, "plain when not a terminal"


def test_prompts_from_argument_file_and_standard_input(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "prompt.py"
    file.write_text("class Stack:\n    def push(")
    outputs = [
        run("class Stack:\n    def push(", "-n", "8", "--repeats", "0"),
        run("--file", str(file), "-n", "8", "--repeats", "0"),
        run("-", "-n", "8", "--repeats", "0", stdin="class Stack:\n    def push("),
    ]
    assert [code for code, _ in outputs] == [0, 0, 0]
    assert len({text for _, text in outputs}) == 1
    assert "tokens/s" not in outputs[0][1]


@pytest.mark.parametrize("draft", ["ngram", "none"])
def test_other_drafters_and_sampling(draft: str) -> None:
    code, output = run(*FAST, "--draft", draft, "--temperature", "0.8", "--top-p", "0.9", "-k", "3")
    assert code == 0, output
    assert "their distribution is the same" in output


def test_another_model(tmp_path: pathlib.Path) -> None:
    """Any local checkpoint works as target and as draft."""
    from specdec.bundled import bundled_dir

    target = str(bundled_dir() / "pair" / "target")
    code, output = run("def f(x):", *FAST, "--target", target, "--draft", target, "-k", "3", "--dtype", "float32")
    assert code == 0, output
    assert "1.00\n" in output  # every draft token of the target itself is accepted
    code, output = run("def f(x):", *FAST, "--target", str(tmp_path))
    assert code == 2
    assert "error:" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-k", "0"], "num_draft_tokens"),
        (["-k", "many"], "--num-draft-tokens"),
        (["--dtype", "int4"], "--dtype"),
        (["x", "--file", "pyproject.toml"], "not both"),
        (["-n", "5000"], "positions"),
        ([""], "empty"),
    ],
)
def test_bad_input(arguments: list[str], words: str) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert words in output
    assert "Traceback" not in output
