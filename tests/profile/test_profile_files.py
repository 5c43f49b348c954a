"""profile.json: what is saved is what is read; what is not a profile is refused by field."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.errors import InputError
from specdec.profile.files import load, read, save
from specdec.profile.schema import Profile
from tests.profile.sample import profile


def test_what_is_saved_is_read_back(tmp_path: pathlib.Path) -> None:
    written = profile()
    save(written, tmp_path / "deep" / "down")
    assert load(tmp_path / "deep" / "down") == written
    assert load(tmp_path / "deep" / "down" / "profile.json") == written


def test_text_that_is_no_text_is_kept(tmp_path: pathlib.Path) -> None:
    """A file name may hold bytes that are no UTF-8, which Python gives as lone surrogates."""
    sample = profile()
    odd = dataclasses.replace(sample, subject=dataclasses.replace(sample.subject, prompts="\udcff\x00\u202e"))
    save(odd, tmp_path)
    assert load(tmp_path) == odd


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    return [path, *(p for key, v in inner for p in _paths(v, (*path, key)))]


TREE = dataclasses.asdict(profile())
PATHS = [p for p in _paths(TREE) if p]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PATHS), st.one_of(st.none(), st.booleans(), st.text(), st.integers(), st.just([]), st.just({})))
def test_a_field_of_another_type_is_refused_or_read(path: tuple[Any, ...], value: Any) -> None:
    tree = json.loads(json.dumps(TREE))
    place = tree
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    try:
        again = read(Profile, tree, "profile")
    except InputError:
        return
    assert dataclasses.asdict(again) == tree


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_other_files_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("other") / "profile.json"
    path.write_bytes(content)
    with pytest.raises(InputError):
        load(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"version": 99}', "version 99"),
        ('{"version": true}', "version True"),
        ("[1]", "version None"),
        ('{"version": NaN}', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"version": 1}', "lacks 'created'"),
    ],
)
def test_the_error_says_what_is_wrong(tmp_path: pathlib.Path, content: str, words: str) -> None:
    (tmp_path / "profile.json").write_text(content)
    with pytest.raises(InputError, match=words):
        load(tmp_path)


def test_a_missing_profile_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="no profile at"):
        load(tmp_path)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(InputError, match="no field 'extra'"):
        read(Profile, TREE | {"extra": 1}, "profile")
