"""The mutants that are made by rule: each is another program, and none is where nothing is computed."""

from __future__ import annotations

import ast

from tests.mutants import automatic
from tests.mutants.mutant import ROOT


def test_each_changes_the_program_at_its_own_place() -> None:
    found = automatic.every()
    assert len(found) > 500
    assert len({mutant.name for mutant in found}) == len(found)
    files = {f"{part}/{path.name}" for part in ("verify", "cache") for path in (ROOT / "specdec" / part).glob("*.py")}
    assert files == {mutant.file for mutant in found} | set(automatic.LEFT_OUT), "a file of these needs a line in TESTS"
    assert [test for tests in automatic.TESTS.values() for test in tests if not (ROOT / test).exists()] == []
    before = {file: ast.dump(ast.parse((ROOT / "specdec" / file).read_text())) for file in {m.file for m in found}}
    for mutant in found:
        assert ast.dump(ast.parse(mutant.applied())) != before[mutant.file], mutant.name


def test_a_seed_chooses_the_same_ones() -> None:
    first, second = automatic.some(40, seed=3), automatic.some(40, seed=3)
    assert first == second
    assert len(first) == 40
    assert first != automatic.some(40, seed=4)
    assert automatic.some(10**6) == automatic.every()


def test_the_kinds_of_change() -> None:
    source = "def f(a: int = 1) -> int:\n    if not a < 2 and a:\n        g(a)\n    raise E(3 + 4)\n"
    changes = [(mutant.old, mutant.new) for mutant in automatic._of_file("f.py", source, [])]
    assert changes == [
        ("1", "(2)"),
        ("not a < 2 and a", "(not a < 2 or a)"),
        ("not a < 2", "(a < 2)"),
        ("a < 2", "(a <= 2)"),
        ("2", "(3)"),
        ("g(a)", "pass"),
    ]
