"""LayerSkipDrafter and the search for its layers: the target's text, nothing drawn from global generators."""

from __future__ import annotations

import json
import pathlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import prompts, tiny
from transformers import LlamaConfig, LlamaForCausalLM

import specdec
from specdec.drafters.layers import decoder_layers, with_layers

NEW_TOKENS = 40


@pytest.fixture(scope="module")
def deep() -> LlamaForCausalLM:
    """Six layers, of which 3 and 4 change next to nothing."""
    torch.manual_seed(1)
    config = LlamaConfig(**{**tiny("llama").config.to_dict(), "num_hidden_layers": 6})
    model = LlamaForCausalLM(config).to(torch.float64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                wide = 1.0 if "embed" in name or "lm_head" in name else 0.3
                parameter.copy_(wide * torch.randn(parameter.shape, dtype=torch.float64))
        for index in (3, 4):
            model.model.layers[index].self_attn.o_proj.weight.mul_(0.01)
            model.model.layers[index].mlp.down_proj.weight.mul_(0.01)
    model.generation_config.pad_token_id = 0
    return model


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("skip", [[3, 4], [0], [5], [1, 2, 3, 4]])
def test_the_text_is_the_targets(deep: LlamaForCausalLM, skip: list[int], batch_size: int) -> None:
    arguments: dict[str, Any] = {**prompts(batch_size), "max_new_tokens": NEW_TOKENS, "do_sample": False}
    out = specdec.generate(
        deep,
        **arguments,
        drafter=specdec.LayerSkipDrafter(skip),
        num_draft_tokens=4,
        return_dict_in_generate=True,
    )
    assert torch.equal(out.sequences, deep.generate(**arguments))
    assert out.speculation.drafted > 0
    if skip == [3, 4]:
        assert out.speculation.acceptance_rate > 0.7, "the kept layers find their own memory in the target's cache"


def test_the_layers_that_stay_are_the_ones_named(deep: LlamaForCausalLM) -> None:
    drafter, state = specdec.LayerSkipDrafter([4, 2]), type("State", (), {"target": type("R", (), {"model": deep})})
    assert drafter.skip == (2, 4)
    assert list(drafter.layers(state)) == [0, 1, 3, 5]
    assert list(decoder_layers(with_layers(deep, [0, 1, 3, 5]))) == [deep.model.layers[i] for i in (0, 1, 3, 5)]


@pytest.mark.parametrize(
    ("skip", "words"), [([], "empty"), ([1, 1], "twice"), ([-1], "integers"), ([1.0], "integers"), ([True], "integers")]
)
def test_no_sets(skip: Any, words: str) -> None:
    with pytest.raises(specdec.OptionError, match=words):
        specdec.LayerSkipDrafter(skip)


@pytest.mark.parametrize(("skip", "words"), [([6], "0 to 5"), ([0, 1, 2, 3, 4, 5], "all 6")])
def test_sets_that_do_not_fit_are_refused_before_any_forward(
    deep: LlamaForCausalLM, skip: list[int], words: str
) -> None:
    hook = deep.register_forward_hook(lambda *_: pytest.fail("a forward"))
    try:
        with pytest.raises(specdec.OptionError, match=words):
            specdec.generate(deep, **prompts(1), drafter=specdec.LayerSkipDrafter(skip), max_new_tokens=4)
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def texts(deep: LlamaForCausalLM) -> list[torch.Tensor]:
    return [deep.generate(**prompts(1, seed), max_new_tokens=30, do_sample=False)[0] for seed in range(2)]


def test_the_search_finds_what_can_be_spared(deep: LlamaForCausalLM, texts: list[torch.Tensor]) -> None:
    before = torch.get_rng_state()
    found = specdec.search_skip(deep, texts, num_skipped=2, budget=6, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.skip == (3, 4)
    assert found.score > 0.7
    assert len(set(found.tried)) == len(found.tried) == 6, "all of the six sets, none of them twice"
    assert all(0 < i < 5 for skip in found.tried for i in skip)
    assert specdec.search_skip(deep, texts, num_skipped=2, budget=50, seed=4).skip == (3, 4)
    first = specdec.search_skip(deep, texts, num_skipped=2, budget=1)
    assert first.tried == (found.tried[0],) == (first.skip,)
    assert first.score < found.score


def argmax(model: LlamaForCausalLM, text: torch.Tensor) -> torch.Tensor:
    return model(text[None], use_cache=False).logits.argmax(-1)


def test_matchness_is_the_share_of_equal_argmaxes(deep: LlamaForCausalLM, texts: list[torch.Tensor]) -> None:
    found = specdec.search_skip(deep, texts, num_skipped=3, budget=1)
    draft = with_layers(deep, [i for i in range(6) if i not in found.skip])
    same = [(argmax(draft, t) == argmax(deep, t)).double() for t in texts]
    assert found.score == pytest.approx(float(torch.cat(same, 1).mean()))


def test_a_search_goes_on(deep: LlamaForCausalLM, texts: list[torch.Tensor], tmp_path: pathlib.Path) -> None:
    """Two searches are one of both budgets, also when the first was saved; other seeds try other sets."""
    arguments: dict[str, Any] = {"num_skipped": 2, "seed": 5}
    whole = specdec.search_skip(deep, texts, budget=5, **arguments)
    half = specdec.search_skip(deep, texts, budget=2, **arguments)
    assert half != whole
    half.save(tmp_path / "skip.json")
    loaded = specdec.SkipSet.load(tmp_path / "skip.json", deep)
    assert loaded == half
    assert specdec.search_skip(deep, texts, budget=3, start=loaded) == whole
    others = [specdec.search_skip(deep, texts[:1], budget=3, num_skipped=2, seed=seed) for seed in range(6, 10)]
    assert len({other.tried for other in others}) > 1


def test_files_of_other_models_and_broken_ones_are_refused(deep: LlamaForCausalLM, tmp_path: pathlib.Path) -> None:
    found = specdec.SkipSet("LlamaForCausalLM", 6, 0, (2, 4), 0.5, ((2, 4),))
    path = tmp_path / "skip.json"
    found.save(path)
    assert specdec.LayerSkipDrafter(specdec.SkipSet.load(path, deep)).skip == (2, 4)
    with pytest.raises(specdec.OptionError, match="of 6 layers, and the target is a LlamaForCausalLM of 3"):
        specdec.SkipSet.load(path, tiny("llama"))
    with pytest.raises(specdec.OptionError, match="GPT2"):
        specdec.SkipSet.load(path, tiny("gpt2"))
    with pytest.raises(specdec.OptionError, match="search again"):
        specdec.LayerSkipDrafter(found).check(tiny("gpt2"))
    with pytest.raises(specdec.OptionError, match="no layers of"):
        specdec.LayerSkipDrafter(replace(found, skip=(2, 9))).check(deep)
    values = json.loads(path.read_text())
    for broken in (
        "{",
        "[]",
        json.dumps({**values, "format": 7}),
        json.dumps({**values, "skip": ["a"]}),
        json.dumps({**values, "more": 1}),
        json.dumps({k: v for k, v in values.items() if k != "tried"}),
    ):
        path.write_text(broken)
        with pytest.raises(specdec.OptionError, match="holds no set"):
            specdec.SkipSet.load(path, deep)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_skipped": 0}, "from 1 to 4"),
        ({"num_skipped": 5}, "from 1 to 4"),
        ({"budget": 0}, "budget"),
        ({"texts": []}, "at least one list"),
        ({"texts": [[3]]}, "at least one list"),
        ({"num_skipped": 3, "start": specdec.SkipSet("LlamaForCausalLM", 6, 0, (2, 4), 0.5, ())}, "leave one out"),
        ({"start": specdec.SkipSet("LlamaForCausalLM", 9, 0, (2, 4), 0.5, ())}, "of 9 layers"),
    ],
)
def test_bad_searches(deep: LlamaForCausalLM, changes: dict[str, Any], words: str) -> None:
    arguments = {"texts": [[3, 4, 5]], **changes}
    with pytest.raises(specdec.OptionError, match=words):
        specdec.search_skip(deep, arguments.pop("texts"), **arguments)
