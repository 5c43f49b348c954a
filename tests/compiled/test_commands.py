"""The command line of compiled packages, as a user types it."""

from __future__ import annotations

import pathlib
import time

import pytest
from typer.testing import CliRunner

from specdec.cli import app
from specdec.compiled import Store
from specdec.compiled.store import describe

MB = 1_000_000


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1", **environment}).invoke(app, arguments)
    return result.exit_code, result.output


def put(folder: pathlib.Path, key: str, model: str, megabytes: float, seconds: float = 61.4) -> None:
    store = Store(folder)
    built = store.temporary(key)
    built.write_bytes(bytes(int(megabytes * MB)))
    store.put(describe(key, model, built, seconds, [(2, 8, 8)]), built)


def words(line: str) -> list[str]:
    return line.split()


def test_show_nothing(folder: pathlib.Path) -> None:
    code, output = run("cache", "show")
    assert code == 0, output
    assert output == f"0 packages, 0.0 of at most 8590 MB, in {folder}\n"
    assert not folder.exists(), "looking makes nothing"


def test_show(folder: pathlib.Path) -> None:
    put(folder, "0123456789abcdef", "LlamaForCausalLM", 1.5)
    time.sleep(0.01)
    put(folder, "fedcba9876543210", "GPT2LMHeadModel", 0.25, seconds=9.6)
    code, output = run("cache", "show", SPECDEC_CACHE_BYTES="5000000")
    assert code == 0, output
    head, first, second, total = output.splitlines()
    assert words(head) == ["model", "MB", "built", "in", "key"]
    assert words(first) == ["GPT2LMHeadModel", "0.2", "10", "s", "fedcba987654"]
    assert words(second) == ["LlamaForCausalLM", "1.5", "61", "s", "0123456789ab"]
    assert total == f"2 packages, 1.8 of at most 5 MB, in {folder}"
    assert Store(folder).find("0123456789abcdef") is not None
    time.sleep(0.01)
    assert "Llama" in run("cache", "show")[1].splitlines()[1], "the one used last comes first"


def test_another_folder(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(folder, "0123", "LlamaForCausalLM", 0.1)
    other = tmp_path / "other"
    code, output = run("cache", "show", SPECDEC_CACHE=str(other))
    assert code == 0, output
    assert output == f"0 packages, 0.0 of at most 8590 MB, in {other}\n"
    code, output = run("cache", "clear", SPECDEC_CACHE=str(other))
    assert code == 0, output
    assert len(Store(folder).packages()) == 1


def test_clear(folder: pathlib.Path) -> None:
    put(folder, "0123", "LlamaForCausalLM", 1.5)
    put(folder, "4567", "GPT2LMHeadModel", 1)
    (folder / "89ab.pt2").write_bytes(bytes(MB))
    code, output = run("cache", "clear")
    assert code == 0, output
    assert output == f"3.5 MB removed from {folder}\n"
    assert list(folder.iterdir()) == []
    code, output = run("cache", "clear")
    assert code == 0, output
    assert output == f"0.0 MB removed from {folder}\n"


@pytest.mark.parametrize("command", ["show", "clear"])
def test_a_limit_that_is_no_number(command: str, folder: pathlib.Path) -> None:
    put(folder, "0123", "LlamaForCausalLM", 0.1)
    code, output = run("cache", command, SPECDEC_CACHE_BYTES="8G")
    assert code == 2
    assert "SPECDEC_CACHE_BYTES must be a number of bytes, got '8G'" in " ".join(output.replace("│", " ").split())
    assert "Traceback" not in output
    assert len(Store(folder).packages()) == 1


def test_cache_alone_says_what_there_is() -> None:
    _, output = run("cache")
    assert "show" in output and "clear" in output


@pytest.mark.parametrize("value", ["nonsense", "true", ""])
def test_generate_with_a_bad_value(value: str) -> None:
    result = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, ["generate", "--compile", value, "-n", "8"])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    text = " ".join(result.output.replace("│", " ").split())
    assert "--compile" in text
    assert all(choice in text for choice in ("yes", "no", "auto"))
    assert "accepted draft token" not in text, "nothing was decoded"


def test_generate_uncompiled(folder: pathlib.Path) -> None:
    code, output = run("generate", "--compile", "no", "-n", "8", "--repeats", "0")
    assert code == 0, output
    assert "def heapreplace" in output
    assert "target: " not in output
    assert not folder.exists()


def test_generate_says_what_ran_compiled(folder: pathlib.Path) -> None:
    """One line below the measurement; nothing is built for a few tokens."""
    code, output = run("generate", "--compile", "auto", "-n", "8", "--repeats", "1", "--dtype", "float32")
    assert code == 0, output
    assert "outputs are equal: 8 of 8 tokens." in output
    (line,) = [line for line in output.splitlines() if line.startswith("target: ")]
    assert "draft: " in " ".join(output.split())
    assert "compiled" not in words(line)
    assert not folder.exists()
    code, output = run("generate", "--compile", "no", "-n", "8", "--repeats", "1", "--dtype", "float32")
    assert code == 0, output
    assert "target: " not in output, "nothing was asked for, so there is nothing to explain"
