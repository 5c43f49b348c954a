"""Bugs made by rule rather than by hand: every small change of verify/ and cache/ of a few kinds.

Kinds: a comparison that is one off or turned around, `and` for `or`, a `not` left out, plus for minus, a whole number
one too large, True for False, and a statement left out. Some change nothing that can be seen (a faster way left unused,
an order of equal things), so that not all can die. What is said in errors and checked by assertions is left alone, and
so is verify/kernels.py, which runs on a GPU only.
"""

from __future__ import annotations

import ast
import copy
import pathlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from tests.mutants.mutant import ROOT, Mutant

_LOSSLESS, _LAW = "tests/lossless/{}.py", "tests/lossless/test_exact_law.py"
_RULES = ("tests/verify/test_rules.py", _LAW, "tests/verify/test_absent.py", _LOSSLESS.format("test_trees"))
_LARGE = ("tests/verify/test_parts.py", _LOSSLESS.format("test_law_of_parts"), "tests/test_large_vocabulary.py")
_MODELS = ("tests/test_models.py", _LOSSLESS.format("test_trees"), "tests/test_probe.py")
_MACHINES = ("tests/cache/test_state_machine_windows.py", "tests/cache/test_state_machine.py")
_SAMPLED = _LOSSLESS.format("test_sampling_interpreter")
# What is asked for each file, quick and close tests first. One that is not here has no mutants.
TESTS: Mapping[str, Sequence[str]] = {
    "verify/rules.py": (*_RULES, _SAMPLED),
    "verify/tree.py": (*_RULES, _SAMPLED),
    "verify/coins.py": ("tests/verify/test_coins.py", "tests/verify/test_coin_keys.py", *_RULES, _SAMPLED, _LARGE[0]),
    "verify/blocks.py": (*_LARGE, "tests/verify/test_coins.py", _SAMPLED),
    "verify/parts.py": _LARGE,
    "verify/choice.py": (*_LARGE, "tests/compiled/test_large_compiled.py"),
    "cache/exchange.py": (
        "tests/cache/test_rows.py",
        "tests/faults/test_fault_memory.py",
        "tests/transformers_suite/test_mixin.py",
    ),
    "cache/kinds.py": ("tests/test_probe.py", "tests/test_models.py"),
    "cache/layers.py": ("tests/cache/test_attention.py", "tests/cache/test_long_memory.py", *_MACHINES, *_MODELS),
    "cache/recurrent.py": (*_MACHINES, *_MODELS),
    "cache/rollback.py": ("tests/cache/test_attention.py", "tests/cache/test_rows.py", *_MACHINES, *_MODELS),
    "cache/sliding.py": ("tests/cache/test_ring_edges.py", *_MACHINES, *_MODELS),
}
LEFT_OUT = ("verify/kernels.py", "verify/__init__.py", "cache/__init__.py")

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATIONS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Automatic(Mutant):
    """A change at one place of a file; `old` and `new` are that place's own text, which may stand elsewhere as well.

    Args:
        start: where it begins, in bytes of the file.
    """

    start: int = 0

    def applied(self, root: pathlib.Path = ROOT) -> str:
        source = (root / "specdec" / self.file).read_bytes()
        end = self.start + len(self.old.encode())
        assert source[self.start : end].decode() == self.old, f"{self.name}: the file has changed"
        return (source[: self.start] + self.new.encode() + source[end:]).decode()


@cache
def every() -> list[Mutant]:
    """All of them, in the order of the files."""
    return [m for file, tests in TESTS.items() for m in _of_file(file, (ROOT / "specdec" / file).read_text(), tests)]


def some(count: int, seed: int = 0) -> list[Mutant]:
    """So many, drawn without replacement, in the order of the files; all where there are no more."""
    found = every()
    chosen = set(random.Random(seed).sample(range(len(found)), min(count, len(found))))
    return [mutant for i, mutant in enumerate(found) if i in chosen]


def _of_file(file: str, source: str, tests: Sequence[str]) -> Iterator[Mutant]:
    text = source.encode()
    begins = [0, *accumulate(map(len, text.splitlines(keepends=True)))]
    for node in _reached(ast.parse(source)):
        for changed in _changes(node):
            new = ast.unparse(changed)
            if isinstance(node, ast.expr):
                new = f"({new})"  # wherever it stands
            assert node.end_lineno is not None and node.end_col_offset is not None
            start, end = begins[node.lineno - 1] + node.col_offset, begins[node.end_lineno - 1] + node.end_col_offset
            old = text[start:end].decode()
            name = f"{file}:{node.lineno}:{node.col_offset} {' '.join(old.split())} -> {' '.join(new.split())}"
            yield Automatic(name, file, old, new, tests, start)


def _reached(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Nodes of code that computes: no types, errors, assertions, strings, or other files' names."""
    if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr):
        return
    if isinstance(node, ast.expr | ast.stmt):
        yield node
    types = {"annotation", "returns", "decorator_list", "bases", "type_params"}
    for field, value in ast.iter_fields(node):
        if field not in types:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _reached(child)


def _changes(node: ast.expr | ast.stmt) -> Iterator[ast.expr | ast.stmt]:
    """The node with one bug."""
    if isinstance(node, ast.Compare):
        for i, operation in enumerate(node.ops):
            changed = copy.deepcopy(node)
            changed.ops[i] = _COMPARISONS[type(operation)]()
            yield changed
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        yield ast.BinOp(node.left, _OPERATIONS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
        yield ast.Pass()  # a call for what it does
    elif isinstance(node, ast.AugAssign):
        yield ast.Pass()
