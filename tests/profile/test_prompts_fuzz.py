"""Whatever lies in a file: it is read, or refused by InputError."""

from __future__ import annotations

import gzip
import io
import json
import pathlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.errors import InputError
from specdec.profile import prompt_containers
from specdec.profile.prompt_containers import CONTAINERS
from specdec.profile.prompts import open_prompts

FIELDS = "turns conversations conversation messages prompt question text answer category id name role from".split()
KEYS = st.sampled_from([*FIELDS, "content", "value", "type", "source"]) | st.text(max_size=3)
ROLES = st.sampled_from(["user", "human", "assistant", "gpt", "system", "tool"])
TEXTS = st.text(st.characters(), max_size=8)  # with surrogates and NUL
TURNS = st.fixed_dictionaries({"role": ROLES, "content": TEXTS}) | st.fixed_dictionaries(
    {"from": ROLES, "value": TEXTS}
)
LEAVES = st.sampled_from([None, True, 3, -1.5, 10**30]) | TEXTS | ROLES
VALUES = st.recursive(
    LEAVES | st.lists(TURNS, max_size=3),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["p.jsonl", "p.json", "p.txt", "p", "p.csv", "p.jsonl.gz"])
# Bytes that mean something to one of the readers, so that chance meets their branches.
MARKS = st.sampled_from(
    [
        b'"',
        b"\\",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b"\n",
        b"\r\n",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\x1f\x8b",
        b" ",
        b'{"prompt": "a"}',
        b'"text"',
        b"a",
        b"1",
    ]
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("prompts")


def _read_or_refused(path: pathlib.Path, limit: int | None, form: str) -> None:
    try:
        prompts = open_prompts(path, limit=limit, form=form)
    except InputError as error:
        str(error).encode()
        return
    given = list(prompts)
    assert len(given) == len(prompts) > 0 and (limit is None or len(given) <= limit)
    assert [p.index for p in given] == sorted({p.index for p in given})
    assert all(n > 0 for n in prompts.skipped.values())
    for prompt in given:
        assert (prompt.text is None) != (prompt.messages is None)
        said = [prompt.text] if prompt.text is not None else [m["content"] for m in prompt.messages or ()]
        assert said and all(t.strip() and t.encode() for t in said)
        assert prompt.messages is None or prompt.messages[-1]["role"] == "user"
        assert prompt.name.isprintable() and prompt.domain.isprintable() and prompt.name and prompt.domain


LIMITS = st.none() | st.integers(1, 5)
FORMS = st.sampled_from(["auto", *CONTAINERS])


@settings(max_examples=250, deadline=None)
@given(st.binary(max_size=200) | st.lists(MARKS, max_size=40).map(b"".join), NAMES, LIMITS, FORMS, st.booleans())
def test_any_bytes(place: pathlib.Path, raw: bytes, name: str, limit: int | None, form: str, is_packed: bool) -> None:
    (place / name).write_bytes(gzip.compress(raw) if is_packed else raw)
    _read_or_refused(place / name, limit, form)


@settings(max_examples=250, deadline=None)
@given(st.lists(VALUES, max_size=5), NAMES, LIMITS, FORMS, st.booleans(), st.booleans())
def test_any_json(
    place: pathlib.Path, values: list[Any], name: str, limit: int | None, form: str, is_list: bool, is_ascii: bool
) -> None:
    texts = [json.dumps(v, ensure_ascii=is_ascii) for v in values]
    content = "[" + ",".join(texts) + "]" if is_list else "\n".join(texts)
    (place / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    _read_or_refused(place / name, limit, form)


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, max_size=4), st.integers(1, 9), st.sampled_from([None, 1]), st.booleans())
def test_a_list_is_cut_where_a_parser_cuts_it(
    values: list[Any], chunk: int, indent: int | None, is_ascii: bool
) -> None:
    raw = json.dumps(values, indent=indent, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_containers, "_CHUNK", chunk)
        cut = [
            e for e in prompt_containers._values(io.BytesIO(raw)) if isinstance(e, prompt_containers.Skip) or e.strip()
        ]
    assert not any(isinstance(e, prompt_containers.Skip) for e in cut)
    again = [json.loads(e.decode("utf-8", "surrogatepass")) for e in cut if isinstance(e, bytes)]
    assert repr(again) == repr(json.loads(raw.decode("utf-8", "surrogatepass")))
