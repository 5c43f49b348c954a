"""Every hand-made mutant still fits the code, so that the table cannot rot; `python -m tests.mutants` runs them."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.mutants.mutant import ROOT, Mutant, MutantError
from tests.mutants.table import MUTANTS

LEAST = 60  # of the proof's "Figures to hold"


def test_each_applies_to_one_place() -> None:
    for mutant in MUTANTS:
        mutant.applied()


def test_there_are_enough_and_no_two_alike() -> None:
    assert len(MUTANTS) >= LEAST
    assert [n for n, count in Counter(m.name for m in MUTANTS).items() if count > 1] == []
    assert [n for n, count in Counter((m.file, m.old, m.new) for m in MUTANTS).items() if count > 1] == []


def test_their_tests_exist() -> None:
    for mutant in MUTANTS:
        assert mutant.tests
        for test in mutant.tests:
            path, _, name = test.partition("::")
            source = (ROOT / path).read_text()
            assert not name or f"def {name.partition('[')[0]}(" in source, f"{mutant.name}: {test}"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("return rest", "return otherwise", "found 0 times"),
        ("import", "import", "times"),
        ("def greedy(", "def greedy (", "changes nothing"),  # for Python, though the text is another one
        ("def greedy(", "def greedy((", "no Python"),
        ("# Nothing is left", "# Nothing", "found 0 times"),
    ],
)
def test_what_does_not_fit_is_named(old: str, new: str, words: str) -> None:
    mutant = Mutant("a mutant", "verify/rules.py", old, new, ["tests/verify/test_rules.py"])
    with pytest.raises(MutantError, match=words):
        mutant.applied()
