"""The protocol between the benchmark and a peer's worker, with a real subprocess."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench.peers import client
from bench.peers.client import PeerError, Worker
from bench.peers.workers.wire import Ask, Batch, Load

FAKE = [sys.executable, "-S", str(Path(__file__).with_name("fake_worker.py"))]


def asked(mode: str) -> Load:
    return Load(mode, "target", "draft", "float32", 3, 4, 2, 6, 64, "scratch")


def worker(tmp_path: Path) -> Worker:
    return Worker(FAKE, tmp_path / "log", {"OMP_NUM_THREADS": "3"})


def test_loads_once_and_answers_many(tmp_path: Path) -> None:
    with worker(tmp_path) as peer:
        loaded = peer.load(asked("draft"))
        assert (loaded.engine, loaded.dtype) == ("Fake 1.0, 3 threads", "float32")
        for last in (5, 7):
            text = peer.generate(Ask([1, last], 3, 0.0, 0))
            assert text.tokens == [last + 1, last + 2, last + 3]
            assert (text.seconds, text.target_calls, text.drafted, text.accepted) == (0.5, 2, 6, 1)
        texts = peer.batch(Batch([[1, 5], [7]], 2))
        assert (texts.rows, texts.seconds) == ([[6, 7], [8, 9]], 0.25)
    log = (tmp_path / "log").read_text()
    assert "an engine prints to stdout" in log and "so do its children" in log


def test_close_ends_the_process(tmp_path: Path) -> None:
    with worker(tmp_path) as peer:
        pid = int(peer.load(asked("plain")).note)
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_refusal_is_told_and_the_worker_goes_on(tmp_path: Path) -> None:
    with worker(tmp_path) as peer:
        with pytest.raises(PeerError, match="RuntimeError: no such mode"):
            peer.load(asked("refuses"))
        assert peer.load(asked("plain")).dtype == "float32"


def test_a_death_is_told_with_the_end_of_the_log(tmp_path: Path) -> None:
    with worker(tmp_path) as peer:
        with pytest.raises(PeerError, match=r"the worker has ended; .*\n(.*\n)*  out of memory"):
            peer.load(asked("dies"))
        with pytest.raises(PeerError, match="the worker has ended"):
            peer.generate(Ask([1], 1, 0.0, 0))


def test_one_that_ended_stays_so_though_requests_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dying process closes its ends one after the other."""
    monkeypatch.setattr(client, "GENERATE_SECONDS", 20.0)
    goes = [sys.executable, "-S", "-c", "import os, time; input(); os.close(1); time.sleep(60)"]
    with Worker(goes, tmp_path / "log", {}) as peer:
        for _ in range(2):
            with pytest.raises(PeerError, match="the worker has ended"):
                peer.generate(Ask([1], 1, 0.0, 0))


def test_no_answer_in_time_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with worker(tmp_path) as peer:
        monkeypatch.setattr(client, "LOAD_SECONDS", 0.5)
        with pytest.raises(PeerError, match=r"no answer to 'load' within \d s"):
            peer.load(asked("hangs"))
        # Its late answer must not be taken for this one's.
        with pytest.raises(PeerError, match="the worker has ended"):
            peer.generate(Ask([1], 1, 0.0, 0))


def test_what_is_not_json_is_no_answer(tmp_path: Path) -> None:
    talks = [sys.executable, "-S", "-c", "print('hello'); input(); input()"]
    with (
        Worker(talks, tmp_path / "log", {}) as peer,
        pytest.raises(PeerError, match="not an answer: 'hello"),
    ):
        peer.generate(Ask([1], 1, 0.0, 0))


def test_fields_of_another_version_are_refused(tmp_path: Path) -> None:
    with worker(tmp_path) as peer, pytest.raises(PeerError, match=r"Ask has .*'seed'.*the request .*'sed'"):
        peer._ask({"do": "generate", "ids": [1], "new_tokens": 1, "temperature": 0.0, "sed": 0}, 30)


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="nowhere/python cannot be started"):
        Worker(["/nowhere/python", "x.py"], tmp_path / "log", {})


def test_this_interpreters_paths_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    tells = "import os; input(); print(os.environ.get('PYTHONPATH', 'none'), flush=True)"
    with (
        Worker([sys.executable, "-S", "-c", tells], tmp_path / "log", {}) as peer,
        pytest.raises(PeerError, match="not an answer: 'none"),
    ):
        peer.generate(Ask([1], 1, 0.0, 0))
