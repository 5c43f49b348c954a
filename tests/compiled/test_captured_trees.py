"""Trees through graphs: a captured target verifies them, and a captured draft grows them, one call a depth."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import traced
from families import ARCHITECTURES, NEW_TOKENS, family, inputs
from torch import Tensor

import specdec
from specdec.compiled import choose

KINDS: dict[str, dict[str, Any]] = {"static": {"widths": [3, 2, 1]}, "dynamic": {"num_nodes": 9}}


@pytest.fixture(autouse=True)
def _nothing_is_really_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> Any:
        raise RuntimeError("this test compiles nothing")

    monkeypatch.setattr(choose.building, "build", build)


@cache
def reference(name: str, batch_size: int) -> Tensor:
    return family(name).generate(**inputs(name, batch_size), max_new_tokens=NEW_TOKENS, do_sample=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", ["mistral", *(pytest.param(n, marks=pytest.mark.long) for n in ("llama", "gemma2"))])
def test_equals_generate(name: str, batch_size: int, kind: str) -> None:
    """48 tokens, past windows of 8."""
    draft = family(name, ARCHITECTURES[name].noise)
    assert traced.why_not_captured(family(name)) is None
    assert traced.why_not_captured(draft) is None
    out = specdec.generate(
        family(name),
        **inputs(name, batch_size),
        drafter=specdec.TreeDrafter(draft, **KINDS[kind]),
        compile=True,
        return_dict_in_generate=True,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_draft_tokens=3,
    )
    assert torch.equal(out.sequences, reference(name, batch_size))
    stats = out.speculation
    assert stats.graphs.roles == {"target": "compiled", "draft": "compiled"}
    assert stats.graphs.calls == stats.rounds + 1 + stats.draft_calls
    assert 2 * stats.rounds < stats.draft_calls <= 3 * stats.rounds
    # The same trees as without graphs.
    plain = specdec.generate(
        family(name),
        **inputs(name, batch_size),
        drafter=specdec.TreeDrafter(draft, **KINDS[kind]),
        return_dict_in_generate=True,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_draft_tokens=3,
    )
    assert (stats.rounds, stats.accepted) == (plain.speculation.rounds, plain.speculation.accepted)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_chains_with_a_bound(batch_size: int) -> None:
    """A captured draft that may stop needs its probabilities, and so no argmax of the graph's."""
    draft = family("mistral", ARCHITECTURES["mistral"].noise)
    assert traced.why_not_captured(family("mistral")) is None
    assert traced.why_not_captured(draft) is None
    out = specdec.generate(
        family("mistral"),
        **inputs("mistral", batch_size),
        drafter=specdec.ModelDrafter(draft, min_confidence=0.3),
        compile=True,
        return_dict_in_generate=True,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_draft_tokens=6,
    )
    assert torch.equal(out.sequences, reference("mistral", batch_size))
    stats = out.speculation
    assert stats.accepted > 0 and stats.drafted < 6 * stats.row_rounds
