"""Which prompts and settings the loop is run on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.errors import OptionError
from specdec.profile.options import Options, parse_counts, parse_temperatures
from specdec.profile.sample import Item, batches_of, chosen_prompts, sampled_counts
from specdec.profile.traced import row_rounds


@given(st.lists(st.sampled_from("abcd"), max_size=40), st.integers(1, 50))
def test_prompts_are_spread_over_the_domains(domains: list[str], count: int) -> None:
    chosen = chosen_prompts(enumerate(domains), count)
    assert len(chosen) == len(set(chosen)) == min(count, len(domains))
    taken = [domains[i] for i in chosen]
    for domain in set(domains):
        fair = min(domains.count(domain), count // max(len(set(domains)), 1))
        assert taken.count(domain) >= fair


def test_batches_are_filled_up() -> None:
    items = [Item(i, str(i), str(i), "code", [i]) for i in range(5)]
    assert [[i.index for i in b] for b in batches_of(items, 2)] == [[0, 1], [2, 3], [4, 0]]
    assert [[i.index for i in b] for b in batches_of(items[:1], 3)] == [[0, 0, 0]]


def test_counts_that_are_run() -> None:
    assert sampled_counts([1, 3]) == [1, 3]
    assert sampled_counts(range(3, 13)) == [3, 4, 8, 12]


@pytest.mark.parametrize(
    ("text", "wanted"), [("1-8", tuple(range(1, 9))), ("4", (4,)), ("8, 1-3,2", (1, 2, 3, 8)), ("2 - 3", (2, 3))]
)
def test_counts_are_read(text: str, wanted: tuple[int, ...]) -> None:
    assert parse_counts(text, "batch") == wanted


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "1-99999", "1.5", "1;2", "٣"])
def test_other_counts_are_refused(text: str) -> None:
    with pytest.raises(OptionError):
        Options(batches=parse_counts(text, "batch"))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperatures": (-1.0,)},
        {"temperatures": (float("nan"),)},
        {"temperatures": ()},
        {"num_draft_tokens": (0,)},
        {"num_draft_tokens": (17,)},
        {"batches": (0,)},
        {"new_tokens": 1},
        {"max_prompts": -1},
        {"loop_prompts": 0},
        {"repeats": 0},
        {"price_per_hour": -1.0},
        {"price_per_hour": float("inf")},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(settings)).rstrip("es")):
        Options(**settings)  # type: ignore[arg-type]


def test_temperatures_are_read() -> None:
    assert parse_temperatures("1,0, 0.7") == (0.0, 0.7, 1.0)
    with pytest.raises(OptionError, match="temperature"):
        parse_temperatures("warm")


def test_rounds_are_read_off_the_sources() -> None:
    assert [(r.start, r.accepted, r.end) for r in row_rounds("ppaarabaa")] == [
        (1, 0, "p"), (2, 2, "r"), (5, 1, "b"), (7, 2, ""),
    ]  # fmt: skip
    recovered, bonus, cut = list(row_rounds("paarabaa"))
    assert [recovered.reached(i) for i in (1, 2, 3, 4)] == [True, True, True, False]
    assert [bonus.reached(i) for i in (1, 2)] == [True, False]
    assert [cut.reached(i) for i in (1, 2, 3)] == [True, True, False]
