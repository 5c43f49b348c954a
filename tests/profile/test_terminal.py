"""The report in a terminal: what it says, and that it can be read in any of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from specdec.profile.schema import PLAIN, Interval, Profile
from specdec.profile.terminal import print_recommendation, print_report
from specdec.profile.verdict import miss
from tests.profile import sample, showcase

PROFILES: list[Callable[[], Profile]] = [
    showcase.full, showcase.many, showcase.empty, showcase.harmful, sample.profile
]  # fmt: skip


FULL = partial(print_report, is_full=True)


def report(profile: Profile, width: int = 80, show: Callable[[Profile, Console], None] = FULL) -> str:
    out = io.StringIO()
    show(profile, Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("make", PROFILES)
def test_no_line_is_wider_than_the_terminal_and_nothing_steers_it(make: Callable[[], Profile], width: int) -> None:
    text = report(make(), width)
    assert max(cell_len(line) for line in text.split("\n")) <= width
    assert all(c == "\n" or c.isprintable() for c in text), "control characters, bidirectional ones among them"
    assert text.encode("utf-8")


def test_a_dumb_terminal_and_a_narrow_encoding_get_plain_text() -> None:
    out = io.StringIO()
    print_report(showcase.full(), Console(file=out, width=80, force_terminal=True, _environ={"TERM": "dumb"}))
    assert "\x1b" not in out.getvalue()
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_report(showcase.harmful(), Console(file=narrow, width=80))
    narrow.flush()
    assert b"lone ? surrogate ?" in narrow.buffer.getvalue()  # type: ignore[attr-defined]


def test_the_verdict_comes_first() -> None:
    text = report(showcase.full())
    assert text.startswith("Speculate in 3 of 4 cases: up to 1.69x with model:draft, 4 draft tokens")
    order = [
        "Interrupted",
        "IMPOSSIBLE",
        "What to run",
        "Why, temperature 0, batch 1",
        "How it was measured",
        "ngram ─",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    row = next(line for line in text.splitlines() if "do not speculate" in line)
    assert row.split() == ["1", "4", "do", "not", "speculate", "-", "-", "2.20", "2.20"]
    assert "Its ceiling is <b>2.9x</b>." in text, "reasons are words, not markup"


def test_do_not_speculate_is_said() -> None:
    plain = [replace(r, draft=PLAIN, num_draft_tokens=0) for r in showcase.recommendations()]
    text = report(replace(sample.profile(), recommendations=plain), show=print_recommendation)
    assert text.startswith("Do not speculate: no draft pays")
    assert report(showcase.empty()).startswith("No verdict")


def test_an_impossible_speed_up_is_loud() -> None:
    profile = showcase.full()
    flagged = next(s for s in profile.settings if s.measured and s.measured.impossible)
    assert flagged.measured is not None
    out = io.StringIO()
    print_recommendation(profile, Console(file=out, width=200, force_terminal=True, color_system="standard"))
    assert "\x1b[1;37;41m!!! IMPOSSIBLE SPEED-UP" in out.getvalue(), "white on red"
    text = report(profile, 200)
    m = flagged.measured
    assert f"ngram, 8 draft tokens, temperature 1, batch 4: measured {m.speedup.value:.2f}x" in text
    assert f"ceiling {m.ceiling:.2f}x" in text
    assert "IMPOSSIBLE" not in report(sample.profile())


def test_a_recommended_impossible_speed_up_is_marked_where_it_is_recommended() -> None:
    profile = showcase.full()
    settings = [showcase.flagged(s) if s.num_draft_tokens == 4 and s.draft != PLAIN else s for s in profile.settings]
    rows = report(replace(profile, settings=settings), show=print_recommendation).splitlines()
    assert next(r for r in rows if r.split()[:3] == ["0", "1", "model:draft"]).count("IMPOSSIBLE") == 1
    whole = report(replace(profile, settings=settings), 300)
    assert whole.startswith("Speculate in 3 of 4 cases: up to 4.36x (IMPOSSIBLE, see below) with model:draft")
    assert whole.count(" !: impossible, above the ceiling.") == 4, "below speed-ups and best ones of two drafts"


def test_figures_are_the_profiles() -> None:
    profile = sample.profile(ks=(3,), batches=(1,))
    agreement = replace(profile.agreements[0], alpha=Interval(0.7312, 0.7021, 0.7553), kl=Interval(0.5, 0.5, 0.5))
    at = next(i for i, s in enumerate(profile.settings) if s.draft == "model:draft" and s.num_draft_tokens == 3)
    setting = profile.settings[at]
    assert setting.predicted is not None
    assert setting.measured is not None
    predicted = replace(setting.predicted, speedup=1.6, acceptance_length=2.0, round_seconds=0.020)
    measured = replace(
        setting.measured, speedup=Interval(2.0, 1.91, 2.09), acceptance_length=Interval(2.2, 2, 2.4),
        times=replace(setting.measured.times, total=0.016), ceiling=2.75,
    )  # fmt: skip
    settings = list(profile.settings)
    settings[at] = replace(setting, predicted=predicted, measured=measured)
    rows = [line.split() for line in report(replace(profile, agreements=[agreement], settings=settings)).splitlines()]
    assert ["alpha:", "chance", "of", "acceptance", "0.731", "[0.702,", "0.755]"] in rows
    assert ["KL(target,", "draft),", "nats", "0.500"] in rows, "no interval where nothing was resampled"
    # 2.0 / 1.6 = 1.25 = (2.2 / 2.0) x (20 / 16) x 0.909
    wanted = "3* 1.60x 2.00x [1.91, 2.09] +25.0 % +10.0 % +25.0 % -9.1 % 2.75x".split()
    assert wanted in rows
    assert ["0", "1", "3", "1.60x", "2.00x", "[1.91,", "2.09]", "2.75x", "4.00x", "(k=8)"] in rows
    cost = profile.costs[0]
    milliseconds = [f"{1000 * v:.2f}" for v in (cost.times.draft, cost.fitted_draft, cost.times.verify)]
    assert any(row[:6] == ["3", "1", "128", *milliseconds] for row in rows)
    assert ["0", "8", "3.10", "2.90", "+6.9", "%", "2,", "2,", "1"] in rows, "the tree"


positive = st.floats(0.01, 100)


@given(positive, positive, positive, positive, positive, positive)
def test_what_a_prediction_missed_is_the_product_of_its_parts(
    a: float, b: float, c: float, d: float, e: float, f: float
) -> None:
    setting = sample.setting("ngram", 0.0, 1, 4)
    assert setting.predicted is not None
    assert setting.measured is not None
    predicted = replace(setting.predicted, speedup=a, acceptance_length=b, round_seconds=c)
    measured = replace(
        setting.measured, speedup=Interval(d, d, d), acceptance_length=Interval(e, e, e),
        times=replace(setting.measured.times, total=f),
    )  # fmt: skip
    whole, tokens, seconds, rest = miss(replace(setting, predicted=predicted, measured=measured))
    assert whole is not None
    assert tokens is not None
    assert seconds is not None
    assert rest is not None
    assert (1 + tokens) * (1 + seconds) * (1 + rest) == pytest.approx(1 + whole)
    assert whole == pytest.approx(d / a - 1)


def test_a_table_that_does_not_fit_becomes_a_list() -> None:
    wide, narrow = report(showcase.full(), 80).splitlines(), report(showcase.full(), 40).splitlines()
    assert any(line.split()[:3] == ["0", "1", "model:draft"] for line in wide)
    assert "  speed-up: 1.69x [1.61, 1.78]" in narrow


def test_long_profiles_are_cut_and_say_so() -> None:
    text = report(showcase.many())
    assert len(text.splitlines()) < 340
    assert "Speed-up, temperature 0, batch 1: the best 12 of 16" in text
    assert "28 more rows are in report.html." in text, "40 domains, 12 shown"
    assert "note number 10" in text
    assert "note number 11" not in text
    assert "29 more are in report.html." in text


def test_what_is_missing_is_said() -> None:
    text = report(showcase.empty())
    assert "Interrupted: what is here is right" in text
    assert "No draft was measured." in text


def test_a_broken_martingale_is_said() -> None:
    profile = sample.profile(ks=(3,), batches=(1,))
    assert "Acceptance is not what alpha says" not in report(profile)
    broken = [
        replace(s, measured=replace(s.measured, martingale=Interval(0.1, 0.08, 0.12)))
        if s.measured and s.draft == "ngram" else s
        for s in profile.settings
    ]  # fmt: skip
    assert "minus alpha is 0.100 [0.080, 0.120]" in report(replace(profile, settings=broken), 200)


def test_the_recommendation_alone_is_short() -> None:
    text = report(showcase.full(), show=print_recommendation)
    assert "Why, temperature 1, batch 4" in text
    assert "Milliseconds" not in text
    assert "alpha: chance" not in text


def test_the_usual_report_leaves_the_long_tables_to_the_page() -> None:
    profile = sample.profile()
    consoles = [Console(file=io.StringIO(), width=80) for _ in range(2)]
    for console, is_full in zip(consoles, (False, True), strict=True):
        print_report(profile, console, is_full=is_full)
    brief, full = (console.file.getvalue() for console in consoles)  # type: ignore[attr-defined]
    assert set(map(str.strip, brief.splitlines())) <= set(map(str.strip, full.splitlines()))
    for title in ("Milliseconds a round", "By domain", "Best tree for a number of nodes", "draft's no. 2"):
        assert title in full
        assert title not in brief
    for title in (
        "alpha: chance of acceptance",
        "draft's no. 1",
        "Speed-up, temperature 0, batch 1",
        "Acceptance by position",
    ):
        assert title in brief


def test_costs_of_greedy_and_sampled_calls_are_told_apart() -> None:
    profile = sample.profile()
    assert "call" not in report(profile)
    both = [*profile.costs, *(replace(c, sampled=True) for c in profile.costs)]
    lines = report(replace(profile, costs=both)).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("Milliseconds a round"))
    assert lines[head + 1].split()[0] == "call"
    assert lines[head + 3].split()[0] == "greedy"


def test_acceptance_that_chance_explains_is_no_doubt() -> None:
    profile = sample.profile()
    at = next(i for i, s in enumerate(profile.settings) if s.draft == "model:draft")
    measured = profile.settings[at].measured
    assert measured is not None
    for check, said in ((Interval(0.06, 0.01, 0.11), False), (Interval(0.2, 0.15, 0.25), True)):
        settings = list(profile.settings)
        settings[at] = replace(settings[at], measured=replace(measured, martingale=check))
        assert ("not what alpha says" in report(replace(profile, settings=settings))) == said
