"""What only a GPU shows: recorded steps, kernels made for them, and randomness that is the host's.

Skipped where there is none. With one, `SPECDEC_TEST_DEVICE=cuda:0 python -m pytest tests/lossless tests/wrapped` runs
most other tests there as well (docs/exactness.md says which).
"""

from __future__ import annotations

import copy
import logging
import threading
from typing import Any

import families
import models
import pytest
import torch
from lossless.registry import LEVEL
from torch import Tensor, nn

import specdec
from specdec.compiled import choose

if not torch.cuda.is_available():
    pytest.skip("no GPU here", allow_module_level=True)
NEW = 40
DEVICE = torch.device("cuda", 0)
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler warns of much


def on_gpu(model: Any) -> Any:
    return copy.deepcopy(model).to(DEVICE)


def inputs(batch_size: int) -> dict[str, Tensor]:
    return {name: tensor.to(DEVICE) for name, tensor in models.prompts(batch_size).items()}


@pytest.fixture(scope="module")
def target() -> Any:
    return on_gpu(models.tiny("llama", dtype=torch.float32))


@pytest.fixture(scope="module")
def draft() -> Any:
    return on_gpu(models.tiny("llama", dtype=torch.float32, noise=0.02))


def drafters(draft: Any) -> dict[str, specdec.Drafter | None]:
    return {
        "none": None,
        "n-gram": specdec.NgramDrafter(min_ngram=1),
        "model": specdec.ModelDrafter(draft),
        "tree": specdec.TreeDrafter(draft, widths=[2, 2, 1]),
    }


def recordings(model: Any) -> int:
    """Of a model's step, in this process."""
    graphs = [graph for _, graph in choose._known[model].graphs.values()]
    return sum(len(graph.run.recordings.recorded) for graph in graphs)  # type: ignore[attr-defined]


def complaints(caplog: Any) -> list[str]:
    """What is said of steps that are not recorded, or keep their kernels."""
    said = [r.getMessage() for r in caplog.records if r.name == "specdec" and r.levelno >= logging.WARNING]
    return [text for text in said if not text.startswith(("compiling kernels", "target and draft have"))]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("compile", ["auto", True])
def test_compiled_greedy(target: Any, draft: Any, compile: Any, batch_size: int, caplog: Any) -> None:
    expected = target.generate(**inputs(batch_size), max_new_tokens=NEW, do_sample=False)
    choose.note_uncompiled(target, 60.0, 1)  # "auto" has waited long enough
    choose.note_uncompiled(draft, 60.0, 1)
    states = torch.cuda.get_rng_state(DEVICE), torch.get_rng_state()
    for name, drafter in drafters(draft).items():
        for _ in range(2):
            out = specdec.generate(
                target,
                **inputs(batch_size),
                drafter=drafter,
                num_draft_tokens=4,
                max_new_tokens=NEW,
                do_sample=False,
                compile=compile,
                return_dict_in_generate=True,
            )
            assert torch.equal(out.sequences, expected), name
            assert out.speculation.graphs.roles["target"] == "compiled", out.speculation.graphs.roles
    assert recordings(target)
    assert not complaints(caplog)
    assert torch.equal(states[0], torch.cuda.get_rng_state(DEVICE)) and torch.equal(states[1], torch.get_rng_state())


def sampled(target: Any, batch_size: int, drafter: Any, **how: Any) -> Any:
    return specdec.generate(
        target,
        **{name: tensor.to(target.device) for name, tensor in models.prompts(batch_size).items()},
        drafter=drafter,
        num_draft_tokens=4,
        max_new_tokens=NEW,
        do_sample=True,
        temperature=1.5,
        top_k=40,
        top_p=0.95,
        generator=torch.Generator().manual_seed(5),
        return_dict_in_generate=True,
        **how,
    )


@pytest.mark.parametrize("name", ["none", "n-gram", "model"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_compiled_sampling_draws_the_same(target: Any, draft: Any, batch_size: int, name: str, caplog: Any) -> None:
    """The same coins, so the same text, unless one lies within rounding of an edge."""
    plain = sampled(target, batch_size, drafters(draft)[name])
    for _ in range(3):
        ours = sampled(target, batch_size, drafters(draft)[name], compile=True)
        assert torch.equal(ours.sequences, plain.sequences)
        assert ours.speculation.graphs.roles["sampling"] == "compiled", ours.speculation.graphs.roles
    assert not complaints(caplog)


@pytest.mark.parametrize("name", ["none", "n-gram", "model", "tree"])
def test_sampling_draws_what_a_cpu_draws(name: str) -> None:
    pair = models.tiny("llama"), models.tiny("llama", noise=0.02)
    here, there = ([copy.deepcopy(model).to(device) for model in pair] for device in ("cpu", DEVICE))
    ours = sampled(there[0], 3, drafters(there[1])[name])
    theirs = sampled(here[0], 3, drafters(here[1])[name])
    assert torch.equal(ours.sequences.cpu(), theirs.sequences)
    assert ours.speculation.accepted == theirs.speculation.accepted


@pytest.mark.parametrize("name", families.names("attention", "sliding", "moe"))
def test_families_recorded(name: str) -> None:
    """Those that can be captured; the others say why not, and write the same text."""
    model = on_gpu(families.family(name)).float()
    draft = on_gpu(families.family(name, families.ARCHITECTURES[name].noise)).float()
    choose.note_uncompiled(model, 60.0, 1)
    choose.note_uncompiled(draft, 60.0, 1)
    batch = {key: value.to(DEVICE) for key, value in families.inputs(name, 2).items()}
    expected = model.generate(**batch, max_new_tokens=NEW, do_sample=False)
    out = specdec.generate(
        model,
        **batch,
        drafter=draft,
        num_draft_tokens=3,
        max_new_tokens=NEW,
        do_sample=False,
        compile="auto",
        return_dict_in_generate=True,
    )
    assert torch.equal(out.sequences, expected)
    role = out.speculation.graphs.roles["target"]
    assert ("rows must be level" in role) if name in LEVEL else (role == "compiled" and recordings(model)), role


def test_two_threads_and_another_stream(target: Any) -> None:
    choose.note_uncompiled(target, 60.0, 1)
    batches = [{"input_ids": models.prompts(1, seed)["input_ids"].to(DEVICE)} for seed in range(3)]
    expected = [target.generate(**batch, max_new_tokens=NEW, do_sample=False) for batch in batches]
    found: list[Any] = [None] * 3

    def decode(i: int, stream: Any) -> None:
        with torch.cuda.stream(stream):
            for _ in range(3):
                found[i] = specdec.generate(target, **batches[i], max_new_tokens=NEW, do_sample=False, compile="auto")
            torch.cuda.current_stream().synchronize()

    torch.cuda.synchronize()
    streams = [None, None, torch.cuda.Stream(DEVICE)]
    threads = [threading.Thread(target=decode, args=(i, streams[i])) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, text in zip(found, expected, strict=True):
        assert torch.equal(ours, text)


def test_a_step_that_waits_for_the_gpu_is_not_recorded(target: Any, caplog: Any) -> None:
    model = on_gpu(models.tiny("llama", dtype=torch.float32, seed=3))
    inner = model.model.layers[0].mlp

    class Waits(nn.Module):
        def __init__(self, whole: nn.Module) -> None:
            super().__init__()
            self.whole = whole

        def forward(self, x: Tensor) -> Tensor:
            return self.whole(x) if float(x.abs().sum()) >= 0 else x

    model.model.layers[0].mlp = Waits(inner)
    choose.note_uncompiled(model, 60.0, 1)
    expected = model.generate(**inputs(2), max_new_tokens=NEW, do_sample=False)
    for _ in range(2):
        out = specdec.generate(model, **inputs(2), max_new_tokens=NEW, do_sample=False, compile="auto")
        assert torch.equal(out, expected)
    assert not recordings(model)
    assert any("kernel by kernel" in r.getMessage() for r in caplog.records)
    # And everything goes on as before, also where something is recorded anew.
    other = on_gpu(models.tiny("llama", dtype=torch.float32, seed=4))
    choose.note_uncompiled(other, 60.0, 1)
    for _ in range(2):
        ours = specdec.generate(other, **inputs(2), max_new_tokens=NEW, do_sample=False, compile="auto")
    assert torch.equal(ours, other.generate(**inputs(2), max_new_tokens=NEW, do_sample=False)) and recordings(other)
    assert torch.equal(
        specdec.generate(target, **inputs(2), max_new_tokens=NEW, do_sample=False, compile="auto"),
        target.generate(**inputs(2), max_new_tokens=NEW, do_sample=False),
    )


@pytest.mark.parametrize("compile", ["auto", True])
def test_beside_the_cuda_graphs_of_transformers(target: Any, compile: Any) -> None:
    """They free cuBLAS' workspaces whenever they record, and a call with a static cache records."""
    choose.note_uncompiled(target, 60.0, 1)
    theirs = copy.deepcopy(target)
    expected = target.generate(**inputs(2), max_new_tokens=NEW, do_sample=False)
    for _ in range(3):
        theirs.generate(**inputs(2), max_new_tokens=NEW, do_sample=False, cache_implementation="static")
        out = specdec.generate(target, **inputs(2), max_new_tokens=NEW, do_sample=False, compile=compile)
        assert torch.equal(out, expected)


def test_calls_of_one_shape_are_recorded_once() -> None:
    target = on_gpu(models.tiny("llama", dtype=torch.float32, seed=5))
    choose.note_uncompiled(target, 60.0, 1)
    counts = []
    for _ in range(4):
        specdec.generate(target, **inputs(2), max_new_tokens=NEW, do_sample=False, compile="auto")
        counts.append(recordings(target))
    assert 0 < counts[1] == counts[3] < 64, "a call's memory lies where the last one's lay"


def test_a_cache_that_goes_on(target: Any) -> None:
    choose.note_uncompiled(target, 60.0, 1)
    whole = target.generate(**inputs(2), max_new_tokens=NEW, do_sample=False)
    arguments: dict[str, Any] = {"do_sample": False, "compile": "auto", "return_dict_in_generate": True}
    first = specdec.generate(target, **inputs(2), max_new_tokens=NEW // 2, **arguments)
    mask = torch.cat([inputs(2)["attention_mask"], torch.ones(2, NEW // 2, dtype=torch.int64, device=DEVICE)], 1)
    second = specdec.generate(
        target,
        first.sequences,
        attention_mask=mask,
        past_key_values=first.past_key_values,
        max_new_tokens=NEW // 2,
        **arguments,
    )
    assert torch.equal(second.sequences, whole)
