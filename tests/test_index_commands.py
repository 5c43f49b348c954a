"""`specdec index`, as a user types it."""

from __future__ import annotations

import json
import pathlib

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

import specdec
from specdec.bundled import bundled_dir
from specdec.cli import app
from specdec.drafters.suffix_index import fingerprint

PAIR = bundled_dir() / "pair" / "target"


def run(*arguments: object) -> tuple[int, str]:
    words = ["index", *map(str, arguments)]
    result = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, words)
    return result.exit_code, result.output


def texts(index: specdec.SuffixIndex) -> list[str]:
    tokenizer, found = AutoTokenizer.from_pretrained(PAIR), [[]]
    for token in index.arrays[0].tokens[1:].tolist():
        found.append([]) if token < 0 else found[-1].append(token)
    return [tokenizer.decode(ids) for ids in found[:-1]]


@pytest.fixture
def records(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "records.jsonl"
    lines = [{"prompt": "def f(x):", "body": "\n    return x"}, {"text": "a = 1", "prompt": "no", "turns": ["b", "c"]}]
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    return path


def test_build_and_show(tmp_path: pathlib.Path, records: pathlib.Path) -> None:
    """Text and code as one text a file, records one a line; the closing lines say what came of it."""
    code_file, out = tmp_path / "code.py", tmp_path / "index.npz"
    code_file.write_text("class Stack:\n    pass\n\u00e4\n", encoding="utf-8")
    code, output = run("build", code_file, records, "-o", out)
    assert code == 0, output
    index = specdec.SuffixIndex.load(out)
    assert texts(index) == ["class Stack:\n    pass\n\u00e4\n", "def f(x):", "a = 1"]
    tokenizer = AutoTokenizer.from_pretrained(PAIR)
    assert index.vocab_size == len(tokenizer)
    assert index.fingerprint == fingerprint(tokenizer)
    assert output.startswith(f"3 texts, {index.num_tokens} tokens, 0.0 MB, ")
    assert output.endswith(f" s, in {out}\n")
    code, output = run("show", out)
    assert code == 0, output
    assert output.splitlines() == [
        f"3 texts, {index.num_tokens} tokens, 0.0 MB of at most 256.0 MB",
        f"{len(tokenizer)} token ids, of the tokenizer {index.fingerprint[:12]}",
    ]


def test_fields(tmp_path: pathlib.Path, records: pathlib.Path) -> None:
    out = tmp_path / "index.npz"
    first = tmp_path / "first.jsonl"
    first.write_text(records.read_text().splitlines()[0])
    assert run("build", first, "-o", out, "--field", "prompt", "--field", "body")[0] == 0
    assert texts(specdec.SuffixIndex.load(out)) == ["def f(x):\n    return x"]
    turns = tmp_path / "turns.jsonl"
    turns.write_text(records.read_text().splitlines()[2])
    assert run("build", turns, "-o", out, "--field", "turns")[0] == 0
    assert texts(specdec.SuffixIndex.load(out)) == ["bc"]


def test_what_does_not_fit_is_left_out(tmp_path: pathlib.Path) -> None:
    files = [tmp_path / f"{n}.txt" for n in range(3)]
    for file in files:
        file.write_text("one two three four five six")
    code, output = run("build", *files, "-o", tmp_path / "i.npz", "--max-bytes", "200")
    assert code == 0, output
    assert f"max-bytes reached: texts from {files[specdec.SuffixIndex.load(tmp_path / 'i.npz').num_texts]} on" in output


def test_another_tokenizer(tmp_path: pathlib.Path) -> None:
    other, out = tmp_path / "tokenizer", tmp_path / "index.npz"
    tokenizer = AutoTokenizer.from_pretrained(PAIR)
    tokenizer.add_tokens(["<another>"])
    tokenizer.save_pretrained(other)
    (tmp_path / "a.txt").write_text("def f(x): return x")
    assert run("build", tmp_path / "a.txt", "-o", out, "--tokenizer", other)[0] == 0
    specdec.SuffixIndex.load(out, tokenizer=tokenizer)
    with pytest.raises(specdec.DraftMismatchError):
        specdec.SuffixIndex.load(out, tokenizer=AutoTokenizer.from_pretrained(PAIR))


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("missing.txt", None, [], "missing.txt"),
        ("a.bin", b"\xff\xfe\x00", [], "a.bin is not UTF-8 text"),
        ("a.jsonl", b"{]", [], "a.jsonl:1 is no JSON"),
        ("a.jsonl", b"[1]", [], "a.jsonl:1 is no JSON object"),
        ("a.jsonl", b'{"text": "x"}\n{"question": "y"}', [], "a.jsonl:2 has no text in text, prompt: choose --field"),
        ("a.jsonl", b'{"text": 3}', [], "a.jsonl:1 has no text in text"),
        ("a.jsonl", b'{"text": "x"}', ["--field", "body"], "choose --field among 'text'"),
        ("a.txt", b"", [], "hold no text"),
        ("a.txt", b"some text", ["--max-bytes", "8"], "less than the first text"),
        ("a.txt", b"some text", ["--tokenizer", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_input(tmp_path: pathlib.Path, name: str, content: bytes | None, options: list[str], words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, output = run("build", tmp_path / name, "-o", tmp_path / "index.npz", *options)
    assert code == 2, output
    assert words in output
    assert "Traceback" not in output
    assert not (tmp_path / "index.npz").exists()


def test_show_what_is_no_index(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.npz").write_text("x")
    assert "there is no index" in run("show", tmp_path / "b.npz")[1]
    code, output = run("show", tmp_path / "a.npz")
    assert code == 2
    assert "damaged, or no index of specdec" in output
