"""The whole profile on the bundled pair: what must hold whatever the machine, interruptions, and shared work."""

from __future__ import annotations

import csv
import math
import pathlib
from dataclasses import replace

import pytest
import torch

import specdec
from specdec.profile.files import load
from tests.profile.profiles import SMALL, TINY, profile

pytestmark = pytest.mark.usefixtures("few_costs")


def test_a_profile_holds_what_was_asked_for(tmp_path: pathlib.Path) -> None:
    options = replace(SMALL, new_tokens=8, strategies=("ngram", "early-exit:auto", "tree"), batches=(1, 2))
    seen: dict[str, tuple[int, int]] = {}
    found = profile(tmp_path, options, progress=lambda phase, done, total: seen.update({phase: (done, total)}))
    assert found == load(tmp_path)
    assert found.complete
    names = [d.name for d in found.drafts]
    assert names == ["model:bundled", "ngram", "early-exit:auto", "tree:bundled"]
    assert found.drafts[2].exit_layer in range(1, 7)
    assert {(a.draft, a.temperature) for a in found.agreements} == {
        (n, t) for n in ("model:bundled", "early-exit:auto") for t in (0.0, 1.0)
    }
    measured = {(s.draft, s.temperature, s.batch, s.num_draft_tokens) for s in found.settings if s.measured}
    assert measured == {
        (name, t, b, k)
        for name in ("plain", *names)
        for t in (0.0, 1.0)
        for b in (1, 2)
        for k in ((0,) if name == "plain" else (1, 2))
    }
    predicted = {s.draft for s in found.settings if s.predicted}
    assert predicted == {"model:bundled", "ngram", "early-exit:auto"}
    assert {(r.temperature, r.batch) for r in found.recommendations} == {(t, b) for t in (0.0, 1.0) for b in (1, 2)}
    assert {(e.draft, e.temperature) for e in found.examples} == {(n, t) for n in names for t in (0.0, 1.0)}
    assert all(done == total for done, total in seen.values()), seen
    with (tmp_path / "tokens.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(a.tokens for a in found.agreements)
    one = [float(r["alpha"]) for r in rows if (r["draft"], r["temperature"]) == ("model:bundled", "1.0")]
    alpha = next(a.alpha for a in found.agreements if (a.draft, a.temperature) == ("model:bundled", 1.0))
    assert math.isclose(sum(one) / len(one), alpha.value, rel_tol=1e-9)


def test_greedy_rounds_are_predicted_exactly(tmp_path: pathlib.Path) -> None:
    options = replace(
        SMALL, temperatures=(0.0,), num_draft_tokens=(1, 2, 4), new_tokens=16, strategies=("ngram", "early-exit:3")
    )
    found = profile(tmp_path, options)
    checked = [s for s in found.settings if s.predicted and s.measured]
    assert len(checked) == 9
    for s in checked:
        assert s.predicted is not None
        assert s.measured is not None
        assert s.measured.rounds.value == pytest.approx(s.predicted.rounds.value)
        if s.measured.martingale is not None:
            assert s.measured.martingale.value == 0


def test_a_target_that_drafts_for_itself_is_always_right(tmp_path: pathlib.Path) -> None:
    target = str(specdec.bundled.bundled_dir() / "pair" / "target")
    options = replace(SMALL, target=target, drafts=(target,), prompts=specdec.bundled.bundled_dir() / "prompts.jsonl",
                      num_draft_tokens=(1, 3), new_tokens=13)  # fmt: skip
    found = profile(tmp_path, options)
    for a in found.agreements:
        assert (a.alpha.value, a.greedy.value) == (pytest.approx(1), pytest.approx(1))
        assert a.alpha.low == pytest.approx(1)
        assert a.kl.value == pytest.approx(0, abs=1e-9)
    for s in found.settings:
        if s.measured is not None and not s.is_plain:
            assert s.measured.acceptance_length.value == pytest.approx(s.num_draft_tokens + 1)
            assert s.measured.acceptance_rate == pytest.approx(1)
        if s.predicted is not None:
            assert s.predicted.acceptance_length == pytest.approx(s.num_draft_tokens + 1)


def test_nothing_of_the_models_or_the_global_generator_changes(tmp_path: pathlib.Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    profile(tmp_path, TINY)
    assert torch.equal(torch.get_rng_state(), before)
