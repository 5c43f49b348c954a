"""docs/generate.md has a row for every parameter of transformers' generate(), and each row says what is true.

The checks are functions that return what is wrong, so that they can be shown to find something.
"""

from __future__ import annotations

import copy
import inspect
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from models import prompts, tiny
from transformers import CompileConfig, GenerationConfig, GenerationMixin
from transformers.generation import utils

import specdec
from specdec import options

TESTS = pathlib.Path(__file__).parent
PAGE = TESTS.parent / "docs" / "generate.md"
# What generate() takes from its **kwargs: popped by name, or inputs of a model.
TAKEN = {"tokenizer", "assistant_tokenizer", "trust_remote_code"}
MODEL_INPUTS = {
    *("input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "logits_to_keep"),
    *("token_type_ids", "pixel_values"),
}
# Rows that specdec.options does not name: they stand for more than one argument, or belong to some models only.
UNNAMED = {"kwargs", "token_type_ids", "pixel_values"}
OTHER_VERSIONS: set[str] = set()  # in a supported transformers (5.17 and later), not in the one that is installed
FATES = {
    "supported": options.HONOURED,
    "mapped": options.MAPPED,
    "no effect": options.WITHOUT_EFFECT,
    "refused": frozenset(options.REFUSED),
}


@dataclass(frozen=True)
class Row:
    """One line of the tables."""

    name: str
    fate: str
    words: str
    tests: tuple[str, ...]


def read_rows(page: str) -> list[Row]:
    rows = []
    for line in page.splitlines():
        match = re.fullmatch(r"\| `(\w+)` \| ([\w ]+) \| (.*?) \| (.*?) \|", line)
        if match:
            name, fate, words, tests = match.groups()
            rows.append(Row(name, fate, words, tuple(re.findall(r"`(.+?)`", tests))))
    return rows


ROWS = read_rows(PAGE.read_text())
BY_NAME = {row.name: row for row in ROWS}
REFUSED = [row.name for row in ROWS if row.fate == "refused"]


def installed() -> set[str]:
    """Every parameter of the installed transformers."""
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    return fields | set(inspect.signature(GenerationMixin.generate).parameters) - {"self"}


def wrong_names(rows: list[Row]) -> list[str]:
    """Parameters without a row, and rows without a parameter."""
    names = [row.name for row in rows]
    missing = installed() | TAKEN | MODEL_INPUTS
    stale = set(names) - missing - OTHER_VERSIONS
    return [
        *(f"{name} has no row" for name in sorted(missing - set(names))),
        *(f"{name} is no parameter of transformers" for name in sorted(stale)),
        *(f"{name} has two rows" for name in sorted({n for n in names if names.count(n) > 1})),
    ]


def wrong_fates(rows: list[Row]) -> list[str]:
    """Rows that say otherwise than specdec.options."""
    said = {fate: {row.name for row in rows if row.fate == fate} - UNNAMED for fate in FATES}
    known = frozenset().union(*FATES.values())
    return [
        *(f"{row.name}: unknown fate {row.fate!r}" for row in rows if row.fate not in FATES),
        *(f"{name} is not {fate} in options.py" for fate in FATES for name in sorted(said[fate] - FATES[fate])),
        *(f"{name} is {fate} in options.py" for fate in FATES for name in sorted((FATES[fate] - said[fate]) & known)),
    ]


def wrong_tests(rows: list[Row], collected: set[str]) -> list[str]:
    """Rows without a test, and tests that do not exist. `f[a]` stands for all of f's variants with a in their id."""
    known = {*collected, *(test.partition("[")[0] for test in collected)}
    for test in collected:
        function, _, variant = test.partition("[")
        known |= {f"{function}[{part}]" for part in variant.removesuffix("]").split("-")}
    return [
        *(f"{row.name} names no test" for row in rows if not row.tests),
        *(f"{row.name}: no test {test}" for row in rows for test in row.tests if test not in known),
    ]


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """The ids, below tests/, of all tests in the files that the table names."""

    class Collector:
        ids: set[str] = set()  # noqa: RUF012 - one object, used once

        def pytest_collection_finish(self, session: pytest.Session) -> None:
            self.ids = {item.nodeid.removeprefix("tests/") for item in session.items}

    files = sorted({test.partition("::")[0] for row in ROWS for test in row.tests})
    assert all((TESTS / file).exists() for file in files)
    collector = Collector()
    given = [
        f"--rootdir={TESTS.parent}",
        "--collect-only",
        "-qq",
        "-m",
        "",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:faulthandler",
    ]
    code = pytest.main([*given, *(str(TESTS / file) for file in files)], plugins=[collector])
    assert code == pytest.ExitCode.OK
    return collector.ids


def test_every_parameter_has_one_row() -> None:
    assert wrong_names(ROWS) == []


def test_what_is_taken_from_kwargs_is_taken() -> None:
    """The names that no signature shows."""
    source = inspect.getsource(utils)
    taken = {*inspect.signature(tiny("llama").forward).parameters, *inspect.signature(tiny("gpt2").forward).parameters}
    taken |= {name for name in (*TAKEN, *MODEL_INPUTS) if f'"{name}"' in source}
    assert {*TAKEN, *MODEL_INPUTS} - taken == set()


def test_fates_are_those_of_the_code() -> None:
    assert wrong_fates(ROWS) == []


def test_every_row_names_tests_that_exist(collected: set[str]) -> None:
    assert wrong_tests(ROWS, collected) == []


def test_a_new_field_of_transformers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """And refused, when it is set, until it has a row."""
    before: Any = GenerationConfig.__init__

    def newer(self: Any, **kwargs: Any) -> None:
        self.dream_tokens = kwargs.pop("dream_tokens", None)
        before(self, **kwargs)

    monkeypatch.setattr(GenerationConfig, "__init__", newer)
    # The names are read once a process; in a newer transformers they are there from the start.
    monkeypatch.setattr(options, "_known_names", options._known_names.__wrapped__)
    assert wrong_names(ROWS) == ["dream_tokens has no row"]
    specdec.generate(tiny("llama"), **prompts(1), generation_config=GenerationConfig(max_new_tokens=2))
    config = GenerationConfig(max_new_tokens=2, dream_tokens=3)
    with pytest.raises(specdec.UnsupportedOptionError, match="dream_tokens=3"):
        specdec.generate(tiny("llama"), **prompts(1), generation_config=config)


def test_a_new_argument_of_transformers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def newer(self: Any, inputs: Any = None, dream: bool = False, **kwargs: Any) -> None: ...

    monkeypatch.setattr(GenerationMixin, "generate", newer)
    assert "dream has no row" in wrong_names(ROWS)
    assert "streamer is no parameter of transformers" in wrong_names(ROWS)


def test_wrong_rows_are_found(collected: set[str]) -> None:
    """Each check objects to a table with one mistake."""
    for broken, wrong in (
        ({"name": "top_kk"}, wrong_names),
        ({"name": "top_p"}, wrong_names),
        ({"fate": "refused"}, wrong_fates),
        ({"fate": "ignored"}, wrong_fates),
        ({"tests": ()}, wrong_tests),
        ({"tests": ("test_equality.py::test_equals_generate[top_q]",)}, wrong_tests),
        ({"tests": ("test_equality.py::test_equal",)}, wrong_tests),
    ):
        rows = [replace(row, **broken) if row.name == "top_k" else row for row in ROWS]
        assert wrong(rows, collected) if wrong is wrong_tests else wrong(rows)


# A value that switches each refused option on.
ON: dict[str, Any] = {
    "num_beams": 2,
    "constraints": [object()],
    "force_words_ids": [[5]],
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "guidance_scale": 1.5,
    "negative_prompt_ids": torch.tensor([[3]]),
    "negative_prompt_attention_mask": torch.tensor([[1]]),
    "token_healing": True,
    "output_attentions": True,
    "is_assistant": True,
    "use_mtp": True,
    "speculation_type": "dspark",
    "assistant_ensemble_weight": 0.5,
    "synced_gpus": True,
    "custom_generate": lambda *_, **__: None,
    "trust_remote_code": True,
}
OFF = {"num_beams": 1, "guidance_scale": 1.0}  # None for the others


@pytest.fixture
def forwards() -> Iterator[list[int]]:
    """Grows with every forward of the target."""
    seen: list[int] = []
    handle = tiny("llama").register_forward_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_rows_raise(name: str, forwards: list[int]) -> None:
    """The error that the row names, before any forward; and the value that switches the option off is fine."""
    named = re.match(r"`(\w+)`", BY_NAME[name].words)
    assert named, "a refused row begins with its error"
    with pytest.raises(specdec.SpecdecError, match=name) as caught:
        specdec.generate(tiny("llama"), **prompts(2), max_new_tokens=3, **{name: ON[name]})
    assert type(caught.value).__name__ == named[1]
    assert forwards == []
    specdec.generate(tiny("llama"), **prompts(2), max_new_tokens=3, **{name: OFF.get(name)})
    assert forwards


@pytest.mark.parametrize("name", [n for n in REFUSED if n in vars(GenerationConfig())])
def test_refused_rows_raise_from_a_config(name: str, forwards: list[int]) -> None:
    """Likewise where a config says it: the call's, or the checkpoint's own."""
    config = GenerationConfig(max_new_tokens=3)
    setattr(config, name, ON[name])
    with pytest.raises(specdec.UnsupportedOptionError, match=name):
        specdec.generate(tiny("llama"), **prompts(2), generation_config=config)
    target = copy.copy(tiny("llama"))
    target.generation_config = config
    with pytest.raises(specdec.UnsupportedOptionError, match=name):
        specdec.generate(target, **prompts(2), max_new_tokens=3)
    assert forwards == []


# Values that would matter if anything looked at them.
IDLE: dict[str, Any] = {
    "early_stopping": True,
    "length_penalty": 2.0,
    "diversity_penalty": 0.5,
    "num_beam_groups": 2,
    "low_memory": True,
    "assistant_confidence_threshold": 0.9,
    "assistant_lookbehind": 3,
    "target_lookbehind": 3,
    "compile_config": CompileConfig(),
    "disable_compile": True,
    "cache_config": {"nbits": 4},
    "max_cache_len": 128,
    "continuous_batching_config": {"block_size": 8},
    "transformers_version": "5.17.0",
}


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.fate == "no effect"])
def test_no_effect(name: str) -> None:
    """The same text with the option as without, here and in transformers."""
    target, arguments = tiny("llama"), {**prompts(3), "max_new_tokens": 16}
    expected = target.generate(**arguments).tolist()
    assert target.generate(**arguments, **{name: IDLE[name]}).tolist() == expected
    draft = tiny("llama", noise=0.02)
    assert specdec.generate(target, **arguments, **{name: IDLE[name]}, drafter=draft).tolist() == expected
