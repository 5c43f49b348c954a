"""The matrix: every strategy on every family that works, batch 1 and ragged, equal to target.generate().

Each strategy has tests of its own; here they meet all architectures. A few families run at each change, one of each
kind of memory; the others are long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import families
import pytest
import torch
from families import ARCHITECTURES
from torch import Tensor

import specdec
from specdec.errors import UnsupportedModelError

NEW_TOKENS = 32
EACH_CHANGE = ("gpt2", "gemma3_text", "mixtral", "zamba2", "bart", "bloom")
WORKING = families.names("attention", "sliding", "moe", "recurrent", "encoder-decoder")
STEPWISE = ("mamba", "falcon_mamba", "jamba")  # their cached forwards take one token: nothing is drafted for them
NAMES = [n if n in EACH_CHANGE else pytest.param(n, marks=pytest.mark.long) for n in WORKING if n not in STEPWISE]


def draft(name: str) -> Any:
    return families.family(name, ARCHITECTURES[name].noise)


STRATEGIES: dict[str, Callable[[str], specdec.Drafter]] = {
    "tree static": lambda name: specdec.TreeDrafter(draft(name), widths=[2, 2, 1]),
    "tree dynamic": lambda name: specdec.TreeDrafter(draft(name), num_nodes=8),
    "tree EAGLE-2": lambda name: specdec.TreeDrafter(draft(name), num_nodes=8, expand=2),
    "tree optimal": lambda name: specdec.TreeDrafter(draft(name), num_nodes=8, acceptance="auto"),
    "confident": lambda name: specdec.ModelDrafter(draft(name), min_confidence=0.3),
    "early exit": lambda _: specdec.EarlyExitDrafter(1),
    "layer skip": lambda _: specdec.LayerSkipDrafter([1]),
    "lookahead": lambda _: specdec.LookaheadDrafter(3, 3, 3),
    "suffix": lambda _: specdec.SuffixDrafter(),
    "mixed": lambda name: specdec.MixedDrafter([specdec.SuffixDrafter(), specdec.ModelDrafter(draft(name))]),
}


@cache
def reference(name: str, batch_size: int) -> Tensor:
    """What transformers writes."""
    inputs = families.inputs(name, batch_size)
    return families.family(name).generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", NAMES)
def test_equals_generate(name: str, strategy: str, batch_size: int) -> None:
    if (name, strategy) == ("zamba2", "layer skip"):
        with pytest.raises(UnsupportedModelError, match="told its place"):
            STRATEGIES[strategy](name).check(families.family(name))
        return
    stats: list[specdec.SpeculationStats] = []
    out = specdec.generate(
        families.family(name),
        **families.inputs(name, batch_size),
        drafter=STRATEGIES[strategy](name),
        num_draft_tokens=4,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        on_finish=stats.append,
    )
    assert torch.equal(out, reference(name, batch_size))
    if strategy != "suffix":  # a text that does not repeat itself gives it nothing to say
        assert stats[0].drafted > 0
