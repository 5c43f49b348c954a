"""LEFT_OUT.md is complete: every test of the peer is here, or there with a reason."""

from __future__ import annotations

import pathlib
import re

from transformers_suite.test_refused import REFUSED

HERE = pathlib.Path(__file__).parent


def _names(pattern: str, *files: pathlib.Path) -> list[str]:
    return [name for file in files for name in re.findall(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)]


PEERS = _names(r"^(test_\w+)$", HERE / "peer_tests.txt")
OURS = _names(r"^def (test_\w+)", *HERE.glob("test_*.py"))
LEFT_OUT = _names(r"^\| `(test_\w+)` \| .+ \|$", HERE / "LEFT_OUT.md")


def test_every_test_of_the_peer_is_here_or_left_out() -> None:
    for names in (PEERS, OURS, LEFT_OUT):
        assert len(set(names)) == len(names)
    assert set(PEERS) == (set(OURS) & set(PEERS)) | set(LEFT_OUT)
    assert not set(OURS) & set(LEFT_OUT)


def test_what_is_called_refused_is_refused() -> None:
    text = (HERE / "LEFT_OUT.md").read_text(encoding="utf-8")
    section = text.split("\n## ")[1]
    assert section.startswith("Refused")
    assert set(re.findall(r"^\| `(test_\w+)`", section, re.MULTILINE)) == {n for n in REFUSED if n.startswith("test_")}
