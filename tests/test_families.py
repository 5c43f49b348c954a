"""The models of `families.py` are worth testing with: see there."""

from __future__ import annotations

import itertools
from functools import cache

import families
import models
import pytest
import torch
from families import ARCHITECTURES, NEW_TOKENS
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel

WORKING = families.names("attention", "sliding", "moe", "recurrent", "encoder-decoder")


@cache
def greedy(name: str) -> tuple[Tensor, Tensor]:
    """The new tokens and their logits for three rows; row 0 is the prompt that has no padding."""
    output = GenerationMixin.generate(  # Whisper's own has other ideas
        families.family(name),
        **families.inputs(name, 3),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences[:, -NEW_TOKENS:], torch.stack(output.logits, dim=1).double()


@torch.no_grad()
def logits_along(name: str, model: PreTrainedModel, prefix: Tensor, text: Tensor) -> Tensor:
    """The logits of every token of text after prefix (of the decoder, where there is an encoder too)."""
    ids = torch.cat([prefix, text])[None]
    if ARCHITECTURES[name].kind == "encoder-decoder":
        arguments = {**families.inputs(name, 1), "decoder_input_ids": ids}
    else:
        arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return model(**arguments, use_cache=False).logits[0, len(prefix) - 1 : -1].double()


def prefix_of(name: str) -> Tensor:
    """What the decoder starts from, for row 0."""
    if ARCHITECTURES[name].kind == "encoder-decoder":
        return torch.tensor([families.family(name).config.decoder_start_token_id])
    return families.inputs(name, 1)["input_ids"][0]


@pytest.mark.parametrize("name", WORKING)
def test_text_is_varied_and_free_of_near_ties(name: str) -> None:
    """Each of three rows uses ten tokens, and no two tokens come close at any step."""
    tokens, logits = greedy(name)
    assert min(row.unique().numel() for row in tokens) >= 10
    best = logits.topk(2, dim=-1).values
    assert (best[..., 0] - best[..., 1]).min() > 1e-3
    assert torch.equal(tokens, logits.argmax(dim=-1))


@pytest.mark.parametrize("name", WORKING)
def test_memory_matters(name: str) -> None:
    """The first token that the model reads changes which tokens it prefers: a lost cache would show."""
    model, text = families.family(name), greedy(name)[0][0]
    assert torch.equal(logits_along(name, model, prefix_of(name), text).argmax(dim=-1), text)
    prefix, rest = torch.cat([prefix_of(name), text[:4]]), text[4:]
    prefix[0] ^= 1
    assert not torch.equal(logits_along(name, model, prefix, rest).argmax(dim=-1), rest)


@pytest.mark.parametrize("name", WORKING)
def test_draft_agrees_often_not_always(name: str) -> None:
    """It is right for 20 to 80 % of the tokens, with four in a row somewhere, and wrong somewhere."""
    draft, text = families.family(name, ARCHITECTURES[name].noise), greedy(name)[0][0]
    right = (logits_along(name, draft, prefix_of(name), text).argmax(dim=-1) == text).tolist()
    assert 0.2 < sum(right) / len(right) < 0.8
    assert max(len(list(run)) for agrees, run in itertools.groupby(right) if agrees) >= 4


@pytest.mark.parametrize("name", families.names("encoder-decoder"))
def test_encoder_matters(name: str) -> None:
    """Other inputs of the encoder give other text."""
    model, text = families.family(name), greedy(name)[0]
    assert not torch.equal(text[0], text[1])
    alone = GenerationMixin.generate(model, **families.inputs(name, 1), max_new_tokens=NEW_TOKENS, do_sample=False)
    assert torch.equal(alone[0, -NEW_TOKENS:], text[0])


@pytest.mark.parametrize("name", families.names("refused"))
def test_refused_families_run_in_transformers(name: str) -> None:
    """They are models that work, so that refusing them is our decision."""
    prompt = models.prompts(1)
    output = families.family(name).generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
    assert output[0, -NEW_TOKENS:].unique().numel() >= 10


def test_seeds_and_noise_give_other_models() -> None:
    """The same arguments give the same weights, other ones do not."""
    first, again = (families.family.__wrapped__("llama").lm_head.weight for _ in range(2))
    assert torch.equal(first, again)
    for arguments in ({"seed": 1}, {"noise": 0.02}):
        assert not torch.equal(first, families.family("llama", **arguments).lm_head.weight)
