"""The bundled pair: loads, fits together, writes text that a draft can guess, and near-ties are told apart."""

from __future__ import annotations

import copy

import families
import pytest
import torch

import specdec
from specdec.arbitrate import first_divergence
from specdec.bundled import bundled_dir


def test_the_pair_fits_together() -> None:
    target, draft, tokenizer = specdec.bundled_pair()
    assert sum(p.numel() for p in target.parameters()) <= 15e6
    assert 1e6 <= sum(p.numel() for p in draft.parameters()) <= 3e6
    assert target.config.vocab_size == draft.config.vocab_size == len(tokenizer)
    assert sum(f.stat().st_size for f in (bundled_dir() / "pair").rglob("*") if f.is_file()) < 40e6
    assert {p.dtype for p in target.parameters()} == {torch.bfloat16}


def test_prompts_are_short_and_held_out() -> None:
    prompts = specdec.bundled_prompts()
    _, _, tokenizer = specdec.bundled_pair()
    assert len(prompts) >= 12
    assert len({p["name"] for p in prompts}) == len(prompts)
    assert all(60 <= len(tokenizer(p["prompt"]).input_ids) <= 300 for p in prompts)


def test_teacher_forced_acceptance() -> None:
    """alpha = 1 - TVD on the target's own sampled continuation: far above chance, as the model card says."""
    target, draft, tokenizer = specdec.bundled_pair(torch.float32)
    ids = tokenizer(specdec.bundled_prompts()[1]["prompt"], return_tensors="pt").input_ids
    text = target.generate(ids, max_new_tokens=64, do_sample=True, top_k=0)
    with torch.no_grad():
        p, q = (m(text).logits[0].softmax(-1) for m in (target, draft))
    assert torch.minimum(p, q).sum(-1).mean() > 0.45


@pytest.mark.parametrize("kind", ["model", "ngram"])
def test_float32_greedy_equality(kind: str) -> None:
    """A real model, a ragged batch, bfloat16 weights computed in float32: token for token."""
    target, draft, tokenizer = specdec.bundled_pair(torch.float32)
    texts = [p["prompt"] for p in specdec.bundled_prompts()[:3]]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    arguments = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "max_new_tokens": 32}
    drafter = specdec.NgramDrafter() if kind == "ngram" else specdec.ModelDrafter(draft)
    out = specdec.generate(target, **arguments, drafter=drafter, num_draft_tokens=3, return_dict_in_generate=True)
    expected = target.generate(**arguments)
    prompt = inputs["input_ids"].shape[1]
    for row in range(3):
        new, other = out.sequences[row, prompt:].tolist(), expected[row, prompt:].tolist()
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        found = first_divergence(target, ids, new, other)
        assert found is None or found.is_near_tie
    assert out.speculation.accepted > 0


def test_a_near_tie_is_told_from_a_bug() -> None:
    """Two head rows that differ by less than bfloat16 resolves tie; a token far below the best does not."""
    target, _, tokenizer = specdec.bundled_pair()
    target = copy.deepcopy(target)
    ids = tokenizer(specdec.bundled_prompts()[0]["prompt"]).input_ids
    with torch.no_grad():
        order = target(torch.tensor([ids])).logits[0, -1].float().argsort(descending=True).tolist()
        best, twin, bad = order[0], order[1], order[2000]
        head = target.lm_head.weight
        head[twin] = head[best]
    tie = first_divergence(target, ids, [best], [twin])
    assert tie is not None
    assert tie.is_near_tie
    bug = first_divergence(target, ids, [best], [bad])
    assert bug is not None
    assert not bug.is_near_tie
    assert first_divergence(target, ids, [best, twin], [best, twin]) is None
    assert {p.dtype for p in target.parameters()} == {torch.bfloat16}


def test_experts_are_arbitrated_in_float64() -> None:
    """torch's grouped products, which experts take in float32, refuse it; the model's own config stays."""
    model = families.family("mixtral")
    model = copy.deepcopy(model).float()
    model.config._experts_implementation = "grouped_mm"
    with torch.no_grad():
        best, second = model(torch.tensor([[5, 6, 7]])).logits[0, -1].topk(2).indices.tolist()
    found = first_divergence(model, [5, 6, 7], [best], [second])
    assert found is not None and not found.is_near_tie
    assert model.config._experts_implementation == "grouped_mm" and model.dtype == torch.float32
