"""The parent's half of the protocol: a peer's worker as a subprocess that is loaded once and asked for many texts."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.peers.catalogue import Peer
from bench.peers.workers.wire import Ask, Batch, Load, Loaded, Text, Texts

LOAD_SECONDS, GENERATE_SECONDS, QUIT_SECONDS = 900.0, 300.0, 10.0
_TAIL = 12  # lines of its log that an error quotes


class PeerError(RuntimeError):
    """A peer could not do what was asked; the message ends with the last lines of its log."""


class Worker:
    """A running worker.

    Args:
        command: the interpreter of the peer's environment, and the script.
        log: where its stderr, and whatever its engine prints, goes.
        environment: variables on top of this process's own.

    Raises:
        PeerError: the command cannot be started.

    Example:
        >>> with Worker([python, "vllm_worker.py"], log, {}) as worker:  # doctest: +SKIP
        ...     worker.load(Load(...))
        ...     worker.generate(Ask(ids=[1, 2, 3], new_tokens=8, temperature=0.0, seed=0)).tokens
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        self._lines: queue.Queue[str | None] = queue.Queue()
        # What steers this interpreter would lead the other one astray.
        own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        with open(log, "wb") as err:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=err,
                    text=True,
                    encoding="utf-8",
                    env=own | dict(environment),
                    start_new_session=True,  # engines start processes of their own: all end as one group
                )
            except OSError as error:
                raise PeerError(f"{command[0]} cannot be started: {error}. Name the peer's own interpreter.") from error
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def load(self, asked: Load) -> Loaded:
        """Loads models; minutes for an engine that compiles.

        Raises:
            PeerError: it says why it cannot, ends, or takes longer than `LOAD_SECONDS`.
        """
        return Loaded(**self._ask({"do": "load", **vars(asked)}, LOAD_SECONDS))

    def generate(self, asked: Ask) -> Text:
        """One text.

        Raises:
            PeerError: as `load`, within `GENERATE_SECONDS`.
        """
        return Text(**self._ask({"do": "generate", **vars(asked)}, GENERATE_SECONDS))

    def batch(self, asked: Batch) -> Texts:
        """Texts of several prompts, decoded together.

        Raises:
            PeerError: as `generate`, or the engine does not do it.
        """
        return Texts(**self._ask({"do": "batch", **vars(asked)}, GENERATE_SECONDS))

    def close(self) -> None:
        """Ends the worker and whatever it started."""
        with contextlib.suppress(PeerError):
            self._ask({"do": "quit"}, QUIT_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise PeerError(self._said("the worker has ended")) from error
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            # A late answer would be taken for the next one's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            raise PeerError(self._said(f"no answer to {request['do']!r} within {seconds:.0f} s")) from None
        if line is None:
            self._lines.put(None)  # it stays so: the next request may still be written before its pipe breaks
            raise PeerError(self._said("the worker has ended"))
        try:
            answer = json.loads(line)
            ok = answer.pop("ok")
        except (ValueError, AttributeError, KeyError) as error:
            raise PeerError(self._said(f"not an answer: {line[:200]!r}")) from error
        if not ok:
            raise PeerError(self._said(str(answer.get("error"))))
        return answer

    def _said(self, what: str) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
        return what + (f"; the end of {self._log}:\n  " + "\n  ".join(lines) if lines else "")


def worker_of(peer: Peer, python: str, threads: int, log: Path) -> Worker:
    """The peer's worker, started in its environment: so many threads, and nothing from the network.

    Args:
        python: the interpreter of the environment.
        log: as for `Worker`.
    """
    variables = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return Worker(peer.command(python), log, variables | peer.environment(python))
