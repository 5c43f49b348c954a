"""specdec.generate() writes what target.generate() writes, for every argument that it supports.

Each case of equality/cases.py, for one row and for three ragged ones; greedy, and sampled with coupled randomness;
drafted by a noisy copy of the target and by matching n-grams. float64, so that no order of summation decides a token.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import pytest
from equality.cases import CASES, LEAVE_OUT, NEW_TOKENS, PROCESSORS, PROMPT, Case, Setting
from equality.coupling import GumbelChoice, GumbelNoise
from models import prompts, tiny
from torch import Tensor

import specdec

BATCHES = [1, 3]
# "coupled" samples as greedy decoding under noise. "drawn" is do_sample=True where one text is left to draw, so that
# the rules of acceptance decide.
MODES = ["greedy", "coupled", "drawn"]
DRAFTERS: dict[str, specdec.Drafter] = {
    "model": specdec.ModelDrafter(tiny("llama", noise=0.02)),
    "ngram": specdec.NgramDrafter(min_ngram=1),
}
# Too short, or a trie so narrow that the draft is always right.
ONE_SIDED = {"stop_strings_from_the_prompt_on", "prefix_allowed_tokens_fn_trie"}
# These come behind a user's processors, where noise and choice are made, so that nothing would be left to choose.
BEHIND = {"watermarking_config", "watermarking_config_selfhash", "renormalize_logits"}
RAGGED = [
    *("eos_token_id", "eos_token_id_list", "pad_token_id", "min_length", "min_new_tokens", "processors_together"),
    *("stop_strings_and_eos", "stop_strings_from_the_prompt_on", "stopping_criteria_per_row_and_eos"),
]


def settings() -> list[Any]:
    """(case, batch size, mode, drafter), as far as they differ; what adds least is left to the long run."""
    return [
        pytest.param(*one, marks=pytest.mark.long if _adds_little(*one) else ())
        for one in product(CASES, BATCHES, MODES, DRAFTERS)
        if _differs(*one)
    ]


def _adds_little(name: str, batch_size: int, mode: str, drafter: str) -> bool:
    """One row by itself where ragged ones do as well; noise where draws say more (no processor)."""
    alone = batch_size == 1 and (mode != "greedy" or name in PROCESSORS)
    return alone or (mode == "coupled" and (drafter == "ngram" or name not in (*PROCESSORS, *BEHIND)))


def _differs(name: str, batch_size: int, mode: str, drafter: str) -> bool:
    """Something is left to choose; and n-grams, which are forbidden or unlikely, draft where it is worth the time."""
    if mode == "drawn" and name in BEHIND:
        return False
    worth = mode == "greedy" or (mode == "coupled" and name in PROCESSORS)
    return drafter == "model" or (batch_size > 1 and not CASES[name].speculates_by_itself and worth)


def call(case: Case, batch_size: int, mode: str) -> dict[str, Any]:
    """The arguments that both sides get; what keeps a state is made anew each time."""
    changed = case.build(Setting(batch_size, free(batch_size, mode)))
    given = {**prompts(batch_size), "max_new_tokens": NEW_TOKENS, **_noise(mode), **changed}
    given["logits_processor"] = [*changed.get("logits_processor", []), *_noise(mode)["logits_processor"]]
    return {name: value for name, value in given.items() if value is not LEAVE_OUT}


def _noise(mode: str) -> dict[str, Any]:
    if mode == "drawn":
        return {"do_sample": True, "logits_processor": [GumbelChoice()]}
    return {"logits_processor": [GumbelNoise()] if mode == "coupled" else []}


@cache
def free(batch_size: int, mode: str) -> Tensor:
    """[B, N] the new tokens where nothing special is asked for; longer than any case's text."""
    return tiny("llama").generate(**prompts(batch_size), max_new_tokens=40, **_noise(mode))[:, PROMPT:]


@cache
def reference(name: str, batch_size: int, mode: str) -> Tensor:
    """transformers' own output."""
    case = CASES[name]
    output = case.target().generate(**{**call(case, batch_size, mode), **case.reference})
    return output if isinstance(output, Tensor) else output.sequences


@pytest.mark.filterwarnings("ignore:Passing `no_repeat_ngram_size` with `inputs_embeds`")
@pytest.mark.parametrize(("name", "batch_size", "mode", "drafter"), settings())
def test_equals_generate(name: str, batch_size: int, mode: str, drafter: str) -> None:
    case = CASES[name]
    expected = reference(name, batch_size, mode)
    own = {} if case.speculates_by_itself else {"drafter": DRAFTERS[drafter], "num_draft_tokens": 4}
    own["rule"] = "rejection" if batch_size > 1 else "block"
    finished: list[specdec.SpeculationStats] = []
    out = specdec.generate(case.target(), **call(case, batch_size, mode), **own, on_finish=finished.append)
    sequences = out if isinstance(out, Tensor) else out.sequences
    assert sequences.tolist() == expected.tolist()
    if drafter == "model" and name not in ONE_SIDED:  # both outcomes of verification occurred
        assert 0 < finished[0].accepted < finished[0].drafted


@pytest.mark.filterwarnings("ignore:Passing `no_repeat_ngram_size` with `inputs_embeds`")
@pytest.mark.parametrize("name", CASES)
def test_references_are_worth_comparing(name: str) -> None:
    """A case changes the text, if only in one setting, and the text uses many tokens."""
    case, changed = CASES[name], False
    for batch_size, mode in [(3, "greedy"), (3, "coupled"), (1, "greedy"), (1, "coupled")]:
        if changed and batch_size == 1:
            continue  # made by the long run only
        new, plain = reference(name, batch_size, mode)[:, case.shown :], free(batch_size, mode)
        assert all(len(set(row.tolist()) - {0}) >= case.distinct for row in new)
        changed |= new.tolist() != plain[:, :NEW_TOKENS].tolist()
    assert changed == case.changes


@pytest.mark.parametrize("mode", ["greedy", "coupled"])
@pytest.mark.parametrize("name", RAGGED)
def test_rows_end_apart(name: str, mode: str) -> None:
    """Padding stands behind some rows and not behind all."""
    output, pad = reference(name, 3, mode), 5 if name == "pad_token_id" else 0
    assert len(set((output == pad).flip(1).cumprod(1).sum(1).tolist())) > 1


def test_acceptance_over_the_matrix_is_neither_rare_nor_certain() -> None:
    """The noisy draft's share of accepted tokens, in the unchanged call."""
    for batch_size in BATCHES:
        for mode in MODES:
            out = specdec.generate(
                tiny("llama"), **prompts(batch_size), **_noise(mode), drafter=DRAFTERS["model"], num_draft_tokens=4,
                max_new_tokens=40, return_dict_in_generate=True,
            )  # fmt: skip
            assert 0.2 < out.speculation.acceptance_rate < 0.8
