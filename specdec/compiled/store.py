"""Compiled packages on disk: found by key, checked before they are loaded, bounded in bytes.

A package is native code, so a foreign one would be run as the user. The folder belongs to the user alone, and a
package counts only if a manifest beside it, written last, names its length and hash (and has one of its own).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from specdec.errors import OptionError

_FORMAT = 1
# What a store writes, but for locks.
_FILE = re.compile(r"[0-9a-f]+(\.\d+\.tmp)?(\.json|\.pt2)|[0-9a-f]+\.\d+\.tmp")
_DEFAULT_BYTES = 8 << 30
_MOST_BYTES = 1 << 20  # of a manifest, which has some hundred


@dataclass(frozen=True, slots=True)
class Package:
    """One compiled model.

    Args:
        key: see `fingerprint.key_of`.
        model: its class, for people.
        num_bytes, sha256: of the package file.
        seconds: that building took.
        memory: heads, width of a key and of a value of each attention layer.
        widest: windows of more tokens run faster uncompiled; None if none do.
    """

    key: str
    model: str
    num_bytes: int
    sha256: str
    seconds: float
    memory: list[tuple[int, int, int]]
    widest: int | None = None


class Store:
    """The folder of packages.

    Args:
        folder: by default $SPECDEC_CACHE, else `specdec` in $XDG_CACHE_HOME or ~/.cache.
        most_bytes: what all packages may hold; by default $SPECDEC_CACHE_BYTES, else 8 GiB. The ones that have not
            been used for longest go first.

    Raises:
        OptionError: the folder belongs to someone else, or others may write to it.
    """

    def __init__(self, folder: pathlib.Path | None = None, most_bytes: int | None = None) -> None:
        self.folder = folder or _default_folder()
        self.most_bytes = most_bytes if most_bytes is not None else _default_bytes()

    def find(self, key: str) -> tuple[Package, pathlib.Path] | None:
        """The package of a key, if it is there and whole; a broken one is removed."""
        if not self._is_ours():
            return None
        manifest, file = self._paths(key)
        try:
            package = _read(manifest)
        except (OSError, ValueError):
            if manifest.exists() or file.exists():
                self.remove(key)
            return None
        if package.key != key or not _is_whole(file, package):
            self.remove(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(manifest)  # used now
        return package, file

    def put(self, package: Package, built: pathlib.Path) -> pathlib.Path:
        """Takes over a built file, then its manifest; makes room for it. Returns where it lies."""
        self._make()
        manifest, file = self._paths(package.key)
        built.chmod(0o600)  # whatever the umask: others may not write what is loaded as code
        os.replace(built, file)
        temporary = manifest.with_suffix(f".{os.getpid()}.tmp")
        fields = asdict(package)
        temporary.write_text(json.dumps({"format": _FORMAT, "digest": _digest(fields), **fields}))
        temporary.chmod(0o600)
        os.replace(temporary, manifest)
        self._evict(keep=package.key)
        return file

    def obtain(self, key: str, build: Callable[[], tuple[Package, pathlib.Path]]) -> tuple[Package, pathlib.Path]:
        """The package of a key, built and put here if no other process has done so meanwhile."""
        with self.locked(key):
            found = self.find(key)
            if found is not None:
                return found
            package, file = build()
            return package, self.put(package, file)

    def packages(self) -> list[Package]:
        """All that is there, the one used last first."""
        if not self.folder.is_dir():
            return []
        found = []
        for manifest in sorted(self.folder.glob("*.json"), key=_used, reverse=True):
            with contextlib.suppress(OSError, ValueError):
                found.append(_read(manifest))
        return found

    def remove(self, key: str) -> None:
        """Forgets a package."""
        for path in self._paths(key):  # the manifest first: what is left behind never counts
            with contextlib.suppress(OSError):  # a folder of that name, say
                path.unlink(missing_ok=True)

    def clear(self) -> int:
        """Forgets all packages; returns the bytes freed. What is not a package's, or being built, stays."""
        freed = 0
        if self._is_ours():
            for path in [p for p in self.folder.iterdir() if _FILE.fullmatch(p.name) and not _is_being_built(p)]:
                freed += path.stat().st_size
                path.unlink(missing_ok=True)
        return freed

    def temporary(self, key: str) -> pathlib.Path:
        """Where a package may be built, in the same file system."""
        self._make()
        return self.folder / f"{key}.{os.getpid()}.tmp.pt2"

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """One process builds a package; others wait, and find it there."""
        import fcntl  # not on Windows, where `support` refuses

        self._make()
        with open(self.folder / f"{key}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _paths(self, key: str) -> tuple[pathlib.Path, pathlib.Path]:
        return self.folder / f"{key}.json", self.folder / f"{key}.pt2"

    def _make(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._is_ours():
            raise OptionError(
                f"the folder of compiled packages, {self.folder}, belongs to another user or can be written by others, "
                "who could put code into it: chmod it to 700, or name another with SPECDEC_CACHE."
            )

    def _is_ours(self) -> bool:
        if not self.folder.is_dir():
            return False
        status = self.folder.stat()
        return status.st_uid == os.getuid() and not status.st_mode & 0o022

    def _evict(self, keep: str) -> None:
        packages = self.packages()
        total = sum(p.num_bytes for p in packages)
        for package in reversed(packages):
            if total <= self.most_bytes:
                break
            if package.key != keep:
                self.remove(package.key)
                total -= package.num_bytes
        for stray in self.folder.glob("*.tmp*"):  # of builds that were cut off
            if not _is_being_built(stray):
                stray.unlink(missing_ok=True)


def describe(key: str, model: str, built: pathlib.Path, seconds: float, memory: list[tuple[int, int, int]]) -> Package:
    """The manifest of a file that has just been built."""
    return Package(key, model, built.stat().st_size, _sha256(built), seconds, memory)


def _read(manifest: pathlib.Path) -> Package:
    """Raises ValueError for what `put` has not written, OSError for what cannot be read."""
    with open(manifest, "rb") as file:
        text = file.read(_MOST_BYTES + 1)
    try:
        content = json.loads(text if len(text) <= _MOST_BYTES else b"")
        if content.pop("format") != _FORMAT:
            raise ValueError("another version's manifest")
        if content.pop("digest") != _digest(content) or content["key"] != manifest.stem:
            raise ValueError("a damaged manifest, or another package's")
        content["memory"] = [tuple(shape) for shape in content["memory"]]
        return Package(**content)
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("no manifest") from error


def _digest(fields: Any) -> str:
    """Of a manifest's fields: a changed bit in a size would be run as native code."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _is_being_built(path: pathlib.Path) -> bool:
    """A file that some process may still be writing."""
    return ".tmp" in path.name and time.time() - _used(path) < 3600


def _is_whole(file: pathlib.Path, package: Package) -> bool:
    try:
        status = file.lstat()
        ours = status.st_uid == os.getuid() and not status.st_mode & 0o022
        return ours and status.st_size == package.num_bytes and _sha256(file) == package.sha256
    except OSError:
        return False


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _used(path: pathlib.Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _default_folder() -> pathlib.Path:
    named = os.environ.get("SPECDEC_CACHE")
    if named:
        return pathlib.Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "specdec"


def _default_bytes() -> int:
    named = os.environ.get("SPECDEC_CACHE_BYTES")
    if not named:
        return _DEFAULT_BYTES
    if not named.isdecimal():
        raise OptionError(f"SPECDEC_CACHE_BYTES must be a number of bytes, got {named!r}.")
    return int(named)
