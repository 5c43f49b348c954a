"""SuffixIndex: saved and loaded, bounded, shared between threads, refused where it does not fit."""

from __future__ import annotations

import itertools
import pathlib
import threading
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny
from transformers import AutoTokenizer

import specdec
from specdec.bundled import bundled_dir
from specdec.drafters.suffix_array import Corpus, SuffixArray
from specdec.drafters.suffix_index import fingerprint

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=12)
SuffixIndex = specdec.SuffixIndex


def contents(index: specdec.SuffixIndex) -> list[list[int]]:
    """Its texts, oldest first."""
    texts: list[list[int]] = []
    for array in index.arrays:
        for token in array.tokens[:-1].tolist():
            texts.append([]) if token < 0 else texts[-1].append(token)
    return texts


def tokenizer():
    return AutoTokenizer.from_pretrained(bundled_dir() / "pair" / "target")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=TEXTS, context=st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_added_one_by_one_equals_built(texts: list[list[int]], context: list[int]) -> None:
    """Few arrays, the same texts in the same order, and the same counts."""
    index, whole = SuffixIndex(), SuffixIndex.build(texts)
    for text in texts:
        index.add(text)
    assert contents(index) == texts == contents(whole)
    sizes = [array.num_tokens for array in index.arrays]
    assert all(older > newer for older, newer in itertools.pairwise(sizes))
    grown, built = Corpus(index.arrays), Corpus(whole.arrays)
    (length, places), (other, others) = grown.find(context), built.find(context)
    assert length == other
    counts = [{t: n for t, n, *_ in corpus.followers(p)} for corpus, p in ((grown, places), (built, others))]
    assert counts[0] == counts[1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=TEXTS, max_bytes=st.integers(20, 300))
def test_the_oldest_texts_leave(texts: list[list[int]], max_bytes: int) -> None:
    index = SuffixIndex(max_bytes)
    for number, text in enumerate(texts):
        index.add(text)
        assert index.num_bytes <= max_bytes
        kept, room = contents(index), (max_bytes - 4) // 8
        assert kept, "the newest is there"
        assert kept == [t[-room:] for t in texts[: number + 1]][-len(kept) :]
    if sum(8 * len(t) + 4 for t in texts) + 4 <= max_bytes:
        assert contents(index) == texts, "nothing leaves before it must"


def test_full_indexes_are_not_rebuilt_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making room frees an eighth: a full index sorts its texts now and then, not with each new one."""
    sorted_tokens = []
    build, join, drop = SuffixArray.build.__func__, SuffixArray.join.__func__, SuffixArray.without_oldest

    def counted(array: SuffixArray) -> SuffixArray:
        sorted_tokens.append(array.num_tokens)
        return array

    monkeypatch.setattr(SuffixArray, "build", classmethod(lambda cls, texts: counted(build(cls, texts))))
    monkeypatch.setattr(SuffixArray, "join", classmethod(lambda cls, arrays: counted(join(cls, arrays))))
    monkeypatch.setattr(SuffixArray, "without_oldest", lambda self, n: counted(drop(self, n)))
    index = SuffixIndex(max_bytes=8_000)
    for number in range(400):
        index.add([number % 50] * 20)
    assert 800 <= index.num_tokens <= 1_000
    assert sum(sorted_tokens) <= 8_000 * 25


def test_build_stops_at_its_bound() -> None:
    index = SuffixIndex.build(iter([[1, 2, 3]] * 100), max_bytes=100)
    assert index.num_bytes <= 100
    assert index.num_texts == 3
    with pytest.raises(specdec.OptionError, match="max_bytes=20 is less than the first text's"):
        SuffixIndex.build([[1, 2, 3]], max_bytes=20)


def test_eight_bytes_a_token() -> None:
    index = SuffixIndex.build([list(range(1000))] * 3)
    assert index.num_bytes <= 8 * index.num_tokens + 4 * (index.num_texts + 1)
    assert index.num_bytes == sum(a.tokens.nbytes + a.order.nbytes for a in index.arrays)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(texts=TEXTS)
def test_save_and_load(tmp_path_factory: pytest.TempPathFactory, texts: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("index") / "index.npz"
    index = SuffixIndex(max_bytes=5_000, vocab_size=7, fingerprint="abc")
    for text in texts:
        index.add(text)
    index.save(path)
    loaded = SuffixIndex.load(path)
    assert contents(loaded) == contents(index)
    assert (loaded.max_bytes, loaded.vocab_size, loaded.fingerprint) == (5_000, 7, "abc")
    assert loaded.num_tokens == index.num_tokens
    loaded.add([1, 2])
    assert contents(loaded) == [*texts, [1, 2]]
    assert [p.name for p in path.parent.iterdir()] == ["index.npz"], "no temporary file is left"


def test_loading_into_less_room(tmp_path: pathlib.Path) -> None:
    SuffixIndex.build([[i] * 10 for i in range(10)]).save(tmp_path / "i.npz")
    assert contents(SuffixIndex.load(tmp_path / "i.npz", max_bytes=300))[-1] == [9] * 10
    assert SuffixIndex.load(tmp_path / "i.npz", max_bytes=300).num_bytes <= 300
    assert SuffixIndex.load(tmp_path / "i.npz", max_bytes=50).num_texts == 0


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "index.npz"
    SuffixIndex.build([list(range(50))] * 4, vocab_size=96).save(path)
    return path


def rewritten(path: pathlib.Path, **changes: object) -> None:
    with np.load(path) as file:
        parts = {name: file[name] for name in file.files}
    np.savez(path, **{**parts, **changes})


def damage(path: pathlib.Path, how: str) -> None:
    raw = path.read_bytes()
    with np.load(path) as file:
        tokens, order = file["tokens"], file["order"]
    if how == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    elif how == "flipped":
        middle = raw.index(order.tobytes()[:40]) + 20
        path.write_bytes(raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("no index")
    elif how == "npy":
        with open(path, "wb") as file:
            np.save(file, tokens)
    elif how == "pickle":
        np.savez(path, tokens=np.array([{"a": 1}], dtype=object))
    elif how == "foreign":
        np.savez(path, weights=tokens)
    elif how == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("tokens.npy", b"nothing")
    elif how == "version":
        rewritten(path, version=np.array(99))
    elif how == "other types":
        rewritten(path, order=order.astype(np.int64))
    elif how == "places outside":
        rewritten(path, order=order + 1000)
    elif how == "places twice":
        rewritten(path, order=np.concatenate([order[:1], order[:-1]]))
    elif how == "places missing":
        rewritten(path, order=order[:-1])
    elif how == "no texts":
        rewritten(path, tokens=np.arange(len(tokens), dtype=np.int32))
    elif how == "vocabulary":
        rewritten(path, tokens=np.where(tokens > 40, tokens + 10_000, tokens).astype(np.int32))


@pytest.mark.parametrize(
    "how",
    "cut flipped empty text npy pickle foreign zip version other_types places_outside places_twice places_missing "
    "no_texts vocabulary".split(),
)
def test_damaged_and_foreign_files(saved: pathlib.Path, how: str) -> None:
    SuffixIndex.load(saved)
    damage(saved, how.replace("_", " "))
    with pytest.raises(specdec.OptionError, match=r"index\.npz is damaged, or no index.*build it again"):
        SuffixIndex.load(saved)


def test_missing_files(tmp_path: pathlib.Path) -> None:
    with pytest.raises(specdec.OptionError, match=r"there is no index .*specdec index build"):
        specdec.SuffixDrafter(tmp_path / "none.npz")
    with pytest.raises(specdec.OptionError, match="cannot write the index"):
        SuffixIndex().save(tmp_path / "none" / "index.npz")
    with pytest.raises(specdec.OptionError, match="damaged, or no index"):
        SuffixIndex.load(tmp_path)


def test_another_tokenizer(tmp_path: pathlib.Path) -> None:
    own, other = tokenizer(), tokenizer()
    other.add_tokens(["<another>"])
    assert fingerprint(own) != fingerprint(other)
    index = SuffixIndex.build([own("def f(x): return x").input_ids], tokenizer=own)
    assert index.vocab_size == len(own)
    index.save(tmp_path / "index.npz")
    SuffixIndex.load(tmp_path / "index.npz", tokenizer=own)
    specdec.SuffixDrafter(tmp_path / "index.npz", tokenizer=own)
    with pytest.raises(specdec.DraftMismatchError, match=r"another tokenizer.*build it again"):
        SuffixIndex.load(tmp_path / "index.npz", tokenizer=other)
    with pytest.raises(specdec.DraftMismatchError, match="another tokenizer"):
        specdec.SuffixDrafter(index, tokenizer=other)


def test_another_vocabulary() -> None:
    """By its size, or by ids that the target does not have; before any forward."""
    target = tiny("llama")  # 96 ids
    for index in (SuffixIndex.build([[1, 2]], vocab_size=5_000), SuffixIndex.build([[1, 96]])):
        with pytest.raises(specdec.DraftMismatchError, match=r"the target has 96.*Build one with the target's"):
            specdec.generate(target, input_ids=target.dummy_inputs["input_ids"], drafter=specdec.SuffixDrafter(index))
    first = SuffixIndex()
    first.check(96)
    with pytest.raises(specdec.DraftMismatchError):
        first.check(5_000)


@pytest.mark.parametrize("text", [[-1], [3, 2_000_000]])
def test_ids_that_are_none(text: list[int]) -> None:
    index = SuffixIndex(vocab_size=96)
    for call in (index.add, lambda t: SuffixIndex.build([t], vocab_size=96)):
        with pytest.raises(specdec.OptionError, match="token ids"):
            call(text)
    assert index.num_texts == 0


@pytest.mark.parametrize("arguments", [{"max_bytes": 0}, {"max_bytes": 1.5}, {"vocab_size": 0}])
def test_impossible_bounds(arguments: dict[str, object]) -> None:
    with pytest.raises(specdec.OptionError, match="positive integer"):
        SuffixIndex(**arguments)


def test_threads_add_and_read() -> None:
    """No text is lost, and readers see whole arrays."""
    index, failures = SuffixIndex(), []

    def write(number: int) -> None:
        for i in range(60):
            index.add([number, i, number, i + 1])

    def read() -> None:
        for _ in range(200):
            for array in index.arrays:
                length, begin, end = array.find([0, 5, 0])
                if length and array.tokens[array.order[begin:end]].tolist() != [0] * (end - begin):
                    failures.append(length)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)] + [threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(map(tuple, contents(index))) == sorted((n, i, n, i + 1) for n in range(4) for i in range(60))
