"""Token measures against their definitions, worked out one number at a time."""

from __future__ import annotations

import math

import pytest
import torch

from specdec.profile import measures
from specdec.profile.measures import measure


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(row: list[float], temperature: float) -> list[float]:
    weights = [math.exp(v / temperature) for v in row]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_every_figure_is_what_its_definition_says(temperature: float) -> None:
    target, draft, tokens = logits(9, 7, seed=1), logits(9, 7, seed=2), torch.arange(9) % 7
    found = measure(target, draft, tokens, temperature)
    for t, x in enumerate(tokens.tolist()):
        p, q = softmax(target[t].tolist(), temperature), softmax(draft[t].tolist(), temperature)
        assert found.alpha[t] == pytest.approx(1 - sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2)
        assert found.share[t] == pytest.approx(min(1, q[x] / p[x]))
        assert found.kl[t] == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        assert found.target_entropy[t] == pytest.approx(-sum(a * math.log(a) for a in p))
        assert found.draft_entropy[t] == pytest.approx(-sum(a * math.log(a) for a in q))
        assert found.rank[t] == sum(v > q[x] for v in q)
        assert found.greedy[t] == (p.index(max(p)) == q.index(max(q)))
        assert (found.p[t], found.q[t]) == (pytest.approx(p[x]), pytest.approx(q[x]))


def test_greedy_acceptance_is_agreement_of_the_arg_maxes() -> None:
    target, draft = torch.tensor([[0.0, 2, 1], [0, 1, 2]]), torch.tensor([[0.0, 3, 1], [5, 1, 2]])
    found = measure(target, draft, torch.tensor([1, 0]), 0.0)
    assert found.alpha.tolist() == [1, 0]
    assert found.share.tolist() == [1, 1]  # the second text's token is the draft's, whatever the target prefers


def test_a_model_compared_with_itself() -> None:
    same = logits(5, 11)
    for temperature in (0.0, 0.5, 1.0):
        found = measure(same, same, same.argmax(-1), temperature)
        assert found.alpha.tolist() == pytest.approx([1.0] * 5)
        assert found.share.tolist() == pytest.approx([1.0] * 5)
        assert found.kl.tolist() == pytest.approx([0.0] * 5, abs=1e-12)
        assert found.rank.tolist() == [0] * 5


def test_vocabularies_may_be_padded_otherwise() -> None:
    target, draft = logits(4, 8), logits(4, 8, seed=3)
    tokens = torch.tensor([0, 1, 2, 3])
    narrow = measure(target, draft[:, :6], tokens, 1.0)
    filled = torch.cat([draft[:, :6], torch.full((4, 2), -torch.inf)], 1)
    assert torch.equal(narrow.alpha, measure(target, filled, tokens, 1.0).alpha)
    both = measure(target[:, :6], draft[:, :6], tokens, 1.0)
    assert torch.equal(narrow.kl, both.kl)  # padding says nothing of how alike they are
    assert narrow.kl.isfinite().all()
    wide = measure(target, torch.cat([draft, logits(4, 3, seed=4)], 1), tokens, 1.0)
    assert torch.equal(wide.alpha, measure(target, draft, tokens, 1.0).alpha)


def test_of_equal_tokens_the_first_is_the_likelier() -> None:
    draft = torch.tensor([[1.0, 1.0, 0.0, 1.0]]).expand(4, 4)
    found = measure(logits(4, 4), draft, torch.tensor([0, 1, 2, 3]), 1.0)
    assert found.rank.tolist() == [0, 1, 3, 2]


def test_long_texts_are_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft, tokens = logits(10, 6), logits(10, 6, seed=5), torch.arange(10) % 6
    whole = measure(target, draft, tokens, 1.0)
    monkeypatch.setattr(measures, "_MOST", 18)  # three tokens at a time
    parts = measure(target, draft, tokens, 1.0)
    for name in measures.NAMES:
        assert torch.equal(getattr(whole, name), getattr(parts, name))
