"""The matrix, greedy: every strategy on every family that works, batch 1 and ragged, equal to target.generate().

Each strategy has tests of its own; here they meet all architectures. A few families run at each change, one of each
kind of memory, with one row and half of the strategies; the other half, and ragged rows, run there sampled
(`test_matrix_sampled.py`).
"""

from __future__ import annotations

from functools import cache

import families
import pytest
import torch
from lossless.registry import REFUSED, STRATEGIES, assert_both_ways, pairs, seeds, text_of
from torch import Tensor

import specdec
from specdec.errors import UnsupportedModelError

NEW_TOKENS = 32


@cache
def reference(name: str, batch_size: int, seed: int, is_narrow: bool) -> Tensor:
    """What transformers writes; in few letters or in all."""
    inputs, narrow = families.inputs(name, batch_size, seed), text_of(name, "n-gram") if is_narrow else {}
    return families.family(name).generate(**inputs, **narrow, max_new_tokens=NEW_TOKENS, do_sample=False)


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("batch_size", [1, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 5))])
@pytest.mark.parametrize(("name", "strategy"), [pytest.param(n, s, marks=marks) for n, s, marks in pairs(1)])
def test_equals_generate(name: str, strategy: str, batch_size: int, seed: int) -> None:
    if (name, strategy) in REFUSED:
        with pytest.raises(UnsupportedModelError, match=REFUSED[name, strategy]):
            STRATEGIES[strategy].make(name).check(families.family(name))
        return
    stats: list[specdec.SpeculationStats] = []
    out = specdec.generate(
        families.family(name),
        **families.inputs(name, batch_size, seed),
        drafter=STRATEGIES[strategy].make(name),
        num_draft_tokens=4,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        on_finish=stats.append,
        **text_of(name, strategy),
    )
    assert torch.equal(out, reference(name, batch_size, seed, bool(text_of(name, strategy))))
    assert_both_ways(name, strategy, batch_size, stats[0], seed)
