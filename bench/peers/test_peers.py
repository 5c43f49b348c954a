"""Ours and transformers beside vLLM, OpenVINO GenAI and llama.cpp. Reports; never fails for being slow.

Each engine is compared with its own plain decoding, in one run in which all sides alternate prompt by prompt.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.conftest import Settings
from bench.harness import Comparison
from bench.peers.catalogue import interpreters
from bench.peers.conftest import option
from bench.peers.sides import EAGER, MAIN, OURS, Peers, load_of_pair, own, static
from bench.peers.summary import absolute, figures, statement
from bench.peers.table import KIND
from bench.prompts import read
from bench.sides import Sides
from bench.texts import Judge, fail_if_others


def test_peers(
    benchmark: Any,
    settings: Settings,
    request: pytest.FixtureRequest,
    dtype: torch.dtype,
    temperature: float,
    tmp_path: Path,
) -> None:
    found, missing = interpreters(option(request.config, "--peer"), os.environ)
    if not found:
        pytest.skip("; ".join(f"{name}: {why}" for name, why in missing.items()))
    name = str(dtype).removeprefix("torch.")
    with Sides(dtype, temperature, settings.new_tokens, settings.draft_tokens) as sides:
        items = sides.batches(read(settings), 1)
        scratch = Path(option(request.config, "--peer-scratch") or tmp_path)
        load = load_of_pair(sides, name, settings.threads, scratch)
        end = sides.target.generation_config.eos_token_id
        with Peers(found, missing, load, temperature, settings.new_tokens, end, tmp_path) as peers:
            named = own(sides) + static(sides, items, peers.skipped) + peers.start(items[0])
            comparison = Comparison({side.name: side.run for side in named}, items)
            benchmark.group = "peers, batch 1: seconds a prompt"
            comparison.measure(benchmark, MAIN, settings.rounds)
        judge = Judge(sides.target) if temperature == 0 else None
        record = settings.info() | {
            "kind": KIND,
            "dtype": name,
            "temperature": temperature,
            "prompts": len(items),
            "sides": figures(comparison, named, peers.loaded, judge),
            "statement": statement(comparison, named),
            "absolute": absolute(comparison, named),
            "skipped": peers.skipped,
        }
    benchmark.extra_info |= record
    for side in named if judge else ():
        if side.engine in (OURS, EAGER):
            fail_if_others(side.name, record["sides"][side.name]["texts"])
