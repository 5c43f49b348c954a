"""Files that specdec reads may hold anything: a typed error or a right object, and no more memory than the file."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import pickle
import random
import tracemalloc
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from models import tiny

import specdec
from specdec.compiled import Package, Store
from specdec.compiled.store import describe
from specdec.drafters.suffix_array import Corpus

TEXTS = [[i % 7 for i in range(n)] for n in (30, 1, 12)]
QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
KEY = "0123abcd"


class Executes:
    """What a pickle would run."""

    done = False

    def __reduce__(self) -> Any:
        return (setattr, (Executes, "done", True))


def contents(index: specdec.SuffixIndex) -> list[list[int]]:
    texts: list[list[int]] = []
    for array in index.arrays:
        for token in array.tokens[:-1].tolist():
            texts.append([]) if token < 0 else texts[-1].append(token)
    return texts


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("index") / "index.npz"
    specdec.SuffixIndex.build(TEXTS, vocab_size=7).save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("fuzz") / "index.npz"


@contextlib.contextmanager
def little_memory(most: int) -> Iterator[None]:
    """Python and numpy allocate no more than so many bytes at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def check_index(path: pathlib.Path, raw: bytes) -> specdec.SuffixIndex | None:
    """A typed error, or an index that can be searched and added to."""
    path.write_bytes(raw)
    Executes.done = False
    try:
        with little_memory(2_000_000 + 40 * len(raw)):
            index = specdec.SuffixIndex.load(path)
    except (specdec.OptionError, specdec.DraftMismatchError):
        assert not Executes.done
        return None
    assert not Executes.done
    length, places = Corpus(index.arrays).find([1, 2, 3])
    assert 0 <= length <= 3
    assert all(t >= 0 for t, *_ in Corpus(index.arrays).followers(places))
    with contextlib.suppress(specdec.OptionError):  # a vocabulary of fewer ids
        index.add([1, 2, 3])
    return index


def damaged(raw: bytes, data: st.DataObject) -> bytes:
    """Cut, with some bits flipped, some bytes replaced, a piece twice or left out."""
    out = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        how = data.draw(st.sampled_from(["flip", "replace", "cut", "drop", "repeat"]))
        at = data.draw(st.integers(0, max(0, len(out) - 1)))
        if how == "flip" and out:
            out[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "replace":
            new = data.draw(st.binary(min_size=1, max_size=8))
            out[at : at + len(new)] = new
        elif how == "cut":
            del out[at:]
        else:
            piece = out[at : at + data.draw(st.integers(1, 64))]
            out[at : at + (len(piece) if how == "drop" else 0)] = b"" if how == "drop" else piece
    return bytes(out)


def damage_index(saved: bytes, place: pathlib.Path, data: st.DataObject) -> None:
    raw = damaged(saved, data)
    index = check_index(place, raw)
    if index is not None:  # what zip's checksums cover is as it was; names of files and notes they do not
        assert contents(index)[: len(TEXTS)] == TEXTS


@QUICK
@given(data=st.data())
def test_a_damaged_index(saved: bytes, place: pathlib.Path, data: st.DataObject) -> None:
    damage_index(saved, place, data)


@pytest.mark.long
@LONG
@given(data=st.data())
def test_many_damaged_indexes(saved: bytes, place: pathlib.Path, data: st.DataObject) -> None:
    damage_index(saved, place, data)


def test_every_bit_of_an_index(saved: bytes, place: pathlib.Path) -> None:
    """A sample at each change: each structure of the zip has some."""
    chosen = random.Random(0).sample(range(8 * len(saved)), 150)
    for bit in chosen:
        raw = bytearray(saved)
        raw[bit // 8] ^= 1 << (bit % 8)
        index = check_index(place, bytes(raw))
        assert index is None or contents(index)[: len(TEXTS)] == TEXTS


@QUICK
@given(raw=st.binary(max_size=400))
@example(raw=b"PK\x03\x04" + b"\0" * 60)
@example(raw=b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}")
@example(raw=pickle.dumps(Executes()))
def test_random_bytes_for_an_index(place: pathlib.Path, raw: bytes) -> None:
    assert check_index(place, raw) is None


def numbers() -> st.SearchStrategy[Any]:
    dtypes = st.sampled_from([np.int8, np.int32, np.int64, np.uint16, np.float64, np.bool_, np.complex64, "U3", "S2"])
    values = st.one_of(st.integers(-5, 120), st.sampled_from([float("nan"), float("inf"), 1e300, -(2**31), 2**31 - 1]))

    def made(dtype: Any, rows: list[Any], shape: str) -> Any:
        with np.errstate(all="ignore"):
            try:
                array = np.array(rows).astype(dtype)
            except (ValueError, OverflowError):
                array = np.array(rows)
        return array.reshape(-1, 1) if shape == "column" else array[0] if shape == "scalar" and rows else array

    return st.builds(made, dtypes, st.lists(values, max_size=6), st.sampled_from(["row", "column", "scalar"]))


PARTS = ["format", "version", "max_bytes", "vocab_size", "fingerprint", "tokens", "order"]


@QUICK
@given(name=st.sampled_from(PARTS), value=numbers(), dropped=st.booleans())
@example(name="max_bytes", value=np.array([1, 2]), dropped=False)
@example(name="vocab_size", value=np.array(float("inf")), dropped=False)
@example(name="version", value=np.array([[1]]), dropped=False)
def test_an_index_with_other_parts(saved: bytes, place: pathlib.Path, name: str, value: Any, dropped: bool) -> None:
    """A well-made file whose numbers are not what `save` writes."""
    with np.load(io.BytesIO(saved)) as file:
        parts = {n: file[n] for n in file.files}
    parts.pop(name) if dropped else parts.update({name: value})
    raw = io.BytesIO()
    np.savez(raw, **parts)
    index = check_index(place, raw.getvalue())
    if index is not None:
        assert index.max_bytes >= 1
        assert not dropped


def archive(**parts: bytes) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as file:
        for name, content in parts.items():
            file.writestr(f"{name}.npy", content)
    return raw.getvalue()


def test_an_index_that_says_it_is_huge(saved: bytes, place: pathlib.Path) -> None:
    """A header that promises terabytes, and a packed array of zeros: refused before anything is allocated."""
    with np.load(io.BytesIO(saved)) as file:
        parts = {n: file[n] for n in file.files}

    def npy(array: Any) -> bytes:
        raw = io.BytesIO()
        np.save(raw, array)
        return raw.getvalue()

    for name in ("tokens", "format"):
        contents_ = {n: npy(a) for n, a in parts.items()}
        header = contents_[name]
        for length in (10**7, 10**12, 10**18):
            shape, descr = f"({length},)", "<i4" if name == "tokens" else "<U9"
            text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
            contents_[name] = header[:8] + len(text).to_bytes(2, "little") + text.encode() + header[-64:]
            assert check_index(place, archive(**contents_)) is None
    raw = io.BytesIO()
    bomb = np.full(40_000_000, -1, dtype=np.int32)
    np.savez_compressed(raw, **{**parts, "tokens": bomb})
    assert len(raw.getvalue()) < 1_000_000
    del bomb
    assert check_index(place, raw.getvalue()) is None


def test_a_pickle_in_an_index(saved: bytes, place: pathlib.Path) -> None:
    with np.load(io.BytesIO(saved)) as file:
        parts = {n: file[n] for n in file.files}
    for name in PARTS:
        raw = io.BytesIO()
        np.savez(raw, **{**parts, name: np.array([Executes()], dtype=object)})
        assert check_index(place, raw.getvalue()) is None
    raw.seek(0)
    with np.load(raw, allow_pickle=True) as file:
        _ = file[name]
    assert Executes.done, "it would have run"


# Manifests of compiled packages


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store") / "packages")


def put(store: Store) -> tuple[Package, bytes]:
    built = store.temporary(KEY)
    built.write_bytes(b"native code")
    package = describe(KEY, "Tiny", built, 61.5, [(2, 8, 8), (4, 8, 16)])
    store.put(package, built)
    return package, (store.folder / f"{KEY}.json").read_bytes()


def check_manifest(store: Store, raw: bytes) -> None:
    """Nothing is found, or what was put; listing and clearing work whatever lies there."""
    package, _ = put(store)
    manifest, outside = store.folder / f"{KEY}.json", store.folder.parent / "mine.json"
    outside.write_text("mine")
    manifest.write_bytes(raw)
    with little_memory(2_000_000 + 20 * len(raw)):
        listed = store.packages()
        found = store.find(KEY)
    assert listed in ([], [package])
    assert found is None or found[0] == package
    if found is None:
        assert not manifest.exists(), "it goes, so that the package is built anew"
    Store(store.folder, most_bytes=1)._evict(keep="none")
    assert outside.read_text() == "mine"


@QUICK
@given(data=st.data())
def test_a_damaged_manifest(store: Store, data: st.DataObject) -> None:
    check_manifest(store, damaged(put(store)[1], data))


@pytest.mark.long
@LONG
@given(data=st.data())
def test_many_damaged_manifests(store: Store, data: st.DataObject) -> None:
    check_manifest(store, damaged(put(store)[1], data))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["format", "digest", "key", "model", "num_bytes", "sha256", "seconds", "memory", "widest"]


@QUICK
@given(name=st.sampled_from(FIELDS), value=JSON)
@example(name="key", value="../mine")
@example(name="memory", value=[[2, 8, 9], [4, 8, 16]])
@example(name="num_bytes", value=True)
def test_a_manifest_with_other_fields(store: Store, name: str, value: Any) -> None:
    check_manifest(store, json.dumps({**json.loads(put(store)[1]), name: value}).encode())


@QUICK
@given(raw=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@example(raw=b"[" * 200_000)
@example(raw=b'{"a":' * 100_000)
@example(raw=b"9" * 10_000)
@example(raw=b" " * 3_000_000)
def test_random_bytes_for_a_manifest(store: Store, raw: bytes) -> None:
    check_manifest(store, raw)


def test_folders_in_place_of_files(store: Store) -> None:
    for kind in ("json", "pt2"):
        put(store)
        path = store.folder / f"{KEY}.{kind}"
        path.unlink()
        path.mkdir()
        assert store.find(KEY) is None
        store.packages()
        path.rmdir()
    store.remove(KEY)


# Sets of skipped layers


@QUICK
@given(raw=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@example(raw=b"[" * 100_000)
@example(raw=b'{"format": 1, "skip": [1e999]}')
def test_random_bytes_for_a_set_of_layers(place: pathlib.Path, raw: bytes) -> None:
    place.write_bytes(raw)
    with pytest.raises(specdec.OptionError, match="holds no set of layers"):
        specdec.SkipSet.load(place, tiny("llama"))


@QUICK
@given(data=st.data())
def test_a_damaged_set_of_layers(place: pathlib.Path, data: st.DataObject) -> None:
    found = specdec.SkipSet("LlamaForCausalLM", 3, 0, (1,), 0.5, ((1,),))
    found.save(place)
    place.write_bytes(damaged(place.read_bytes(), data))
    with contextlib.suppress(specdec.SpecdecError):
        read = specdec.SkipSet.load(place, tiny("llama"))
        assert set(read.skip) <= {0, 1, 2}
        specdec.LayerSkipDrafter(read).check(tiny("llama"))
