"""Which peers run, what their runs come to, and the table: with made-up runs and a fake peer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.harness import Comparison, Outcome, Run
from bench.peers import catalogue, sides
from bench.peers.catalogue import PEERS, Peer, interpreters
from bench.peers.sides import Named, Peers, with_end
from bench.peers.summary import absolute, figures, statement
from bench.peers.table import KIND, parts
from bench.peers.workers.wire import Load, Loaded, Text
from bench.texts import Judge, Verdict

HERE = Path(__file__).parent


def made(rates: dict[str, tuple[list[int], tuple[float, float]]]) -> tuple[Comparison[Any], list[Named]]:
    """Two rounds of one prompt: by side, its text and its seconds in each round. Calls: half of the tokens."""
    named = [Named(*_split(name), run=lambda batch: Outcome(0)) for name in rates]
    comparison: Comparison[Any] = Comparison({s.name: s.run for s in named}, [{"input_ids": torch.tensor([[1, 2]])}])
    for side, (tokens, seconds) in rates.items():
        for round_, took in enumerate(seconds):
            text = Text(tokens, took, len(tokens) // 2, None if "transformers" in side else 8, 2)
            comparison.runs.append(Run(side, 0, round_, took, Outcome(len(tokens), text)))
    return comparison, named


def _split(name: str) -> tuple[str, str]:
    engine = next(e for e in ("specdec compiled", "specdec eager", "transformers", "vLLM") if name.startswith(e))
    return engine, name.removeprefix(engine + " ")


SAME, OTHER = [7, 8, 9, 4], [7, 8, 3, 4]
RATES = {
    "specdec compiled plain": (SAME, (1.0, 1.0)),
    "specdec compiled draft": (SAME, (0.5, 0.4)),  # gains 2, 2.5
    "specdec compiled ngram": (SAME, (0.8, 0.8)),
    "specdec compiled draft auto": (SAME, (0.25, 0.25)),  # gain 4
    "specdec eager plain": (SAME, (8.0, 8.0)),
    "specdec eager draft": (SAME, (0.1, 0.1)),  # a gain of 80, which is not the statement's
    "transformers plain": (SAME, (4.0, 4.0)),
    "transformers draft": (OTHER, (4.0, 2.0)),  # gains 1, 2
    "vLLM plain": (SAME, (2.0, 3.0)),
    "vLLM ngram": (SAME[:3], (0.5, 0.5)),  # gains 3, 4.5 (3 tokens for 4)
}


class Ties(Judge):
    """Texts of one length differ by a near-tie."""

    def __init__(self) -> None:
        """Nothing is computed."""

    def __call__(self, prompt: Sequence[int], text: Sequence[int], other: Sequence[int]) -> Verdict:
        return "equal" if text == other else "near_ties" if len(text) == len(other) else "others"


def test_figures() -> None:
    comparison, named = made(RATES)
    found = figures(comparison, named, {"vLLM ngram": Loaded("vLLM 1", "float32", "a note")}, Ties())
    draft = found["specdec compiled draft"]
    assert draft["tokens_per_second"] == pytest.approx((8 + 10) / 2) and draft["tokens"] == 8
    assert draft["gain"] == pytest.approx([2.25, 2.0, 2.5])
    assert (draft["target_calls"], draft["acceptance_rate"], draft["tokens_a_call"]) == (4, 0.25, 2.0)
    assert found["transformers draft"]["acceptance_rate"] is None  # it does not say
    assert found["transformers draft"]["texts"] == {"texts": 2, "equal": 0, "near_ties": 2, "others": 0}
    ngram = found["vLLM ngram"]
    assert ngram["texts"] == {"texts": 2, "equal": 0, "near_ties": 0, "others": 2}
    assert (ngram["engine"], ngram["version"], ngram["note"]) == ("vLLM", "vLLM 1", "a note")
    assert "texts" not in figures(comparison, named, {}, None)["vLLM ngram"]


def test_statement() -> None:
    comparison, named = made(RATES)
    found = {(one["peer"], one["which"]): one for one in statement(comparison, named)}
    assert set(found) == {(p, w) for p in ("transformers", "vLLM") for w in ("fixed", "any")}
    fixed = found["vLLM", "fixed"]
    assert (fixed["ours"], fixed["theirs"], fixed["held"]) == ("draft", "ngram", False)
    assert fixed["our_gain"] == pytest.approx(2.25) and fixed["their_gain"] == pytest.approx((3 + 4.5) / 2)
    assert fixed["ours_over_theirs"] == pytest.approx([(2 / 3 + 2.5 / 4.5) / 2, 2.5 / 4.5, 2 / 3])
    assert (found["vLLM", "any"]["ours"], found["vLLM", "any"]["held"]) == ("draft auto", True)
    assert found["transformers", "fixed"]["held"]


def test_a_peer_without_plain_decoding_has_no_gain() -> None:
    comparison, named = made({k: v for k, v in RATES.items() if k != "vLLM plain"})
    assert "gain" not in figures(comparison, named, {}, None)["vLLM ngram"]
    assert {one["peer"] for one in statement(comparison, named)} == {"transformers"}


def test_absolute_order_round_by_round() -> None:
    comparison, named = made(RATES)
    found = {(one["ours"], one["theirs"]): one["ratio"] for one in absolute(comparison, named)}
    # 16 tokens/s against 6, 16 against 1 and 2, plain 4 against 2 and 4/3
    assert found["specdec compiled draft auto", "vLLM ngram"] == pytest.approx([16 / 6] * 3)
    assert found["specdec compiled draft auto", "transformers draft"] == pytest.approx([12, 8, 16])
    assert found["specdec compiled plain", "vLLM plain"] == pytest.approx([2.5, 2, 3])
    assert found["specdec eager draft", "transformers plain"] == pytest.approx([40] * 3)
    assert all("specdec" in ours and "specdec" not in theirs for ours, theirs in found)


def test_report() -> None:
    comparison, named = made(RATES)
    about = {"vLLM plain": Loaded("vLLM 1", "float32"), "vLLM ngram": Loaded("vLLM 1", "float32", "a note")}
    info = {
        "kind": KIND,
        "dtype": "float32",
        "temperature": 0.0,
        **dict.fromkeys(("prompts", "new_tokens", "draft_tokens", "threads", "cpus", "rounds"), 4),
        **dict.fromkeys(("torch", "transformers"), "V"),
        "sides": figures(comparison, named, about, Ties()),
        "statement": statement(comparison, named),
        "absolute": absolute(comparison, named),
        "skipped": {"llama.cpp": "no interpreter\n named"},
    }
    text = "\n\n".join(parts([{"kind": "cache"}, info]))
    for line in (
        "### Peers: float32, greedy",
        "| specdec compiled | plain | 4.0 | 1.00 [1.00-1.00] | 4 |  | 2.00 | 2/2 |",
        "| specdec compiled | draft | 9.0 | 2.25 [2.00-2.50] | 4 | 0.25 | 2.00 | 2/2 |",
        "| transformers | draft | 1.5 | 1.50 [1.00-2.00] | 4 | not told | 2.00 | 0/2, 2 by near-ties |",
        "| vLLM | n-gram | 6.0 | 3.75 [3.00-4.50] | 2 | 0.25 | 3.00 | 0/2, **2 others** |",
        "- vLLM: vLLM 1, float32.",
        "- vLLM n-gram: a note.",
        "| vLLM | same number of drafted tokens | 2.25 (draft) | 3.75 (n-gram) | 0.61 [0.56-0.67] | **no** |",
        '| vLLM | ours may use "auto" | 4.00 (draft auto) | 3.75 (n-gram) | 1.11 [0.89-1.33] | yes |',
        "| specdec compiled draft auto | vLLM n-gram | 2.67 [2.67-2.67] |",
        "Absolute order, each engine's best: specdec eager draft (40 tokens/s), specdec compiled draft auto "
        "(16 tokens/s), vLLM n-gram (6 tokens/s), transformers draft (2 tokens/s).",
        "- llama.cpp skipped: no interpreter named",
    ):
        assert line in text.splitlines(), line
    assert text.count("- vLLM: vLLM 1") == 1
    assert parts([{"kind": "cache"}]) == []


def test_interpreters(tmp_path: Path) -> None:
    found, missing = interpreters((), {})
    assert found == {} and set(missing) == set(PEERS)
    assert missing["vllm"] == "no interpreter named: --peer vllm=PYTHON or SPECDEC_PEER_VLLM"
    environment = {"SPECDEC_PEER_VLLM": "/of/variable", "SPECDEC_PEER_OPENVINO": sys.executable}
    found, missing = interpreters([f"vllm={sys.executable}", f"llamacpp={tmp_path}"], environment)
    assert found == {"vllm": sys.executable, "openvino": sys.executable}
    assert missing == {"llamacpp": f"{tmp_path} is no interpreter"}
    for bad in ("vllm", "vllm=", "sglang=/x"):
        with pytest.raises(ValueError, match="give NAME=PYTHON"):
            interpreters([bad], {})


def test_libraries_that_are_there_are_preloaded(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libiomp5.so").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    python, variables = str(tmp_path / "bin" / "python"), {"A": "1"}
    peer = Peer("p", "P", "", (), variables=variables, preload=("lib/libiomp5.so", "/nowhere/lib*.so"))
    assert peer.preloaded(python) == [f"{tmp_path}/lib/libiomp5.so"]
    assert peer.environment(python) == {"A": "1", "LD_PRELOAD": f"{tmp_path}/lib/libiomp5.so"}
    assert Peer("p", "P", "", (), variables=variables, preload=("lib/none.so",)).environment(python) == {"A": "1"}


def test_a_text_short_of_its_budget_has_ended() -> None:
    assert with_end([5, 6], 0, 2) == [5, 6]
    assert with_end([5, 6], 0, 3) == [5, 6, 0]
    assert with_end([5, 0], 0, 3) == [5, 0]
    assert with_end([], 0, 3) == [0]


def test_peers_run_or_are_skipped_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(sides, "MODES", ("plain", "refuses", "fails", "draft"))
    monkeypatch.setattr(catalogue, "WORKERS", HERE)
    monkeypatch.setitem(PEERS, "fake", Peer("fake", "Fake", "fake_worker.py", ()))
    load = Load("plain", "target", "draft", "float32", 3, 4, 2, 6, 64, str(tmp_path))
    batch = {"input_ids": torch.tensor([[3, 4]]), "attention_mask": torch.ones(1, 2)}
    with Peers({"fake": sys.executable}, {"vllm": "not here"}, load, 0.0, 5, 8, tmp_path) as peers:
        found = peers.start(batch)
        assert [side.name for side in found] == ["Fake plain", "Fake draft"]
        outcome = found[1].run(batch)
        assert (outcome.work, outcome.seconds, outcome.detail.tokens) == (5, 0.5, [5, 6, 7, 8, 9])
        assert set(peers.loaded) == {"Fake plain", "Fake draft"}
        assert set(peers.skipped) == {"vLLM", "Fake refuses", "Fake fails"} and peers.skipped["vLLM"] == "not here"
        assert "no such mode" in peers.skipped["Fake refuses"]
        assert "MemoryError: no room for a text" in peers.skipped["Fake fails"]
