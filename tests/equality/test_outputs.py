"""What a call returns beside its tokens equals what target.generate() returns, up to one rounding of float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equality.cases import PROMPT
from equality.coupling import GumbelNoise
from models import prompts, tiny
from torch import Tensor
from transformers.generation import stopping_criteria

import specdec

NEW_TOKENS = 24
WIDE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}  # float64, summed in another order
SINGLE: dict[str, Any] = {"rtol": 2e-7, "atol": 1e-6}  # float32, rounded from float64
DRAFTS: dict[str, Any] = {"drafter": tiny("llama", noise=0.02), "num_draft_tokens": 4}


def arguments(batch_size: int, mode: str, **asked: Any) -> dict[str, Any]:
    """A call with a processor, whose rows end at different steps if there are several."""
    noise = [GumbelNoise()] if mode == "coupled" else []
    given = {**prompts(batch_size), "max_new_tokens": NEW_TOKENS, "repetition_penalty": 1.3, "logits_processor": noise}
    if batch_size > 1:
        free = tiny("llama").generate(**given)[:, PROMPT:]
        early = set(free[:, :8].flatten().tolist())
        given["eos_token_id"] = [next(t for t in row[9 + 5 * r :].tolist() if t not in early) for r, row in
                                 enumerate(free)]  # fmt: skip
    return {**given, "return_dict_in_generate": True, **asked}


def both(batch_size: int, mode: str, **asked: Any) -> tuple[Any, Any, Tensor]:
    """transformers' output, ours, and where rows are still going, [B, steps]."""
    expected = tiny("llama").generate(**arguments(batch_size, mode, **asked))
    out = specdec.generate(tiny("llama"), **arguments(batch_size, mode, **asked), **DRAFTS)
    assert out.sequences.tolist() == expected.sequences.tolist()
    assert 0 < out.speculation.accepted < out.speculation.drafted
    padding = (expected.sequences[:, PROMPT:] == 0).flip(1).cumprod(1).flip(1).bool()
    assert len(set(padding.sum(1).tolist())) >= min(batch_size, 2), "rows must end apart, or this tests nothing"
    return expected, out, ~padding


@pytest.mark.parametrize("mode", ["greedy", "coupled"])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", ["scores", "logits"])
def test_scores_and_logits(name: str, batch_size: int, mode: str) -> None:
    expected, out, going = both(batch_size, mode, **{f"output_{name}": True})
    other = {"scores": "logits", "logits": "scores"}[name]
    assert out[name] is not None and other not in out
    assert len(out[name]) == len(expected[name]) == going.shape[1]
    certain = torch.full((out[name][0].shape[1],), float("-inf"))
    certain[0] = 0
    for ours, theirs, alive in zip(out[name], expected[name], going.T, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours[alive], theirs[alive], **SINGLE)
        assert ours[~alive].tolist() == [certain.tolist()] * int((~alive).sum())


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_hidden_states(batch_size: int, use_cache: bool) -> None:
    """Every layer's, of the prompt and then of each token; of all tokens so far where there is no cache."""
    expected, out, going = both(batch_size, "greedy", output_hidden_states=True, use_cache=use_cache)
    mask = prompts(batch_size)["attention_mask"].bool()
    assert len(out.hidden_states) == len(expected.hidden_states)
    for step, (ours, theirs) in enumerate(zip(out.hidden_states, expected.hidden_states, strict=True)):
        if use_cache:
            real = mask if step == 0 else going[:, step, None]
        else:
            real = torch.cat([mask, going[:, 1 : step + 1]], dim=1)
        assert len(ours) == len(theirs)
        for layer, other in zip(ours, theirs, strict=True):
            assert layer.shape == other.shape
            torch.testing.assert_close(layer[real], other[real], **WIDE)
            assert not layer[~real].any()


def test_renormalized_scores() -> None:
    """Log-probabilities, as transformers returns them."""
    expected, out, _ = both(1, "greedy", output_scores=True, renormalize_logits=True)
    for ours, theirs in zip(out.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours, theirs, **SINGLE)
        torch.testing.assert_close(ours.exp().sum(1), torch.ones(1))


def test_return_dict_in_generate() -> None:
    """Without it, a tensor; and nothing is collected that was not asked for."""
    given = arguments(1, "greedy", output_scores=True)
    out = specdec.generate(tiny("llama"), **given, **DRAFTS)
    assert (out.logits, out.hidden_states) == (None, None)
    plain = specdec.generate(tiny("llama"), **{**given, "return_dict_in_generate": False}, **DRAFTS)
    assert plain.tolist() == out.sequences.tolist()


WARPERS: dict[str, Any] = {
    "temperature": 0.4, "top_k": 3, "top_p": 0.7, "top_h": 0.3, "min_p": 0.2, "typical_p": 0.6, "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("name", WARPERS)
def test_scores_of_a_drawn_text(name: str) -> None:
    """do_sample: at every step, the scores that transformers has for the same text; and the token is possible."""
    target, asked = tiny("llama"), {"do_sample": True, "top_k": 0, name: WARPERS[name]}
    asked |= {"output_scores": True, "return_dict_in_generate": True}
    out = specdec.generate(target, **prompts(1), **asked, **DRAFTS, max_new_tokens=12)
    assert 0 < out.speculation.accepted < out.speculation.drafted
    neutral = specdec.generate(target, **prompts(1), **{**asked, name: None}, **DRAFTS, max_new_tokens=1)
    assert neutral.scores[0].tolist() != out.scores[0].tolist()
    for step, scores in enumerate(out.scores):
        text = out.sequences[:, : PROMPT + step]
        expected = target.generate(text, attention_mask=torch.ones_like(text), **asked, max_new_tokens=1)
        torch.testing.assert_close(scores, expected.scores[0], **SINGLE)
        assert scores[0, out.sequences[0, PROMPT + step]].isfinite()


class Clock:
    """Moves by one with every forward of the target."""

    def __init__(self) -> None:
        self.now = 0.0

    def tick(self, *_: Any) -> None:
        self.now += 1

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = Clock()
    monkeypatch.setattr(stopping_criteria, "time", clock)
    handle = tiny("llama").register_forward_hook(clock.tick)
    yield clock
    handle.remove()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_max_time(batch_size: int, clock: Clock) -> None:
    """As many forwards as in transformers; where each brings several tokens, the text is longer, and the same."""
    target, asked = tiny("llama"), {**prompts(batch_size), "max_new_tokens": 40}
    whole = target.generate(**asked)[:, PROMPT:].tolist()
    asked["max_time"] = 5.5
    expected = target.generate(**asked)
    assert expected.shape[1] == PROMPT + 6
    specdec.generate(target, **prompts(1), max_new_tokens=1)  # the probe's forwards are not a call's
    assert specdec.generate(target, **asked).tolist() == expected.tolist()
    begun, rows = clock.now, []
    specdec.generate(target, **asked, **DRAFTS, on_commit=lambda part: rows.append((part.request, part.tokens)))
    assert clock.now - begun == 6
    for row in range(batch_size):
        new = [token for request, tokens in rows if request == row for token in tokens]
        assert 6 < len(new) < 40
        assert new == whole[row][: len(new)]
