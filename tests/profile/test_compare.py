"""Two profiles: what is paired, what is not, and which differences are larger than chance."""

from __future__ import annotations

import hashlib
import json
import pathlib
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from specdec.errors import InputError
from specdec.profile.compare import Comparison, Difference, compare
from specdec.profile.compare_print import print_comparison
from specdec.profile.files import save
from specdec.profile.prompt_lines import NAME
from specdec.profile.schema import Interval
from tests.profile.sample import profile

TOKENS, STEP = 64, 0.010  # of each prompt; seconds of a plain step


def key(prompt: int) -> str:
    return hashlib.sha1(str(prompt).encode()).hexdigest()[:16]


def lines(
    prompts: list[int],
    draft: str = "model:draft",
    *,
    gain: float = 0.0,
    round_seconds: float = 0.015,
    k: int = 4,
    temperature: float = 0.0,
) -> list[dict[str, Any]]:
    """A profile's records: prompts differ much, and a draft is better by `gain` on each of them, and a little noise."""
    out = []
    for index, prompt in enumerate(prompts):
        chance = random.Random(prompt)
        alpha = chance.uniform(0.3, 0.8)
        alpha += gain + random.Random(f"{prompt} {draft} {gain}").uniform(-0.01, 0.01)
        length = sum(alpha**i for i in range(k + 1))
        seconds = STEP * chance.uniform(0.9, 1.1) * TOKENS
        common = {"index": index, "key": key(prompt), "domain": "code", "temperature": temperature}
        rounds = {"batch": 1, "tokens": TOKENS, "drafted": 4, "accepted": 2}
        out += [
            common | {"draft": draft, "tokens": TOKENS, "alpha": TOKENS * alpha, "greedy": TOKENS * alpha},
            common | rounds | {"draft": "plain", "num_draft_tokens": 0, "rounds": TOKENS, "seconds": seconds},
            common
            | rounds
            | {"draft": draft, "num_draft_tokens": k, "rounds": TOKENS / length}
            | {"seconds": seconds / STEP / TOKENS * round_seconds * TOKENS / length},
        ]
    return out


def write(directory: pathlib.Path, records: list[dict[str, Any]]) -> pathlib.Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / NAME).write_text("".join(json.dumps(r) + "\n" for r in records))
    return directory


@pytest.fixture
def both(tmp_path: pathlib.Path) -> Callable[..., Comparison]:
    def run(a: list[dict[str, Any]], b: list[dict[str, Any]], seed: int = 0) -> Comparison:
        return compare(write(tmp_path / "a", a), write(tmp_path / "b", b), seed)

    return run


Both = Callable[..., Comparison]
MANY = list(range(30))


def named(found: Comparison) -> dict[str, Difference]:
    return {d.what: d for d in found.differences}


def test_a_small_gain_on_every_prompt_is_seen(both: Both) -> None:
    found = named(both(lines(MANY), lines(MANY, gain=0.03)))
    assert list(found) == ["alpha", "greedy agreement", "acceptance length", "speed-up"]
    alpha = found["alpha"]
    assert alpha.prompts == 30 and alpha.batch is None and alpha.temperature == 0
    assert alpha.difference.value == pytest.approx(alpha.b.value - alpha.a.value)
    assert 0.02 < alpha.difference.low < 0.03 < alpha.difference.high < 0.04
    assert alpha.b.low < alpha.a.high  # prompts differ so much that unpaired intervals overlap
    assert all(d.is_larger_than_chance for d in found.values())
    assert found["speed-up"].num_draft_tokens == 4 and found["speed-up"].batch == 1


def test_the_speed_up_is_plain_seconds_over_speculative_ones(both: Both) -> None:
    a = lines([1], round_seconds=0.015)
    speed = named(both(a, lines([1], round_seconds=0.030)))["speed-up"]
    assert speed.a.value == pytest.approx(a[1]["seconds"] / a[2]["seconds"])
    assert speed.b.value == pytest.approx(speed.a.value / 2)


def test_noise_is_not_taken_for_a_gain(both: Both) -> None:
    larger = 0
    for trial in range(40):
        prompts = list(range(1000 * trial, 1000 * trial + 20))
        found = both(lines(prompts, gain=0.0), lines(prompts, gain=1e-9), trial)  # the same, but for the noise
        larger += named(found)["alpha"].is_larger_than_chance
    assert larger <= 6  # of 40 two are expected


def test_equal_profiles_do_not_differ(both: Both) -> None:
    for difference in both(lines(MANY), lines(MANY)).differences:
        assert difference.difference == Interval(0, 0, 0)
        assert not difference.is_larger_than_chance


def test_the_order_of_lines_changes_nothing(both: Both) -> None:
    a, b = lines(MANY), lines(MANY, gain=0.03)
    first = both(a, b)
    random.Random(1).shuffle(b)
    for one, other in zip(first.differences, both(a, b).differences, strict=True):
        assert one.what == other.what
        for which in ("a", "b", "difference"):
            left, right = getattr(one, which), getattr(other, which)
            assert (left.value, left.low, left.high) == pytest.approx((right.value, right.low, right.high))


def test_prompts_of_one_side_are_left_out_and_named(both: Both) -> None:
    found = both(lines([*MANY[:10], 100, 101]), lines([200, *MANY[:10]], gain=0.03))
    same = both(lines(MANY[:10]), lines(MANY[:10], gain=0.03))
    assert found.prompts == 10
    assert found.only == ([10, 11], [0])
    for one, other in zip(found.differences, same.differences, strict=True):
        assert one.difference.value == pytest.approx(other.difference.value)
        assert one.prompts == 10


def test_prompts_are_paired_setting_by_setting(both: Both) -> None:
    """An interrupted profile has run the loop on some prompts only; elsewhere plain decoding is missing."""
    b = [r for r in lines(MANY, gain=0.03) if r["index"] < 12 or "alpha" in r]
    b = [r for r in b if r["draft"] != "plain" or r["index"] < 7]
    found = named(both(lines(MANY), b))
    assert {what: d.prompts for what, d in found.items()} == {
        "alpha": 30,
        "greedy agreement": 30,
        "acceptance length": 12,
        "speed-up": 7,
    }


def test_one_draft_on_each_side_is_compared_whatever_its_name(both: Both) -> None:
    found = both(lines(MANY), lines(MANY, "model:other", gain=0.03))
    assert {d.drafts for d in found.differences} == {("model:draft", "model:other")}
    assert any("model:draft in" in note and "model:other in" in note for note in found.notes)


def test_of_several_drafts_those_of_the_same_name_are_compared(both: Both) -> None:
    found = both(lines(MANY) + lines(MANY, "ngram"), lines(MANY, "model:other") + lines(MANY, "ngram", gain=0.05))
    assert {d.drafts for d in found.differences} == {("ngram", "ngram")}
    assert len([words for words in found.alone if "model:draft with 4" in words]) == 1
    assert len([words for words in found.alone if "model:other" in words]) == 2


def test_settings_of_one_side_are_named(both: Both) -> None:
    found = both(lines(MANY, k=4), lines(MANY, k=2))
    assert set(named(found)) == {"alpha", "greedy agreement"}
    assert [words.split(": ", 1)[1] for words in found.alone] == [
        "model:draft with 4, temperature 0, batch 1",
        "model:draft with 2, temperature 0, batch 1",
    ]


def test_nothing_in_common_says_why(both: Both) -> None:
    with pytest.raises(InputError, match=r"no prompt in common \(3 and 2 prompts\)"):
        both(lines([1, 2, 3]), lines([4, 5]))
    with pytest.raises(InputError, match=r"share 3 prompts but no setting.*ngram.*model:draft"):
        both(lines([1, 2, 3], "ngram") + lines([1, 2, 3], "suffix"), lines([1, 2, 3]))
    with pytest.raises(InputError, match="no setting"):
        both(lines([1, 2, 3], temperature=1.0), lines([1, 2, 3]))


def test_one_prompt_proves_nothing(both: Both) -> None:
    found = both(lines([1]), lines([1], gain=0.2))
    assert found.differences[0].difference.low > 0
    assert not any(d.is_larger_than_chance for d in found.differences)


def test_bad_records_are_refused_by_line(tmp_path: pathlib.Path) -> None:
    good = write(tmp_path / "good", lines([1, 2]))
    record = lines([1])[0]
    for bad in (
        "no json",
        "[]",
        json.dumps(record | {"alpha": "0.5"}),
        json.dumps(record | {"alpha": float("nan")}),
        json.dumps(record | {"tokens": -1}),
        json.dumps(record | {"key": "xyz"}),
        json.dumps(record | {"key": 7}),
        json.dumps({k: v for k, v in record.items() if k != "draft"}),
        json.dumps(record | {"alpha": True}),
        "[" * 70_000,
    ):
        place = tmp_path / "bad"
        place.mkdir(exist_ok=True)
        (place / NAME).write_text(json.dumps(record) + "\n" + bad + "\n")
        with pytest.raises(InputError, match="line 2"):
            compare(good, place)
    with pytest.raises(InputError, match="no records"):
        compare(good, tmp_path / "nowhere")


def test_a_line_that_was_cut_off_is_left_out(tmp_path: pathlib.Path) -> None:
    good, torn = write(tmp_path / "good", lines([1, 2])), write(tmp_path / "torn", lines([1, 2]))
    with (torn / NAME).open("a") as file:
        file.write('\n{"index": 3, "key": "0')
    assert compare(good, torn).prompts == 2


def test_what_else_differs_is_noted(tmp_path: pathlib.Path) -> None:
    a, b = write(tmp_path / "a", lines([1, 2])), write(tmp_path / "b", lines([1, 2]))
    assert any("Only the records" in note for note in compare(a, b).notes)
    save(profile(), a)
    other = profile()
    save(replace(other, machine=replace(other.machine, device="another CPU")), b)
    assert compare(a, b).notes == ["The devices differ: Some CPU <2 cores> and another CPU."]


def printed(comparison: Comparison) -> str:
    console = Console(width=80, no_color=True, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_comparison(comparison, console)
    console.file.close()
    return console.export_text()


def test_the_report_fits_80_columns_and_speaks(both: Both) -> None:
    text = printed(both(lines([*MANY, 77]), lines(MANY, "model:other", gain=0.03)))
    assert "30 prompts in both; 1 only in a (number 30), left out." in text
    assert "Alpha at temperature 0 is larger in b:" in text
    assert "Speed-up at temperature 0, batch 1, 4 draft tokens is larger in b:" in " ".join(text.split())
    assert "4 of 4 differences are larger than chance" in text
    table = [line for line in text.splitlines() if line.startswith(("alpha", "greedy", "acceptance", "speed-up"))]
    assert len(table) == 4 and all(len(line) <= 80 and line.rstrip().endswith("*") for line in table)
    assert "…" not in text
    equal = printed(both(lines(MANY), lines(MANY)))
    assert "No difference is larger than chance" in equal and "*" not in equal
    assert "the intervals are too narrow" in printed(both(lines([1, 2]), lines([1, 2])))
