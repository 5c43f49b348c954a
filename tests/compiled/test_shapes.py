"""Graphs by shape, as a GPU has them; on this CPU with a backend that passes everything on.

What is tested is all but the GPU: each shape is captured whole, once, and gives what the model gives.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fresh import own, own_family
from models import prompts
from torch._dynamo.testing import CompileCounterWithBackend

import specdec
from specdec.compiled import choose
from specdec.compiled.fingerprint import environment, survey
from specdec.compiled.runner import Graph
from specdec.probe import probe
from specdec.target import ModelRunner


def captured(model: Any) -> CompileCounterWithBackend:
    """The model decodes by shapes from now on; counts the graphs that Dynamo captures."""
    counter = CompileCounterWithBackend("eager")
    runner = ModelRunner(model)
    probe(runner)
    graph = choose.by_shapes(runner, lambda m: torch.compile(m, backend=counter, fullgraph=True, dynamic=False))
    assert isinstance(graph, Graph), graph
    known = choose._known.setdefault(model, choose._Known())
    known.graphs[environment()] = (survey(model).stamp(), graph)
    return counter


@pytest.mark.parametrize(
    ("batch_size", "name"),
    [(3, "mistral")]
    + [pytest.param(*others, marks=pytest.mark.long) for others in [(1, "llama"), (1, "mistral"), (3, "llama")]],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_equals_generate_with_few_shapes(name: str, batch_size: int) -> None:
    model = own_family(name)
    counter = captured(model)
    reference = model.generate(**prompts(batch_size), max_new_tokens=40, do_sample=False)
    arguments = {"drafter": specdec.NgramDrafter(min_ngram=1), "num_draft_tokens": 3, "do_sample": False}
    counts = []
    for _ in range(3):
        out = specdec.generate(
            model, **prompts(batch_size), **arguments, max_new_tokens=40, compile=True, return_dict_in_generate=True
        )
        assert torch.equal(out.sequences, reference)
        assert out.speculation.graphs.roles == {"target": "compiled"}
        assert out.speculation.graphs.calls >= out.speculation.rounds
        counts.append(counter.frame_count)
    run: Any = choose._known[model].graphs[environment()][1].run
    assert 0 < len(run.graphs) <= 8, "widths 1 to 4, at one capacity"
    assert counts[2] == counts[1], "nothing is captured again"


def test_a_shape_that_cannot_be_compiled_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_: Any) -> Any:
        raise RuntimeError("no such kernel")

    model = own()
    runner = ModelRunner(model)
    probe(runner)
    graph = choose.by_shapes(runner, refuse)
    assert isinstance(graph, Graph)
    choose._known.setdefault(model, choose._Known()).graphs[environment()] = (survey(model).stamp(), graph)
    out = specdec.generate(model, **prompts(3), max_new_tokens=12, do_sample=False, compile=True)
    assert torch.equal(out, model.generate(**prompts(3), max_new_tokens=12, do_sample=False))
    assert any("no such kernel" in record.getMessage() for record in caplog.records)
