"""Trees go through the same loop, cache and masks as chains, and change no token."""

from __future__ import annotations

import families
import pytest
import torch
from models import ARCHITECTURES, VOCAB_SIZE, prompts, tiny
from trees import ScriptedTreeDrafter, unpadded

import specdec

NEW_TOKENS = 40
SHAPES = {
    "chain": [-1, 0, 1],
    "binary": [-1, -1, 0, 0, 1, 1],
    "bushy": [-1, -1, -1, 0, 2, 2, 4, 6],
    "irregular": [-1, 0, -1, 2, 1, 3, 3, 6],
}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equality(architecture: str, shape: str, batch_size: int) -> None:
    target, inputs = tiny(architecture), prompts(batch_size)
    arguments = {**inputs, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    expected = target.generate(**arguments)
    drafter = ScriptedTreeDrafter(SHAPES[shape], unpadded(expected, inputs["attention_mask"]), VOCAB_SIZE, luck=0.7)
    out = specdec.generate(target, **arguments, drafter=drafter, num_draft_tokens=8, return_dict_in_generate=True)
    assert torch.equal(out.sequences, expected)
    assert out.speculation.accepted > 10
    assert out.speculation.rounds < NEW_TOKENS - 1  # rows that accept different amounts were stepped together


OTHERS = ["mistral", "gemma2", "gpt_oss", "deepseek_v3", "mamba2", "falcon_h1", "bloom", "falcon_alibi"]


@pytest.mark.parametrize(
    ("shape", "batch_size"),
    [(shape, 3) for shape in ["bushy", "irregular", "wide"]]
    + [("wide", 1)]
    + [pytest.param(shape, 3, marks=pytest.mark.long) for shape in ["chain", "binary"]]
    + [pytest.param(shape, 1, marks=pytest.mark.long) for shape in SHAPES],
)
@pytest.mark.parametrize("name", OTHERS)
def test_every_memory(name: str, shape: str, batch_size: int) -> None:
    """Also a tree that is wider than a sliding layer's ring; of a recurrent or level row the first branch counts."""
    parents = SHAPES.get(shape) or [-1] * 20 + [0, 7, 19, 20, 21]
    target, inputs = families.family(name), families.inputs(name, batch_size)
    arguments = {**inputs, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    expected = target.generate(**arguments)
    drafter = ScriptedTreeDrafter(parents, unpadded(expected, inputs["attention_mask"]), VOCAB_SIZE, luck=0.7)
    out = specdec.generate(target, **arguments, drafter=drafter, num_draft_tokens=8, return_dict_in_generate=True)
    assert torch.equal(out.sequences, expected)
    assert out.speculation.accepted > 0 or batch_size > 1 or shape == "wide"


def test_a_processor_sees_the_path_to_its_own_node() -> None:
    """A repetition penalty and a forbidden n-gram depend on every earlier token of the node's own branch."""
    target, inputs = tiny("llama"), prompts(3)
    arguments = {
        **inputs,
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "repetition_penalty": 1.7,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 20,
        "eos_token_id": 5,
    }
    expected = target.generate(**arguments)
    plain = target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=5)
    assert not torch.equal(expected[:, :20], plain[:, :20]), "the processors must matter"
    answers = unpadded(expected, inputs["attention_mask"])
    for parents in SHAPES.values():
        drafter = ScriptedTreeDrafter(parents, answers, VOCAB_SIZE, luck=0.8)
        out = specdec.generate(target, **arguments, drafter=drafter, num_draft_tokens=8)
        assert torch.equal(out, expected)
