"""`specdec profile`, then what is done with its directory, as a user would."""

from __future__ import annotations

import json
import pathlib

import pytest
from typer.testing import CliRunner

import specdec
from specdec.cli import app
from specdec.profile.files import load

pytestmark = pytest.mark.usefixtures("few_costs")
ASK = ["profile", "--max-prompts", "2", "--loop-prompts", "2", "--new-tokens", "8", "-k", "1,2", "--temperature", "0"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A profile of the bundled pair."""
    out = tmp_path_factory.mktemp("made") / "profile"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specdec.profile.costing.REPEATS", 1)
        patch.setattr("specdec.profile.run.REPEATS", 1)
        result = CliRunner().invoke(app, [*ASK, "--out", str(out), "--price-per-hour", "2.5", "--device", "auto"])
    assert result.exit_code == 0, result.output
    assert "report.html" in result.output
    assert "alpha: chance of acceptance" in result.output
    return out


def test_everything_is_written(made: pathlib.Path) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "model:bundled" in page
    assert load(made).complete
    lines = [json.loads(line) for line in (made / "prompts.jsonl").read_text().splitlines()]
    assert {line["draft"] for line in lines} == {"plain", "model:bundled", "ngram"}


def test_it_is_recommended_from_and_compared(made: pathlib.Path) -> None:
    result = CliRunner().invoke(app, ["recommend", str(made), "--price-per-hour", "1"])
    assert result.exit_code == 0, result.output
    assert "What to run" in result.output
    result = CliRunner().invoke(app, ["compare", str(made), str(made)])
    assert result.exit_code == 0, result.output
    assert "model:bundled" in result.output


def test_a_decoder_is_made_of_it(made: pathlib.Path) -> None:
    decoder = specdec.SpeculativeDecoder.from_profile(made)
    target, _, tokenizer = specdec.bundled_pair()
    inputs = tokenizer("def f(x):", return_tensors="pt")
    out = decoder.generate(target, **inputs, max_new_tokens=8)
    assert out.tolist() == target.generate(**inputs, max_new_tokens=8).tolist()


def test_errors_are_one_line(tmp_path: pathlib.Path) -> None:
    for wrong, words in (
        (["--prompts", str(tmp_path / "none.jsonl")], "none.jsonl"),
        (["-k", "0"], "num_draft_tokens"),
        (["--temperature", "hot"], "temperature"),
        (["--dtype", "int3"], "--dtype"),
        (["--strategy", "magic"], "magic"),
        (["--resume"], "nothing to resume"),
    ):
        result = CliRunner().invoke(app, [*ASK, *wrong, "--out", str(tmp_path / "out")])
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_says_so(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("specdec.profile.run.run_loop", interrupt)
    result = CliRunner().invoke(app, [*ASK, "--out", str(tmp_path)])
    assert result.exit_code == 130
    assert "Interrupted" in result.output
    assert not load(tmp_path).complete
