"""What the loop's records come to, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from specdec.profile.loop_summary import measured_of

PLAIN = ("plain", 0.0, 1, 0)
DRAFT = ("model:x", 0.0, 1, 4)


def record(key: tuple[str, float, int, int], number: int, sources: str, verify: float, **more: Any) -> dict[str, Any]:
    """One call; `verify` seconds a round, and nothing else takes time."""
    draft, temperature, batch, k = key
    rounds = sum(letter != "a" for letter in sources[1:]) or int(len(sources) > 1)
    row = {
        "index": number, "domain": "code", "context": 10, "tokens": [7] * len(sources), "sources": sources,
        "target_entropy": [0.5] * len(sources),
    }  # fmt: skip
    return {
        "draft": draft, "temperature": temperature, "batch": batch, "num_draft_tokens": k, "number": number,
        "repeat": 0, "rounds": rounds, "row_rounds": rounds, "drafted": k * rounds, "accepted": k * rounds,
        "drafted_per_depth": [rounds] * k, "accepted_per_depth": [rounds] * k,
        "tokens": len(sources), "longest": len(sources), "prompt_tokens": 10, "peak": None, "joules": None,
        "parts": {"draft": 0.0, "verify": verify * rounds, "other": 0.0, "prefill": 0.0},
        "seconds": verify * rounds + 1e-9, "rows": [row],
    } | more  # fmt: skip


def test_what_was_accepted_behind_the_end_does_not_count() -> None:
    """The rule accepted all four, and the text ended with the second."""
    records = [record(PLAIN, 0, "pppp", 1.0), record(DRAFT, 0, "paa", 1.0)]
    found = measured_of(records, 0)[DRAFT]
    assert found.acceptance_length.value == 3
    assert found.acceptance_rate == 0.5
    assert [p.accepted for p in found.positions] == [1, 1, 0, 0]


def test_texts_that_end_at_once_say_nothing_of_times() -> None:
    """Median rounds would be of no length."""
    records = [record(PLAIN, n, "pppp", 1.0) for n in range(3)]
    records += [record(DRAFT, 0, "paaaab", 2.0), record(DRAFT, 1, "p", 2.0), record(DRAFT, 2, "p", 2.0)]
    assert measured_of(records, 0)[DRAFT].times.verify == 2.0


def test_the_ceiling_is_one_of_means_as_the_speed_up_is() -> None:
    """Where a part of the rounds is dear, medians would put it below what was measured."""
    records = [record(PLAIN, n, "p" * 9, 1.0) for n in range(5)]
    records += [record(DRAFT, n, "paaraarar", 1.2 if n % 2 else 1.0) for n in range(5)]
    found = measured_of(records, 0)[DRAFT]
    assert found.ceiling == pytest.approx(found.speedup.value, rel=0.02)
    assert not found.impossible


def test_a_plain_side_that_was_slowed_is_flagged() -> None:
    """Its verification was timed right, and its calls took twice as long."""
    records = [record(PLAIN, n, "p" * 9, 1.0) for n in range(8)]
    slowed = [r | {"seconds": 2 * r["seconds"]} for r in records]
    drafts = [record(DRAFT, n, "paaraarar", 1.0) for n in range(8)]
    assert measured_of([*slowed, *drafts], 0)[DRAFT].impossible
    assert not measured_of([*records, *drafts], 0)[DRAFT].impossible


def test_rows_that_were_cut_back_to_the_slowest_show_no_rejection() -> None:
    key = ("model:x", 1.0, 2, 4)
    plain = [record(("plain", 1.0, 2, 0), 0, "pppp", 1.0)]
    rows = [{**record(key, 0, "prprp", 1.0)["rows"][0], "alpha": [0.9] * 5}]
    records = [*plain, record(key, 0, "prprp", 1.0, rows=rows)]
    free, level = measured_of(records, 0)[key], measured_of(records, 0, levels=True)[key]
    assert free.martingale is not None
    assert free.martingale.value == pytest.approx(-0.9)
    assert level.martingale is None
