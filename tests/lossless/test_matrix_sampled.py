"""The matrix, sampled: ragged rows, every strategy on every family that works.

Coupled: transformers' own `generate()` under noise that is a function of the text must be equalled token for token.
That mode never runs an acceptance rule, so a second column replays each call without a cache (`replay.py`) and
decides every round anew with the rule's plain reading and the same coins.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import families
import pytest
import torch
from equality.coupling import GumbelNoise
from lossless.registry import FAMILIES, REFUSED, RULES, STRATEGIES, assert_both_ways, pairs, seeds, suppressed, text_of
from lossless.replay import Player, Recording, seed_of
from torch import Tensor
from transformers import LogitsProcessorList

import specdec

NEW_TOKENS = 32
ROWS = 3
TEMPERATURE = 1.5  # tiny random models have wide logits


@cache
def coupled(name: str, seed: int, is_narrow: bool) -> Tensor:
    """What transformers writes under noise; in few letters or in all."""
    noise, narrow = LogitsProcessorList([GumbelNoise(seed)]), text_of(name, "n-gram") if is_narrow else {}
    return families.family(name).generate(
        **families.inputs(name, ROWS), **narrow, max_new_tokens=NEW_TOKENS, do_sample=False, logits_processor=noise
    )


def coupled_families() -> list[Any]:
    """At each change three of the families, with all strategies."""
    names = [name if isinstance(name, str) else name.values[0] for name in FAMILIES]
    return [n if n in ("gpt2", "gemma3_text", "bloom") else pytest.param(n, marks=pytest.mark.long) for n in names]


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", coupled_families())
def test_coupled_sampling_equals_generate(name: str, strategy: str, seed: int) -> None:
    if (name, strategy) in REFUSED:
        pytest.skip("refused; see test_strategy_matrix.py")
    stats: list[specdec.SpeculationStats] = []
    out = specdec.generate(
        families.family(name),
        **families.inputs(name, ROWS),
        drafter=STRATEGIES[strategy].make(name),
        num_draft_tokens=4,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        logits_processor=LogitsProcessorList([GumbelNoise(seed)]),
        on_finish=stats.append,
        **text_of(name, strategy),
    )
    assert torch.equal(out, coupled(name, seed, bool(text_of(name, strategy))))
    assert_both_ways(name, strategy, ROWS, stats[0], seed)


def rules() -> list[Any]:
    """At each change one rule a strategy, block verification for two that draft chains with a law; all are long."""
    chains = ("model", "other tokenizer, shared")
    return [
        pytest.param(name, s, rule, marks=marks if (rule == "block") == (s in chains) else pytest.mark.long)
        for name, s, marks in pairs(0)
        for rule in RULES
    ]


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize(("name", "strategy", "rule"), rules())
def test_rules_decide_as_their_plain_readings(name: str, strategy: str, rule: str, seed: int) -> None:
    if (name, strategy) in REFUSED:
        pytest.skip("refused; see test_strategy_matrix.py")
    check(name, strategy, rule, seed=seed)


def sampled(name: str, strategy: str, rule: str, seed: int = 0, **how: Any) -> Tensor:
    """The call that is replayed; its output."""
    call: dict[str, Any] = {"drafter": STRATEGIES[strategy].make(name), "num_draft_tokens": 4, "rule": rule}
    call |= {**text_of(name, strategy), **how}
    return specdec.generate(
        families.family(name),
        **families.inputs(name, ROWS),
        max_new_tokens=NEW_TOKENS,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        generator=torch.Generator().manual_seed(5 + seed),
        **call,
    )


def check(
    name: str, strategy: str, rule: str, eos: int | None = None, seed: int = 0, **how: Any
) -> specdec.SpeculationStats:
    """One sampled call and its replay; returns the call's statistics."""
    model, inputs = families.family(name), families.inputs(name, ROWS)
    recorded = Recording(STRATEGIES[strategy].make(name))
    stats: list[specdec.SpeculationStats] = []
    out = sampled(name, strategy, rule, seed=seed, drafter=recorded, on_finish=stats.append, eos_token_id=eos, **how)
    if name == "whisper":  # whose generate() returns what follows the beginning
        out = torch.cat([torch.full((ROWS, 1), model.generation_config.decoder_start_token_id), out], dim=1)
    mask = inputs.get("attention_mask")
    prompt_length = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    if model.config.is_encoder_decoder or mask is None:
        mask = torch.ones(ROWS, prompt_length, dtype=torch.int64)
    prompts = [row[:prompt_length][keep.bool()].tolist() for row, keep in zip(out, mask, strict=True)]
    forbidden = suppressed(name, strategy)
    player = Player(model, inputs, TEMPERATURE, seed_of(5 + seed), RULES[rule], RULES["rejection"], forbidden)
    played = player.play(recorded, prompts, NEW_TOKENS, eos)
    new = [text[len(prompt) :] for text, prompt in zip(played, prompts, strict=True)]
    assert [row + [0] * (out.shape[1] - prompt_length - len(row)) for row in new] == out[:, prompt_length:].tolist()
    if recorded.levels:  # a round of level rows commits less than the rule has accepted
        assert player.accepted >= stats[0].accepted
    else:
        assert player.accepted == stats[0].accepted or eos is not None
    assert_both_ways(name, strategy, ROWS, stats[0], seed)
    return stats[0]
