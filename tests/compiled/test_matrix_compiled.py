"""The matrix, compiled: every strategy on every family that has a graph, greedy and sampled, ragged rows.

Traced and run node by node, as in `test_captured.py`. Drafts run uncompiled but for one family: that they run compiled
alike is tested with each drafter. One family at each change, the others are long.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import families
import pytest
import torch
import traced
from compiled.test_captured import CAPTURED
from lossless.registry import RULES, STRATEGIES, assert_both_ways, draft, text_of
from lossless.test_matrix_sampled import ROWS, check
from torch import Tensor

import specdec
from specdec.compiled import choose

NEW_TOKENS = 32
ROW = "gpt2"  # of each change; its drafts are compiled, too
NAMES = [name if name == ROW else pytest.param(name, marks=pytest.mark.long) for name in CAPTURED]


@pytest.fixture(autouse=True)
def _nothing_is_really_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> Any:
        raise RuntimeError("this test compiles nothing")

    monkeypatch.setattr(choose.building, "build", build)


@cache
def reference(name: str, is_narrow: bool) -> Tensor:
    """What transformers writes; in few letters or in all."""
    inputs, narrow = families.inputs(name, ROWS), text_of(name, "n-gram") if is_narrow else {}
    return families.family(name).generate(**inputs, **narrow, max_new_tokens=NEW_TOKENS, do_sample=False)


def capture(name: str) -> None:
    assert traced.why_not_captured(families.family(name)) is None
    if name == ROW:
        assert traced.why_not_captured(draft(name)) is None


GREEDY = ("model", "tree dynamic", "mixed")  # at each change; all of them decide by a rule there


@pytest.mark.parametrize(
    "strategy", [s if s in GREEDY else pytest.param(s, marks=pytest.mark.long) for s in STRATEGIES]
)
@pytest.mark.parametrize("name", NAMES)
def test_greedy_equals_generate(name: str, strategy: str) -> None:
    capture(name)
    stats: list[specdec.SpeculationStats] = []
    out = specdec.generate(
        families.family(name),
        **families.inputs(name, ROWS),
        drafter=STRATEGIES[strategy].make(name),
        num_draft_tokens=4,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        compile=True,
        on_finish=stats.append,
        **text_of(name, strategy),
    )
    assert stats[0].graphs.roles["target"] == "compiled" and stats[0].graphs.calls > 0
    assert torch.equal(out, reference(name, bool(text_of(name, strategy))))
    assert_both_ways(name, strategy, ROWS, stats[0])


@pytest.mark.parametrize("rule", [pytest.param(r, marks=() if r == "rejection" else pytest.mark.long) for r in RULES])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", NAMES)
def test_rules_decide_as_their_plain_readings(name: str, strategy: str, rule: str) -> None:
    capture(name)
    stats = check(name, strategy, rule, compile=True)
    assert stats.graphs.roles["target"] == "compiled" and stats.graphs.calls > 0
