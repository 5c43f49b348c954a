"""What of a prompt file is skipped, under which reason, and which files are refused."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import tracemalloc
from typing import Any

import pytest

from specdec.errors import InputError
from specdec.profile import prompt_containers
from specdec.profile.prompts import open_prompts

GOOD = b'{"prompt": "say"}'


def _turn(role: Any = "user", content: Any = "a") -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "say"', "not JSON"),
        (b"say", "not JSON"),
        (b'{"prompt": "\x00"}', "not JSON"),
        (b"9" * 5000, "not JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"prompt": ' + b"[" * 50_000, "nested too deeply"),
        (b'{"prompt": "\\ud800"}', "lone surrogates"),
        (json.dumps({"messages": [_turn(content="\udfff")]}).encode(), "lone surrogates"),
        (b"3", "neither an object nor a text"),
        (b"null", "neither an object nor a text"),
        (b'["a"]', "neither an object nor a text"),
        (b'{"instruct": "a"}', "none of the fields turns, conversations"),
        (b'{"prompt": null}', "none of the fields turns, conversations"),
        (b'{"prompt": ""}', "empty"),
        (b'"  "', "empty"),
        (b'{"question": "\\n"}', "empty"),
        (b'{"turns": []}', "empty"),
        (b'{"turns": [""]}', "empty"),
        (b'{"prompt": 3}', "'prompt' is neither a text nor messages"),
        (b'{"text": {"a": 1}}', "'text' is neither a text nor messages"),
        (b'{"question": ["a"]}', "'question' is no text"),
        (b'{"turns": "a"}', "'turns' is no list of texts"),
        (b'{"turns": ["a", 1]}', "'turns' is no list of texts"),
        (b'{"messages": "a"}', "'messages' is no list of turns"),
        (b'{"conversations": {}}', "'conversations' is no list of turns"),
        (b'{"messages": []}', "no turn of a user"),
        (json.dumps({"messages": [_turn("assistant")]}).encode(), "no turn of a user"),
        (json.dumps({"messages": [_turn("tool"), _turn()]}).encode(), "a turn of neither user, assistant nor system"),
        (json.dumps({"messages": ["a"]}).encode(), "a turn without a role"),
        (json.dumps({"messages": [_turn(3)]}).encode(), "a turn without a role"),
        (json.dumps({"messages": [_turn(content=None)]}).encode(), "a turn that is no text"),
        (json.dumps({"messages": [_turn(content=[{"type": "image"}])]}).encode(), "a turn that is no text"),
        (json.dumps({"messages": [_turn(content=" ")]}).encode(), "empty"),
    ],
)
def test_what_cannot_be_used_is_counted_under_its_reason(tmp_path: pathlib.Path, line: bytes, reason: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n".join([GOOD, line, GOOD, line]))
    prompts = open_prompts(path)
    assert [p.index for p in prompts] == [0, 2]
    ((key, count),) = prompts.skipped.items()
    assert key.startswith(reason) and count == 2
    path.write_bytes(b"\n".join([line, line]))
    with pytest.raises(InputError, match=r"each of its records was skipped: .*\(2\)") as caught:
        open_prompts(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "json", "txt", "paragraphs"])
def test_a_record_as_large_as_a_file_is_not_held(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(prompt_containers, "LARGEST", 1000)
    monkeypatch.setattr(prompt_containers, "_CHUNK", 64)
    at_most, above = 1000 - len('{"prompt": ""}'), 1001
    texts = ["a", "x" * at_most, "y" * above, "y" * 5000, "b"]
    path = tmp_path / f"p.{'txt' if kind == 'paragraphs' else kind}"
    records = [json.dumps({"prompt": t}) for t in texts]
    content = {
        "jsonl": "\n".join(records),
        "json": "[" + ",".join(records) + "]",
        "txt": "\r\n".join(texts),
        "paragraphs": "\n\n".join(t if len(t) != above else "y\n" * 501 for t in texts),
    }[kind]
    path.write_bytes(content.encode())
    prompts = open_prompts(path, form="paragraphs" if kind == "paragraphs" else "auto")
    assert [(p.index, p.text) for p in prompts] == [(0, "a"), (1, "x" * at_most), (4, "b")]
    assert list(prompts.skipped.values()) == [2] and "larger than" in str(prompts.skipped)


@pytest.mark.parametrize(
    ("content", "texts", "skipped"),
    [
        (b'["a", {"prompt": }, "b"]', ["a", "b"], {"not JSON": 1}),
        (b'["a", "b"', ["a"], {"cut off: the list has no end": 1}),
        (b'["a", "b', ["a"], {"cut off: the list has no end": 1}),
        (b'["a",, "b",]', ["a", "b"], {}),
        (b'["a"] ["b"]', ["a"], {"behind the end of the list": 1}),
        (b'["a", "\xff", "\\"]", "b"]', ["a", '"]', "b"], {"not UTF-8": 1}),
        (b'["a", ' + b"[" * 50_000 + b"]" * 50_000 + b', "b"]', ["a", "b"], {"nested too deeply": 1}),
        (b'["a", }, "b"]', ["a", "b"], {"not JSON": 1}),
    ],
)
def test_a_broken_element_of_a_list_spoils_no_other(
    tmp_path: pathlib.Path, content: bytes, texts: list[str], skipped: dict[str, int]
) -> None:
    (tmp_path / "p.json").write_bytes(content)
    prompts = open_prompts(tmp_path / "p.json")
    assert [p.text for p in prompts] == texts
    assert prompts.skipped == skipped


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("p.jsonl", b"", "it is empty"),
        ("p.txt", b"\xef\xbb\xbf", "it is empty"),
        ("p.txt", b" \r\n\n", "it is blank"),
        ("p.json", b"[]", "it is blank"),
        ("p.json", b"[", "the list has no end"),
        ("p.parquet", b"PAR1\x15\x04\x00\x00", "it is binary"),
        ("p.jsonl", b"\x7fELF\x00\x00", "it is binary"),
        ("p.txt", b"\x7fELF\x00\x00", "it is binary"),
        ("p.txt", "\ufeffsay\n".encode("utf-16-le"), "UTF-16"),
        ("p.csv", b"prompt,category\nsay,text\n", "'.csv' is neither JSON nor plain text"),
        ("p.md", b"# Prompts\n", "'.md' is neither JSON nor plain text"),
        ("p.txt", b"\xe4\n\xf6\n", "not UTF-8 (2)"),
        # Without a time, which would be part of the tests' names: two processes must collect the same.
        ("p.csv.gz", gzip.compress(b"prompt,category\n", mtime=0), "'.csv' is neither JSON nor plain text"),
        ("p.tar.gz", gzip.compress(b"p.txt" + bytes(600), mtime=0), "it is binary"),
    ],
)
def test_other_files_are_refused_with_what_is_read(tmp_path: pathlib.Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_prompts(tmp_path / name)
    assert why in str(caught.value)
    for form in ("JSON Lines", "ShareGPT", "HumanEval", "plain text with one prompt a line"):
        assert form in str(caught.value)


@pytest.mark.parametrize("cut", [3, 15, 60, -1])
def test_a_packed_file_that_is_cut_is_refused(tmp_path: pathlib.Path, cut: int) -> None:
    packed = gzip.compress(b"\n".join(b'{"prompt": "%d"}' % i for i in range(1000)))
    (tmp_path / "p.jsonl.gz").write_bytes(packed[:cut])
    with pytest.raises(InputError, match="cannot be read to its end"):
        open_prompts(tmp_path / "p.jsonl.gz")


def test_a_packed_file_that_is_damaged_is_refused(tmp_path: pathlib.Path) -> None:
    packed = bytearray(gzip.compress(b"\n".join(b'{"prompt": "%d"}' % i for i in range(1000))))
    packed[40:60] = bytes(20)
    (tmp_path / "p.jsonl.gz").write_bytes(packed)
    with pytest.raises(InputError, match="cannot be read to its end"):
        open_prompts(tmp_path / "p.jsonl.gz")


def test_what_is_no_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        open_prompts(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="directory"):
        open_prompts(tmp_path)
    with pytest.raises(InputError, match="no prompts at"):
        open_prompts("a\0b")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(InputError, match="pipe"):
        open_prompts(tmp_path / "pipe.jsonl")


@pytest.mark.parametrize("kind", ["jsonl", "json", "txt", "paragraphs"])
def test_nothing_is_held_of_a_record_that_is_too_large(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(prompt_containers, "LARGEST", 10_000)
    large = "word\n" * 400_000 if kind == "paragraphs" else "word " * 400_000
    content = {"jsonl": f'"a"\n"{large}"\n', "json": f'["a", "{large}"]', "txt": f"a\n{large}"}
    path = tmp_path / f"p.{'txt' if kind == 'paragraphs' else kind}"
    path.write_text(content.get(kind, f"a\n\n{large}"))
    tracemalloc.start()
    prompts = open_prompts(path, form="paragraphs" if kind == "paragraphs" else "auto")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [p.text for p in prompts] == ["a"] and sum(prompts.skipped.values()) == 1
    assert peak < 1_500_000 < len(large)
