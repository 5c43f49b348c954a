"""The rooms of docs/architecture.md: upper may import lower, never back; one `__all__`, complete."""

from __future__ import annotations

import ast
import pathlib

import specdec

ROOT = pathlib.Path(specdec.__file__).parent
# Lowest first. A package is one room.
ROOMS = [
    ["errors", "pieces", "version"],
    ["types", "trace"],
    ["costs", "stats"],
    ["verify", "processors", "window", "cache", "wrapped", "ranks"],
    ["sampling", "prompt", "stopping"],
    ["target", "recording", "streaming"],
    ["state"],
    ["feeding"],
    ["probe"],
    ["capabilities", "compiled"],
    ["drafters", "controller"],
    ["loop"],
    ["checks", "options"],
    ["inputs"],
    ["memory"],
    ["decode"],
    ["bundled", "arbitrate", "generate"],
    ["attach", "said"],
    ["check", "indexes", "packages", "loading"],
    ["profile"],
    ["__init__"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names}
MAY_NAME_DRAFTERS = {"generate", "options", "loading", "profile", "__init__", "drafters"}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: pathlib.Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "specdec":
            found.append(node.module or "")
        elif isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] == "specdec"]
    return found


def test_upper_rooms_import_lower_rooms() -> None:
    for path in ROOT.rglob("*.py"):
        if "_bundled" in path.parts:
            continue
        own = path.relative_to(ROOT).with_suffix("").parts[0]
        assert own in RANK, f"{own} has no room: give it one here and in docs/architecture.md"
        for module in imports(path):
            other = room(module)
            assert other == own or RANK[other] < RANK[own], f"{path.name} imports {module}"


def test_concrete_drafters_are_named_at_the_edge_only() -> None:
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).with_suffix("").parts[0]
        if own not in MAY_NAME_DRAFTERS:
            named = {m for m in imports(path) if m.startswith("specdec.drafters.") and m != "specdec.drafters.base"}
            assert not named, f"{path.name} names {named}"


def test_all_is_complete() -> None:
    own = {n: v for n, v in vars(specdec).items() if not n.startswith("_")}
    public = {n for n, v in own.items() if getattr(v, "__module__", "").startswith("specdec")}
    assert public == set(specdec.__all__)
