"""Targets whose tensors are shared by two processes (tp_plan="auto" under torchrun, gloo on a CPU).

One launch for all checks of a kind; what each rank reports is compared here. sharded_worker.py has the checks.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from models import tiny
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

Reports = list[dict[str, Any]]  # a rank's each
HERE = pathlib.Path(__file__).parent
DEFAULT = (
    ("llama", "chain", "auto", 3),
    ("llama", "tree", 4, 3),
    ("qwen3", "n-grams", 4, 3),
    ("mixtral", "chain", 4, 1),
)
ALONE = (
    "sharded_draft other_logits other_sharded_draft other_draft other_clock other_criteria one_rank_fails "
    "a_given_cache uncompiled the_probe"
).split()
STRATEGIES = (
    "none",
    "chain",
    "confident chain",
    "tree",
    "n-grams",
    "suffixes",
    "lookahead",
    "early exit",
    "layer skip",
    "mix",
    "mix with own layers",
)
FAMILIES = ("llama", "qwen3", "mixtral", "qwen3_moe")


def _save(directory: pathlib.Path, family: str) -> None:
    """A target, and a draft that agrees with it often."""
    for name, noise in ((family, 0.0), (f"{family}-draft", 0.02)):
        if family in ("llama", "qwen3"):
            tiny(family, noise=noise).save_pretrained(directory / name)
        else:
            _experts(family, noise).save_pretrained(directory / name)


def _experts(family: str, noise: float) -> Any:
    common = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    if family == "mixtral":
        config: Any = MixtralConfig(num_local_experts=4, **common)
    else:
        config = Qwen3MoeConfig(num_experts=4, moe_intermediate_size=32, **common)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(torch.float64).eval()
    weights, other = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                wide = 1.0 if "embed" in name or "lm_head" in name else 0.3
                parameter.copy_(wide * torch.randn(parameter.shape, generator=weights, dtype=torch.float64))
                parameter.add_(noise * wide * torch.randn(parameter.shape, generator=other, dtype=torch.float64))
    return model


def launched(directory: pathlib.Path, families: tuple[str, ...], checks: list[str], timeout: int) -> Reports:
    """Runs the checks in two processes; what each reports."""
    for family in families:
        _save(directory, family)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TRANSFORMERS_VERBOSITY": "error"}
    root = str(HERE.parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(
        [*command, str(HERE / "sharded_worker.py"), str(directory), *checks],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    reports = [directory / f"{rank}.json" for rank in range(2)]
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(report.read_text()) for report in reports]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    checks = [*map(json.dumps, DEFAULT), *ALONE]
    return launched(tmp_path_factory.mktemp("sharded"), ("llama", "qwen3", "mixtral"), checks, timeout=300)


def assert_exact(told: Reports) -> None:
    """Both ranks have what the target itself would have said."""
    assert all(report["equal"] for report in told)
    assert told[0]["tokens"] == told[1]["tokens"]


def assert_sampled_together(told: Reports) -> None:
    for rule in ("rejection", "block"):
        assert told[0][rule] == told[1][rule]
    assert told[0]["rejection"] != told[0]["tokens"]  # something was drawn


@pytest.mark.parametrize("case", DEFAULT, ids=lambda case: " ".join(map(str, case)))
def test_strategies(reports: Reports, case: tuple[Any, ...]) -> None:
    told = [report[json.dumps(case)] for report in reports]
    assert_exact(told)
    assert_sampled_together(told)
    assert told[0]["drafted"] and (case[1] == "n-grams" or told[0]["accepted"])


def test_a_draft_that_is_whole_runs_on_rank_0_only(reports: Reports) -> None:
    leader, other = (report[json.dumps(DEFAULT[0])] for report in reports)
    assert leader["draft_calls"] and not other["draft_calls"]
    assert leader["accepted"] == other["accepted"]


@pytest.mark.parametrize("kind", ["chain", "tree"])
def test_a_sharded_draft(reports: Reports, kind: str) -> None:
    told = [report["sharded_draft"][kind] for report in reports]
    assert_exact(told)
    assert told[0]["sampled"] == told[1]["sampled"] != told[0]["tokens"]
    assert told[0]["accepted"] and told[0]["draft_calls"] == told[1]["draft_calls"] > 0


@pytest.mark.parametrize("what", ["other_logits", "other_clock"])
def test_ranks_of_another_mind(reports: Reports, what: str) -> None:
    told = [report[what] for report in reports]
    assert_exact(told)
    assert told[0]["drafted"]
    if what != "other_clock":  # in which acceptance is up to the length that is asked for
        assert told[0]["accepted"]


@pytest.mark.parametrize("kind", ["chain", "tree"])
def test_ranks_feed_a_sharded_draft_the_same_tokens(reports: Reports, kind: str) -> None:
    """Else keys and values of different texts would meet in its attention."""
    told = [report["other_sharded_draft"][kind] for report in reports]
    assert_exact(told)
    assert told[0]["sampled"] == told[1]["sampled"]
    assert told[0]["rejected"] == 0
    if kind == "chain":  # a tree may be deeper beside the path that is accepted
        assert told[0]["accepted"] == told[0]["drafted"]


@pytest.mark.parametrize("kind", ["chain", "tree"])
def test_a_draft_of_other_weights_on_rank_1(reports: Reports, kind: str) -> None:
    told = [report["other_draft"][kind] for report in reports]
    assert_exact(told)
    assert told[0]["accepted"]


def test_criteria_are_rank_0s(reports: Reports) -> None:
    first, second = (report["other_criteria"] for report in reports)
    assert first == second
    assert first["length"] == 18


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        ("on_commit of rank 1", ("RankError", "KeyError")),
        ("on_commit of rank 0", ("KeyError", "RankError")),
        ("processor of rank 1", ("RankError", "KeyError")),
        ("on_finish of rank 1", ("RankError", "KeyError")),
        ("on_finish of both", ("KeyError", "KeyError")),
        ("drafter", ("KeyError", "RankError")),
        ("other prompts", ("RankError", "InputError")),
        ("other options", ("RankError", "OptionError")),
        ("refused on rank 1", ("RankError", "UnsupportedOptionError")),
        ("refused on both", ("UnsupportedOptionError", "UnsupportedOptionError")),
    ],
)
def test_a_rank_that_fails_is_not_waited_for(reports: Reports, fault: str, raised: tuple[str, str]) -> None:
    told = [report["one_rank_fails"][fault] for report in reports]
    assert tuple(report["raised"] for report in told) == raised
    assert all(report["rng"] for report in told)
    assert_exact(told)  # the next call


def test_a_cache_is_taken_up(reports: Reports) -> None:
    assert_exact([report["a_given_cache"] for report in reports])


def test_compiled_steps_are_refused_by_name(reports: Reports) -> None:
    told = [report["uncompiled"] for report in reports]
    assert_exact(told)
    assert all("several processes" in report["roles"]["target"] for report in told)


def test_the_probe_finds_what_a_whole_model_can_do(reports: Reports) -> None:
    assert [report["the_probe"] for report in reports] == [{"drafts": "trees", "batches": "free"}] * 2


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_every_strategy(family: str, tmp_path: pathlib.Path) -> None:
    cases = [[family, name, num, rows] for name in STRATEGIES for num, rows in ((4, 3), ("auto", 1), ("auto", 3))]
    reports = launched(tmp_path, (family,), list(map(json.dumps, cases)), timeout=1800)
    for case in cases:
        told = [report[json.dumps(case)] for report in reports]
        assert_exact(told)
        assert_sampled_together(told)
