"""Files of records: what was written is read; what a killed process left behind does no harm."""

from __future__ import annotations

import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.errors import InputError
from specdec.profile.records import Records, read_records


def write(path: pathlib.Path, *numbers: int) -> None:
    with Records(path) as records:
        for number in numbers:
            records.add({"number": number, "text": "é\n"})


def numbers(*paths: pathlib.Path) -> list[int]:
    return [r["number"] for r in read_records(*paths)]


def test_records_are_appended_and_read_in_order(tmp_path: pathlib.Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, 1, 2)
    write(one, 3)
    write(two, 4)
    assert numbers(one, tmp_path / "missing", two) == [1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(st.integers(min_value=0, max_value=10_000))
def test_a_torn_end_is_dropped_and_written_again(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "records"
    write(path, *range(5))
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % (len(whole) + 1)])
    left = numbers(path)
    assert left == list(range(len(left)))
    write(path, *range(len(left), 5))
    assert path.read_bytes() == whole


def test_a_torn_line_longer_than_a_block_is_dropped(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "records"
    write(path, 0)
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * 200_000)
    write(path)
    assert path.read_bytes() == whole
    path.write_bytes(b"x" * 200_000)
    write(path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("line", ["no json", "[1]", "3"])
def test_a_broken_line_is_named(tmp_path: pathlib.Path, line: str) -> None:
    path = tmp_path / "records"
    write(path, 0)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match="line 2 is no record"):
        numbers(path)
