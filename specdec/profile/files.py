"""A profile on disk: `profile.json`, read back with every field checked."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import types
import typing
from typing import Any, TypeVar

from specdec.errors import InputError
from specdec.profile.schema import VERSION, Profile

NAME = "profile.json"
_LARGEST = 256 * 2**20  # bytes; a profile of a thousand settings has a few MB
T = TypeVar("T")


def save(profile: Profile, directory: str | os.PathLike[str]) -> pathlib.Path:
    """Writes `profile.json`, whole or not at all; returns its path."""
    path = pathlib.Path(directory) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(profile), indent=1, allow_nan=False)
    part = path.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)
    return path


def load(directory: str | os.PathLike[str]) -> Profile:
    """Reads the profile in a directory (or the file itself).

    Raises:
        InputError: there is none, it is of another version, or not what `schema.py` says.
    """
    path = pathlib.Path(directory)
    path = path / NAME if path.is_dir() else path
    try:
        size = path.stat().st_size
        raw = path.read_bytes() if size <= _LARGEST else b""
    except OSError as error:
        raise InputError(
            f"no profile at {path}: {error.strerror}. Give the directory that `specdec profile --out` wrote."
        ) from None
    if size > _LARGEST:
        raise InputError(f"{path} has {size} bytes; no profile is larger than {_LARGEST}.")
    try:
        value = json.loads(raw, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}. Run `specdec profile` again.") from None
    version = value.get("version") if isinstance(value, dict) else None
    if version != VERSION or isinstance(version, bool):
        raise InputError(
            f"{path} is a profile of version {version!r}; this specdec reads version {VERSION}. Run `specdec profile` "
            "again."
        )
    return read(Profile, value, "profile")


def read(kind: type[T], value: Any, where: str) -> T:
    """A dataclass from what JSON gives for it.

    Raises:
        InputError: a field that is missing, unknown or of another type, by its path.
    """
    return typing.cast(T, _read(kind, value, where))


def _read(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_fields(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (kind,) = [a for a in arguments if a is not type(None)]
        return _read(kind, value, where)
    if origin is list and isinstance(value, list):
        return [_read(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {k: _read(arguments[1], v, f"{where}[{k!r}]") for k, v in value.items()}
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    wanted = getattr(origin or kind, "__name__", str(kind))
    raise InputError(f"{where} must be of type {wanted}, got {str(value)[:40]!r}. Run `specdec profile` again.")


def _read_fields(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object, got {str(value)[:40]!r}. Run `specdec profile` again.")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise InputError(f"{where} has no field {name!r}.")
    given = {}
    for name, field in fields.items():
        if name in value:
            given[name] = _read(hints[name], value[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where} lacks {name!r}. Run `specdec profile` again.")
    return kind(**given)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
