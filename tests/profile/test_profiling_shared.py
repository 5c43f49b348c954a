"""Profiles that are interrupted, resumed, or measured by several processes."""

from __future__ import annotations

import pathlib

import pytest

from specdec.profile import run as run_module
from specdec.profile.files import load
from specdec.profile.run import Profiling
from specdec.profile.sharing import Team
from tests.profile.profiles import TINY, profile, records, texts

pytestmark = pytest.mark.usefixtures("few_costs")


def test_an_interrupted_profile_is_summed_up_and_goes_on(tmp_path: pathlib.Path) -> None:
    whole = profile(tmp_path / "whole", TINY)

    def interrupt(phase: str, done: int, _: int) -> None:
        if (phase, done) == stop:
            raise KeyboardInterrupt

    for stop in (("texts", 1), ("agreement", 1), ("costs", 2), ("loop", 2)):
        out = tmp_path / stop[0]
        part = profile(out, TINY, progress=interrupt)
        assert not part.complete
        assert "interrupted: go on with --resume" in part.notes
        assert load(out) == part
        assert len(texts(out)) >= 1  # what was measured is there
        again = profile(out, TINY, resume=True)
        assert again.complete
        assert texts(out) == texts(tmp_path / "whole")
        for part_name in ("texts", "agreement", "costs", "loop"):
            assert len(records(out, part_name)) == len(records(tmp_path / "whole", part_name)), part_name
        assert [a.alpha for a in again.agreements] == [a.alpha for a in whole.agreements]


def test_processes_share_the_prompts_and_add_up(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two processes would, one after the other: the one that does not lead ends when its share is measured."""
    alone, out = profile(tmp_path / "alone", TINY), tmp_path / "two"
    (out / "parts").mkdir(parents=True)  # the leading process would have made it
    assert Profiling(TINY, out, team=Team(1, 2)).run() is None
    monkeypatch.setattr(run_module.Workspace, "begin", lambda *_: None)
    together = profile(out, TINY, team=Team(0, 2))
    assert len(list((out / "parts").glob("texts.*.jsonl"))) == 2
    assert texts(out) == texts(tmp_path / "alone")
    assert together.agreements == alone.agreements
    assert together.subject == alone.subject
