"""Recommendations follow from a profile's figures, and say why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specdec.drafters.shapes import Shape, expected_accepted
from specdec.errors import OptionError
from specdec.profile.advice import break_even, flag, money, prediction_error, recommend, tree_advice, uppers
from specdec.profile.schema import PLAIN, Interval, Profile, Recommendation, Setting, Times
from tests.profile.sample import agreement, profile, setting

DRAFT = "model:draft"


def sped(row: Setting, value: float, spread: float = 0.02, *, impossible: bool = False) -> Setting:
    """The setting with another measured speed-up."""
    assert row.measured is not None
    speedup = Interval(value, value - spread, value + spread)
    return replace(row, measured=replace(row.measured, speedup=speedup, impossible=impossible))


def costing(row: Setting, draft: float, verify: float, other: float, length: float | None = None) -> Setting:
    """The setting with other times, in seconds, and another acceptance length."""
    assert row.measured is not None
    times = Times(draft, verify, other, draft + verify + other, 0.04, 0.0005)
    yields = row.measured.acceptance_length.value if length is None else length
    return replace(row, measured=replace(row.measured, times=times, acceptance_length=Interval(yields, yields, yields)))


def of(*rows: Setting) -> Profile:
    """A profile of one place, temperature 0 and batch 1, with plain decoding in it."""
    return replace(profile(), settings=[setting(PLAIN, 0.0, 1, 0), *rows])


def only(*rows: Setting, price: float | None = None) -> Recommendation:
    (found,) = recommend(of(*rows), price)
    return found


def test_the_fastest_setting_of_each_place_is_recommended() -> None:
    found = recommend(profile())
    assert [(r.temperature, r.batch) for r in found] == [(0.0, 1), (0.0, 4), (1.0, 1), (1.0, 4)]
    for r in found:
        rows = [s for s in profile().settings if (s.temperature, s.batch) == (r.temperature, r.batch) and s.measured]
        best = max((s for s in rows if not s.is_plain), key=lambda s: s.speedup)
        assert (r.draft, r.num_draft_tokens, r.speedup) == (best.draft, best.num_draft_tokens, best.speedup)
        assert r.is_measured and r.money is None


def test_reasons_name_the_figures() -> None:
    first = recommend(profile())[0]
    text = " ".join(first.reasons)
    assert first.num_draft_tokens == 4
    for words in (
        "model:draft with 4 draft tokens is 1.69 times (1.61 to 1.78)",
        "temperature 0 and batch 1",
        "yields 3.36 tokens",
        "takes 1.93 plain steps",
        "drafted token costs 0.185 of a plain step",
        "of 4 that may be drafted 2.36 are accepted",
        "Verifying 5 tokens at once costs 1.19 times",
        "best of the others is ngram with 1: 1.18 times",
    ):
        assert words in text
    assert "each of 4 rows" in " ".join(recommend(profile())[1].reasons)


def test_nothing_above_one_is_told_from_a_gain_that_is_too_small() -> None:
    unsure = only(sped(setting(DRAFT, 0.0, 1, 1), 1.05, spread=0.06))
    small = only(sped(setting(DRAFT, 0.0, 1, 1), 1.025, spread=0.01))
    sure = only(sped(setting(DRAFT, 0.0, 1, 1), 1.04, spread=0.01))
    assert (unsure.draft, unsure.num_draft_tokens, unsure.speedup, unsure.is_measured) == (PLAIN, 0, 1.0, True)
    assert "whole interval lie above 1" in unsure.reasons[0]
    assert small.draft == PLAIN and "under 3%" in small.reasons[0]
    assert sure.draft == DRAFT
    assert "No draft was measured" in only().reasons[0]


def test_a_sure_gain_goes_before_a_larger_one_that_is_not() -> None:
    found = only(sped(setting(DRAFT, 0.0, 1, 1), 1.2, 0.05), sped(setting(DRAFT, 0.0, 1, 4), 1.3, 0.4))
    assert found.num_draft_tokens == 1


@pytest.mark.parametrize(
    ("times", "length", "cause"),
    [
        ((0.001, 0.0108, 0.0003), 1.1, "too rarely accepted"),
        ((0.012, 0.0108, 0.0003), 1.9, "the draft is too dear"),
        ((0.001, 0.0230, 0.0003), 1.9, "verifying several tokens is not free"),
        ((0.001, 0.0108, 0.0130), 1.9, "overhead is too large"),
    ],
)
def test_the_cause_of_a_loss_is_named(times: tuple[float, float, float], length: float, cause: str) -> None:
    row = costing(sped(setting(DRAFT, 0.0, 1, 1), 0.8), *times, length)
    text = " ".join(only(row).reasons)
    assert "model:draft is fastest with 1 draft token: 0.80 times (0.78 to 0.82)" in text
    assert cause in text
    assert f"takes {sum(times) / 0.0108:.2f} plain steps" in text


def test_each_draft_is_told_why_it_does_not_pay() -> None:
    found = only(sped(setting(DRAFT, 0.0, 1, 4), 0.9), sped(setting("ngram", 0.0, 1, 2), 0.95))
    said = [r for r in found.reasons if "is fastest with" in r]
    assert [r.split()[0] for r in said] == ["ngram", DRAFT]


def predicted(k: int, speedup: float) -> Setting:
    row = setting(DRAFT, 0.0, 1, k, is_measured=False)
    assert row.predicted is not None
    return replace(row, predicted=replace(row.predicted, speedup=speedup))


def test_a_prediction_wins_by_more_than_predictions_were_off() -> None:
    measured = sped(setting(DRAFT, 0.0, 1, 4), 1.5)
    assert measured.predicted is not None
    measured = replace(measured, predicted=replace(measured.predicted, speedup=1.65))  # 10 % off
    assert prediction_error([measured]) == pytest.approx(0.1)
    assert only(measured, predicted(6, 1.60)).num_draft_tokens == 4
    assert only(measured, predicted(6, 1.64)).num_draft_tokens == 4
    won = only(measured, predicted(6, 1.70))
    assert (won.num_draft_tokens, won.speedup, won.is_measured) == (6, 1.7, False)
    assert "as predicted" in won.reasons[0] and "off by up to 10%" in won.reasons[0]


def test_a_prediction_alone_is_taken_for_what_it_is() -> None:
    found = only(predicted(6, 1.4))
    assert (found.num_draft_tokens, found.is_measured) == (6, False)
    assert "nothing was measured" in found.reasons[0]
    unpredicted = replace(sped(setting(DRAFT, 0.0, 1, 4), 1.1), predicted=None)
    assert only(unpredicted, predicted(6, 9.0)).num_draft_tokens == 4  # nothing tells how good it is
    assert only(predicted(6, 1.02)).draft == PLAIN


def test_impossible_settings_are_left_out_and_named() -> None:
    good, bad = sped(setting(DRAFT, 0.0, 1, 4), 1.5), sped(setting("ngram", 0.0, 1, 8), 6.0, impossible=True)
    found = only(good, bad)
    assert found.draft == DRAFT
    assert "Left out" in found.reasons[-1] and "ngram with 8" in found.reasons[-1]
    alone = only(bad)
    assert alone.draft == "ngram" and "Beware" in alone.reasons[-1]
    assert only(sped(setting(DRAFT, 0.0, 1, 4), 0.9), bad).draft == PLAIN


def test_money() -> None:
    assert money(3.6, 100.0, 200.0).plain == pytest.approx(10) and money(3.6, 100.0, 200.0).recommended == 5
    row = setting(DRAFT, 0.0, 1, 4)
    assert row.measured is not None
    found = only(row, price=2.5).money
    assert found is not None
    assert found.recommended == pytest.approx(2.5 / 3600 / row.measured.tokens_per_second * 1e6)
    assert found.plain == pytest.approx(2.5 / 3600 * 0.0108 * 1e6)
    guessed = only(predicted(6, 1.4), price=2.5).money
    assert guessed is not None and guessed.recommended == pytest.approx(guessed.plain / 1.4)
    nothing = only(price=2.5).money
    assert nothing is not None and nothing.recommended == nothing.plain
    for price in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="price"):
            recommend(profile(), price)
    with pytest.raises(OptionError, match="tokens a second"):
        money(1.0, 0.0, 1.0)


def test_break_even_is_the_smallest_batch_where_nothing_pays() -> None:
    def at(speedup: float, temperature: float, batch: int) -> list[Setting]:
        return [setting(PLAIN, temperature, batch, 0), sped(setting(DRAFT, temperature, batch, 2), speedup)]

    rows = [*at(0.9, 0.0, 16), *at(1.5, 0.0, 1), *at(0.95, 0.0, 4), *at(1.5, 0.7, 1), *at(1.4, 0.7, 16)]
    assert break_even(replace(profile(), settings=rows)) == {"0": 4, "0.7": None}
    assert break_even(replace(profile(), settings=[])) == {}


def test_uppers_are_the_bound_of_a_free_draft() -> None:
    found = uppers(profile().settings, profile().costs)
    assert {(u.draft, u.temperature, u.batch) for u in found} == {
        (d, t, b) for d in (DRAFT, "ngram") for t in (0.0, 1.0) for b in (1, 4)
    }
    for upper in found:
        place = (upper.draft, upper.temperature, upper.batch)
        rows = [s for s in profile().settings if (s.draft, s.temperature, s.batch) == place and s.measured]
        assert upper.speedup == pytest.approx(max(s.measured.ceiling for s in rows if s.measured))
        assert all(s.measured.speedup.value < upper.speedup for s in rows if s.measured)
    assert uppers([s for s in profile().settings if not s.is_plain]) == []
    row = setting(DRAFT, 0.0, 1, 4, is_measured=False)  # predicted: its verification from the costs, where they are
    plain = setting(PLAIN, 0.0, 1, 0)
    assert uppers([plain, row]) == []
    (bound,) = uppers([plain, row], profile().costs)
    assert bound.speedup == pytest.approx(3.3616 * 0.0108 / 0.0125)


def test_costs_of_sampled_rounds_are_not_taken_for_greedy_ones() -> None:
    row = setting(DRAFT, 0.0, 1, 4, is_measured=False)
    plain = setting(PLAIN, 0.0, 1, 0)
    sampled = [replace(c, sampled=True, fitted_verify=9.0) for c in profile().costs]
    assert uppers([plain, row], sampled) == []
    assert uppers([plain, row], [*profile().costs, *sampled]) == uppers([plain, row], profile().costs)


def test_flag() -> None:
    ceiling, impossible = flag(Interval(2.6, 2.4, 2.8), 3.0, 0.010, 0.012)
    assert ceiling == pytest.approx(2.5) and not impossible
    assert flag(Interval(2.7, 2.51, 2.9), 3.0, 0.010, 0.012)[1]
    with pytest.raises(OptionError, match="times"):
        flag(Interval(1, 1, 1), 2.0, 0.0, 0.01)


def test_tree_advice_is_the_best_tree_against_the_chain() -> None:
    ranked = replace(agreement(DRAFT, 0.0), ranks=[0.6, 0.2])
    found = tree_advice(ranked, 4)
    assert found.parents == [-1, -1, 0, 2]
    assert found.acceptance_length == pytest.approx(1 + 0.6 + 0.2 + 0.36 + 0.216)
    assert found.chain_length == pytest.approx(1 + 0.6 + 0.36 + 0.216 + 0.1296)
    many = tree_advice(ranked, 32)
    assert many.acceptance_length == pytest.approx(1 + expected_accepted(Shape.of(many.parents), [0.6, 0.2]))
    assert many.acceptance_length > many.chain_length
    rounded = tree_advice(replace(ranked, ranks=[0.7, 0.3 + 1e-5]), 3)
    assert len(rounded.parents) == 3
    with pytest.raises(OptionError, match="no ranks"):
        tree_advice(replace(ranked, ranks=[]), 4)


def test_a_lucky_sample_is_named() -> None:
    made = profile(ks=(4,), batches=(1,))
    for factor, said in ((0.95, False), (0.7, True)):
        settings = [
            replace(s, overall=replace(s.predicted, speedup=factor * s.measured.speedup.value))
            if s.predicted and s.measured else s
            for s in made.settings
        ]  # fmt: skip
        found = recommend(replace(made, settings=settings))
        assert any("may not stand for them" in reason for r in found for reason in r.reasons) == said
