"""Ours and transformers beside vLLM, OpenVINO GenAI and llama.cpp. Reports; never fails for being slow.

Each engine is compared with its own plain decoding, in one run in which all sides alternate prompt by prompt.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import specdec
from bench.conftest import Settings
from bench.harness import Comparison
from bench.peers.catalogue import interpreters
from bench.peers.conftest import option
from bench.peers.sides import MAIN, Peers, load_of_pair, own
from bench.peers.summary import Arbiter, figures, statement
from bench.peers.table import KIND
from bench.sides import Sides
from specdec.arbitrate import first_divergence


def test_peers(
    benchmark: Any,
    settings: Settings,
    request: pytest.FixtureRequest,
    records: list[dict[str, Any]],
    dtype: torch.dtype,
    temperature: float,
    tmp_path: Path,
) -> None:
    found, missing = interpreters(option(request.config, "--peer"), os.environ)
    if not found:
        pytest.skip("; ".join(f"{name}: {why}" for name, why in missing.items()))
    name = str(dtype).removeprefix("torch.")
    with Sides(dtype, temperature, settings.new_tokens, settings.draft_tokens) as sides:
        items = sides.batches(_prompts(settings, option(request.config, "--peer-prompts")), 1)
        scratch = Path(option(request.config, "--peer-scratch") or tmp_path)
        load = load_of_pair(sides, name, settings.threads, scratch)
        end = sides.target.generation_config.eos_token_id
        with Peers(found, missing, load, temperature, settings.new_tokens, end, tmp_path) as peers:
            named = own(sides) + peers.start(items[0])
            comparison = Comparison({side.name: side.run for side in named}, items)
            benchmark.group = "peers, batch 1: seconds a prompt"
            comparison.measure(benchmark, MAIN, settings.rounds)
        arbiter = _arbiter(sides.target) if temperature == 0 else None
        record = settings.info() | {
            "kind": KIND,
            "dtype": name,
            "temperature": temperature,
            "prompts": len(items),
            "sides": figures(comparison, named, peers.loaded, arbiter),
            "statement": statement(comparison, named),
            "skipped": peers.skipped,
        }
    benchmark.extra_info |= record
    records.append(record)


def _prompts(settings: Settings, file: str) -> list[str]:
    if file:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        prompts = [json.loads(line)["prompt"] for line in lines if line.strip()]
    else:
        prompts = [one["prompt"] for one in specdec.bundled_prompts()]
    return prompts[: settings.prompts] if settings.prompts else prompts


def _arbiter(target: PreTrainedModel) -> Arbiter:
    """Judges each pair of texts once: the rounds repeat them."""
    known: dict[tuple[tuple[int, ...], ...], bool | None] = {}

    def verdict(prompt: list[int], text: list[int], other: list[int]) -> bool | None:
        key = (tuple(prompt), tuple(text), tuple(other))
        if key not in known:
            found = first_divergence(target, prompt, text, other)
            # One that ends early has no differing token, and is no tie.
            known[key] = found.is_near_tie if found else None if len(text) == len(other) else False
        return known[key]

    return verdict
