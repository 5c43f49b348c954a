"""The matrix's axes. A new strategy, rule or kind of memory joins with one line here; `test_registration.py` asks.

Rows: the families of `families.py`. Columns: the strategies below x greedy, coupled sampling and the rules below x
uncompiled and compiled; see `test_strategy_matrix.py`, `test_matrix_sampled.py` and `compiled/test_matrix_compiled.py`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import families
import pytest
import torch
from drafters.tongues import characters, renamed
from families import ARCHITECTURES
from models import VOCAB_SIZE
from transformers.cache_utils import CacheLayerMixin, LinearAttentionLayer
from verify import scalar

import specdec
from specdec.cache.layers import FullAttentionLayer, NoLayer
from specdec.cache.recurrent import HybridLayer, HybridSlidingLayer, RecurrentLayer
from specdec.cache.sliding import SlidingLayer

WORKING = families.names("attention", "sliding", "moe", "recurrent", "encoder-decoder")
STEPWISE = ("mamba", "falcon_mamba", "jamba")  # their cached forwards take one token: nothing is drafted for them
LEVEL = ("bloom", "falcon_alibi", "t5", "bart")  # a round ends where the slowest row's does
EACH_CHANGE = ("gpt2", "gemma3_text", "mixtral", "zamba2", "bart", "bloom")  # one of each kind of memory
FAMILIES = [n if n in EACH_CHANGE else pytest.param(n, marks=pytest.mark.long) for n in WORKING if n not in STEPWISE]


_SEEDS = "SPECDEC_MATRIX_SEEDS"


def pairs(turn: int) -> list[tuple[str, str, Any]]:
    """Every family with every strategy, and the marks of the pair: at each change every second one of the few families.

    The greedy and the sampled column take turns (0 and 1), so that each pair is tried by one of them.
    """
    rows = [name for name in WORKING if name not in STEPWISE]
    now = {(n, s) for i, n in enumerate(EACH_CHANGE) for j, s in enumerate(STRATEGIES) if (i + j + turn) % 2 == 0}
    return [(n, s, () if (n, s) in now else pytest.mark.long) for n in rows for s in STRATEGIES]


def seeds() -> list[Any]:
    """Of prompts, noise and coins. The long run takes as many as SPECDEC_MATRIX_SEEDS says, one if it does not."""
    return [0, *(pytest.param(s, marks=pytest.mark.long) for s in range(1, int(os.environ.get(_SEEDS, "1"))))]


def draft(name: str) -> Any:
    """A model that often, not always, says what the family's target says."""
    return families.family(name, ARCHITECTURES[name].noise)


LETTERS = (11, 23, 42, 57)  # of texts that repeat themselves


def is_foreign(name: str, method: str) -> bool:
    """Must the draft behind another tokenizer be of another family? A CrossTokenizerDrafter refuses the family's own.

    Namely drafts that attend to an encoder, which read another tokenizer's text; that keep their rows level; and, but
    where it drafts over the shared vocabulary, that have a state which cannot go back to any token.
    """
    kind = ARCHITECTURES[name].kind
    return name in LEVEL or kind == "encoder-decoder" or (kind == "recurrent" and method == "text")


@cache
def _renamed(name: str, foreign: bool) -> Any:
    """Another family's, a llama, is made to write in the few letters to which the call is kept (`suppressed`)."""
    if not foreign:
        return renamed(draft(name), characters(), characters(1))
    other = copy.deepcopy(families.family("llama"))
    with torch.no_grad():
        other.get_output_embeddings().weight[[t for t in range(VOCAB_SIZE) if t not in LETTERS]] = 0.0
    return renamed(other, characters(), characters(1))


def _cross(name: str, method: Any) -> specdec.Drafter:
    tokenizers: dict[str, Any] = {"target_tokenizer": characters(), "draft_tokenizer": characters(1)}
    return specdec.CrossTokenizerDrafter(_renamed(name, is_foreign(name, method)), **tokenizers, method=method)


@dataclass(frozen=True)
class Strategy:
    """A drafter of a class, made for a family.

    Args:
        guesses: from what is already written, so that it needs texts of few letters, which repeat themselves.
        method: of a CrossTokenizerDrafter.
    """

    kind: type[specdec.Drafter]
    make: Callable[[str], specdec.Drafter]
    guesses: bool = False
    method: str = ""


STRATEGIES: dict[str, Strategy] = {
    "model": Strategy(specdec.ModelDrafter, lambda name: specdec.ModelDrafter(draft(name))),
    "confident": Strategy(specdec.ModelDrafter, lambda name: specdec.ModelDrafter(draft(name), min_confidence=0.3)),
    "tree static": Strategy(specdec.TreeDrafter, lambda name: specdec.TreeDrafter(draft(name), widths=[2, 2, 1])),
    "tree i.i.d.": Strategy(
        specdec.TreeDrafter, lambda name: specdec.TreeDrafter(draft(name), widths=[2, 2, 1], children="iid")
    ),
    "tree dynamic": Strategy(specdec.TreeDrafter, lambda name: specdec.TreeDrafter(draft(name), num_nodes=8)),
    "tree EAGLE-2": Strategy(specdec.TreeDrafter, lambda name: specdec.TreeDrafter(draft(name), num_nodes=8, expand=2)),
    "tree optimal": Strategy(
        specdec.TreeDrafter, lambda name: specdec.TreeDrafter(draft(name), num_nodes=8, acceptance="auto")
    ),
    "early exit": Strategy(specdec.EarlyExitDrafter, lambda _: specdec.EarlyExitDrafter(2)),
    "layer skip": Strategy(specdec.LayerSkipDrafter, lambda _: specdec.LayerSkipDrafter([1])),
    "lookahead": Strategy(specdec.LookaheadDrafter, lambda _: specdec.LookaheadDrafter(3, 3, 3), guesses=True),
    "n-gram": Strategy(specdec.NgramDrafter, lambda _: specdec.NgramDrafter(min_ngram=1), guesses=True),
    "suffix": Strategy(specdec.SuffixDrafter, lambda _: specdec.SuffixDrafter(), guesses=True),
    "mixed": Strategy(
        specdec.MixedDrafter,
        lambda name: specdec.MixedDrafter(
            [specdec.SuffixDrafter(), specdec.ModelDrafter(draft(name))],
            costs=[0, 0.15],  # given, since a clock's would make the choice, and what is accepted, another each time
        ),
        guesses=True,
    ),
    "other tokenizer, text": Strategy(specdec.CrossTokenizerDrafter, lambda name: _cross(name, "text"), method="text"),
    "other tokenizer, shared": Strategy(
        specdec.CrossTokenizerDrafter, lambda name: _cross(name, "intersection"), method="intersection"
    ),
}


def suppressed(name: str, strategy: str) -> list[int]:
    """What a text may not use. Where nothing else would make drafts right now and then, all but a few letters.

    That is for what guesses from the text itself, and for drafts of another family.
    """
    chosen = STRATEGIES[strategy]
    is_narrow = chosen.guesses or (chosen.method != "" and is_foreign(name, chosen.method))
    return [token for token in range(VOCAB_SIZE) if token not in LETTERS] if is_narrow else []


def text_of(name: str, strategy: str) -> dict[str, Any]:
    """The arguments of `generate` that both sides get for it."""
    return {"suppress_tokens": tokens} if (tokens := suppressed(name, strategy)) else {}


# Each rule's plain reading, one row and one token at a time.
RULES: dict[str, Callable[..., tuple[list[int], int]]] = {"rejection": scalar.rejection, "block": scalar.block}
# Each kind of memory, and a family that has it.
MEMORIES: dict[type, str] = {
    FullAttentionLayer: "gpt2",
    SlidingLayer: "mistral",
    RecurrentLayer: "mamba2",
    HybridLayer: "falcon_h1",
    NoLayer: "nemotron_h",
}
# And those that have none, with the reason; `test_registration.py` has this list as well, so that none joins unseen.
WITHOUT_A_FAMILY: dict[type, str] = {HybridSlidingLayer: "no family of transformers has one yet"}
MEMORY_BASES = (CacheLayerMixin, LinearAttentionLayer, NoLayer)
REFUSED = {("zamba2", "layer skip"): "told its place"}  # and the words of the refusal
# Calls of which no accepted draft can be asked: (family, strategy) -> why.
_TOGETHER = "a round of level rows ends where the slowest row's does: a weak draft is hardly ever right in all at once"
_BY_CHANCE = "its draft must be another family's, and is right in one of a hundred tokens"
_WEAK = ("early exit", "layer skip", "n-gram", "mixed", "other tokenizer, shared")
SEVERAL_ROWS = {(name, strategy): _TOGETHER for name in LEVEL for strategy in _WEAK}
_FEW_LAYERS = "what is left of its few layers says another token than all of them, nearly always"
ALL_ROWS = {(name, "other tokenizer, text"): _BY_CHANCE for name in LEVEL} | {
    ("nemotron_h", "layer skip"): _FEW_LAYERS,
    ("whisper", "early exit"): _FEW_LAYERS,
}


def assert_both_ways(name: str, strategy: str, num_rows: int, stats: specdec.SpeculationStats, seed: int = 0) -> None:
    """Equality says little where nothing was accepted, or nothing rejected: both must have happened in the call.

    Greedy text of few letters soon goes round in circles; what guesses from one row or two may then be right each time.
    Of further seeds no more is asked than that something was drafted.
    """
    accepted, drafted = stats.accepted, stats.drafted
    assert drafted > 0
    if seed:
        return
    excused = {**ALL_ROWS, **(SEVERAL_ROWS if num_rows > 1 else {})}
    assert accepted > 0 or (name, strategy) in excused, (accepted, drafted)
    assert accepted < drafted or (STRATEGIES[strategy].guesses and num_rows <= 2), (accepted, drafted)
