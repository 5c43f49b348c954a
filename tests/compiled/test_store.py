"""Packages on disk: whole or not there, ours alone, and never more bytes than allowed."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from specdec.compiled import Package, Store
from specdec.compiled.store import describe
from specdec.errors import OptionError

KEY = "0123abcd"
CONTENT = bytes(range(256)) * 4
MEMORY = [(2, 8, 8), (4, 8, 16)]
GIB = 1 << 30


@pytest.fixture
def store(folder: pathlib.Path) -> Store:
    return Store(folder)


def put(store: Store, key: str = KEY, content: bytes = CONTENT, age: float = 0.0) -> pathlib.Path:
    """A package, last used `age` seconds ago."""
    built = store.temporary(key)
    built.write_bytes(content)
    file = store.put(describe(key, "Tiny", built, 61.5, MEMORY), built)
    last = time.time() - age
    os.utime(file.with_suffix(".json"), (last, last))
    return file


def names(store: Store) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def keys(store: Store) -> list[str]:
    return [package.key for package in store.packages()]


def rewrite(manifest: pathlib.Path, **changes: object) -> None:
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))


def test_what_was_put_is_found(store: Store) -> None:
    assert store.find(KEY) is None
    assert store.packages() == []
    built = put(store)
    found = store.find(KEY)
    assert found is not None
    package, file = found
    assert file == built and file.read_bytes() == CONTENT
    assert (package.key, package.model, package.num_bytes, package.seconds) == (KEY, "Tiny", len(CONTENT), 61.5)
    assert package.memory == MEMORY and package.widest is None
    assert store.packages() == [package]
    assert store.find("another") is None
    assert Store(store.folder).find(KEY) == found, "by another process as well"
    assert names(store) == {f"{KEY}.json", f"{KEY}.pt2"}, "no file is left over from building"


def test_a_key_that_is_put_again_is_replaced(store: Store) -> None:
    put(store)
    put(store, content=b"another")
    found = store.find(KEY)
    assert found is not None
    assert found[1].read_bytes() == b"another" and found[0].num_bytes == 7
    assert len(store.packages()) == 1


def test_the_width_beyond_which_it_does_not_pay_is_kept(store: Store) -> None:
    built = store.temporary(KEY)
    built.write_bytes(CONTENT)
    described = describe(KEY, "Tiny", built, 1.0, MEMORY)
    package = Package(KEY, "Tiny", described.num_bytes, described.sha256, 1.0, MEMORY, widest=32)
    store.put(package, built)
    assert store.packages() == [package]


def test_remove(store: Store) -> None:
    put(store)
    put(store, "other")
    store.remove(KEY)
    store.remove("never there")
    assert store.find(KEY) is None
    assert keys(store) == ["other"]
    assert names(store) == {"other.json", "other.pt2"}


def test_clear(store: Store) -> None:
    """All of ours goes, half of a package too, and nothing else: not what is being built, nor somebody's files."""
    assert store.clear() == 0
    put(store, "0a1b")
    put(store, "2c3d")
    size = sum(path.stat().st_size for path in store.folder.iterdir())
    (store.folder / "4e5f.pt2").write_bytes(b"12345")
    store.temporary("6a7b").write_bytes(b"123")
    mine = {"notes.txt", "package.json", "poetry.lock", "model.pt2"}
    for name in mine:
        (store.folder / name).write_text("mine")
    assert store.clear() == size + 5
    assert names(store) == {*mine, store.temporary("6a7b").name}
    assert store.packages() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.with_suffix(".json").unlink(),
        lambda file: file.unlink(),
        lambda file: file.write_bytes(CONTENT[:-1]),
        lambda file: file.write_bytes(CONTENT[:-1] + b"\0"),
        lambda file: file.write_bytes(CONTENT + b"\0"),
        lambda file: file.write_bytes(b""),
    ],
    ids=["no manifest", "no file", "truncated", "a changed byte", "longer", "empty"],
)
def test_a_package_that_is_not_whole_is_never_found(store: Store, damage: object) -> None:
    """It is removed, so that it is built anew."""
    file = put(store)
    put(store, "other")
    assert callable(damage)
    damage(file)
    assert store.find(KEY) is None
    assert names(store) == {"other.json", "other.pt2"}
    assert store.find("other") is not None
    put(store)
    assert store.find(KEY) is not None


def test_a_package_does_not_count_before_its_manifest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies while it writes leaves nothing that another would load."""
    replace = os.replace

    def dies(source: pathlib.Path, target: pathlib.Path) -> None:
        if str(target).endswith(".json"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        put(store)
    monkeypatch.undo()
    assert (store.folder / f"{KEY}.pt2").exists()
    assert store.packages() == []
    assert store.find(KEY) is None
    assert not (store.folder / f"{KEY}.pt2").exists()


MANIFESTS = {
    "cut off": b'{"format": 1, "key": ',
    "empty": b"",
    "no text": b"\xff\xfe\x00{",
    "a list": b"[]",
    "nothing in it": b"{}",
    "no fields": b'{"format": 1}',
}


def check_ignored(store: Store) -> None:
    """The manifest of KEY is neither listed nor used, and goes with its package; others stay."""
    assert keys(store) == ["other"]
    assert store.find(KEY) is None
    assert names(store) == {"other.json", "other.pt2"}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_garbled_manifest_is_ignored_and_removed(store: Store, kind: str) -> None:
    put(store)
    put(store, "other")
    (store.folder / f"{KEY}.json").write_bytes(MANIFESTS[kind])
    check_ignored(store)


@pytest.mark.parametrize("text", ["null", "3", '"text"'])
def test_a_manifest_that_is_json_of_another_kind(store: Store, text: str) -> None:
    put(store)
    put(store, "other")
    (store.folder / f"{KEY}.json").write_text(text)
    check_ignored(store)


@pytest.mark.parametrize("changes", [{"format": 0}, {"format": 2}, {"format": None}, {"newer": 1}, {"memory": 3}])
def test_a_manifest_of_another_format_is_ignored_and_removed(store: Store, changes: dict[str, object]) -> None:
    put(store)
    put(store, "other")
    rewrite(store.folder / f"{KEY}.json", **changes)
    check_ignored(store)


def test_a_manifest_under_another_name(store: Store) -> None:
    """A copied package is another model's."""
    put(store)
    for kind in ("json", "pt2"):
        (store.folder / f"{KEY}.{kind}").rename(store.folder / f"copy.{kind}")
    assert store.find("copy") is None
    assert names(store) == set()


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_a_file_that_others_may_write_to_is_not_trusted(store: Store, mode: int) -> None:
    put(store).chmod(mode)
    assert store.find(KEY) is None
    assert names(store) == set()


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400])
def test_a_file_that_others_may_only_read_is(store: Store, mode: int) -> None:
    put(store).chmod(mode)
    assert store.find(KEY) is not None


def test_a_link_is_not_trusted(store: Store, tmp_path: pathlib.Path) -> None:
    """What it points to may be changed by whoever owns it."""
    file = put(store)
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    assert store.find(KEY) is None
    assert elsewhere.exists()


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o000])
def test_whatever_the_umask(store: Store, mask: int) -> None:
    """Some distributions give users a umask of 002; a package is found all the same, and is the user's alone."""
    before = os.umask(mask)
    try:
        put(store)
        assert store.find(KEY) is not None
    finally:
        os.umask(before)
    assert store.folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_may_write_to(store: Store, mode: int) -> None:
    """Code could be put into it: nothing in it is used, and nothing is added."""
    put(store)
    store.folder.chmod(mode)
    assert store.find(KEY) is None
    built = store.folder / "built"
    built.write_bytes(CONTENT)
    with pytest.raises(OptionError, match="chmod it to 700, or name another with SPECDEC_CACHE"):
        store.put(describe("new", "Tiny", built, 1.0, MEMORY), built)
    with pytest.raises(OptionError, match="can be written by others"):
        store.temporary("new")
    with pytest.raises(OptionError, match="can be written by others"), store.locked("new"):
        pass
    assert names(store) == {"built", f"{KEY}.json", f"{KEY}.pt2"}
    store.folder.chmod(0o700)
    assert store.find(KEY) is not None, "nothing was lost"


def test_a_folder_of_another_user(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store)
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    assert store.find(KEY) is None
    with pytest.raises(OptionError, match="belongs to another user"):
        store.temporary("new")


def test_the_ones_not_used_for_longest_go_first(folder: pathlib.Path) -> None:
    store = Store(folder, most_bytes=3 * len(CONTENT))
    for age, key in ((300, "a"), (200, "b"), (100, "c")):
        put(store, key, age=age)
    assert keys(store) == ["c", "b", "a"]
    put(store, "d")
    assert keys(store) == ["d", "c", "b"]
    assert not (folder / "a.pt2").exists()


def test_using_a_package_renews_it(folder: pathlib.Path) -> None:
    store = Store(folder, most_bytes=3 * len(CONTENT))
    for age, key in ((300, "a"), (200, "b"), (100, "c")):
        put(store, key, age=age)
    assert store.find("a") is not None
    assert keys(store) == ["a", "c", "b"]
    put(store, "d", age=-1)
    assert keys(store) == ["d", "a", "c"]


def test_the_one_just_put_stays(folder: pathlib.Path) -> None:
    """Even where it alone is more than what is allowed: it was asked for."""
    store = Store(folder, most_bytes=2 * len(CONTENT))
    put(store, "a", age=-100)  # used later than the next, by a clock that is ahead
    put(store, "b", age=-100)
    put(store, "large", content=3 * CONTENT)
    assert keys(store) == ["large"]
    assert names(store) == {"large.json", "large.pt2"}
    assert store.find("large") is not None
    put(store, "c")
    assert keys(store) == ["c"]


def test_nothing_goes_before_the_limit(folder: pathlib.Path) -> None:
    store = Store(folder, most_bytes=2 * len(CONTENT))
    put(store, "a", age=100)
    put(store, "b")
    assert keys(store) == ["b", "a"]


def test_what_a_cut_off_build_left_goes_after_an_hour(store: Store) -> None:
    old, fresh = store.temporary("old"), store.temporary("fresh")
    for file, age in ((old, 2 * 3600), (fresh, 1800)):
        file.write_bytes(CONTENT)
        os.utime(file, (time.time() - age,) * 2)
    put(store)
    assert not old.exists()
    assert fresh.exists(), "another process may still be writing it"


def test_two_threads_do_not_build_at_once(store: Store) -> None:
    inside, most, start = [0], [0], threading.Barrier(4)

    def build() -> None:
        start.wait()
        with store.locked(KEY):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            inside[0] -= 1

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_two_processes_do_not_build_at_once(store: Store) -> None:
    """Another key is not waited for."""
    program = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def gets_in(key: str) -> bool:
        lock = store.folder / f"{key}.lock"
        done = subprocess.run([sys.executable, "-S", "-c", program, lock], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "BlockingIOError" in done.stderr, done.stderr
        return done.returncode == 0

    with store.locked(KEY):
        assert not gets_in(KEY)
        assert gets_in("other")
    assert gets_in(KEY)


def test_an_error_ends_the_lock(store: Store) -> None:
    with pytest.raises(RuntimeError), store.locked(KEY):
        raise RuntimeError
    entered = threading.Event()

    def enter() -> None:
        with store.locked(KEY):
            entered.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    assert entered.wait(5)
    thread.join()


def test_where_packages_lie(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path / "own"))
    assert Store().folder == tmp_path / "own"
    assert Store(tmp_path / "named").folder == tmp_path / "named"
    monkeypatch.delenv("SPECDEC_CACHE")
    assert Store().folder == tmp_path / "xdg" / "specdec"
    put(Store())
    assert (tmp_path / "xdg" / "specdec" / f"{KEY}.pt2").exists()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Store().folder == tmp_path / "home" / ".cache" / "specdec"
    assert not (tmp_path / "home").exists(), "nothing is made before it is needed"


def test_how_much_they_may_hold(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Store(folder).most_bytes == 8 * GIB
    monkeypatch.setenv("SPECDEC_CACHE_BYTES", "1000")
    assert Store(folder).most_bytes == 1000
    assert Store(folder, most_bytes=5).most_bytes == 5
    put(Store(folder), "a", content=bytes(600), age=10)
    put(Store(folder), "b", content=bytes(600))
    assert keys(Store(folder)) == ["b"]


@pytest.mark.parametrize("value", ["8G", "-1", "1.5", "1e9", "much"])
def test_a_limit_that_is_no_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_CACHE_BYTES", value)
    with pytest.raises(OptionError, match=f"SPECDEC_CACHE_BYTES must be a number of bytes, got '{value}'"):
        Store()
