"""A package that a compiler has really built: equality, one graph for all shapes, another process, changed weights."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import families
import pytest
import torch
import traced
from fresh import own
from models import VOCAB_SIZE, prompts
from test_products import OURS, source
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec.compiled import Store, choose
from specdec.stats import GraphUse
from specdec.target import ModelRunner

SMALL = {"num_hidden_layers": 1, "dtype": torch.float32}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the package of a Llama of one layer; the minute that this takes is the compiler's."""
    folder = tmp_path_factory.mktemp("packages") / "specdec"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECDEC_CACHE", str(folder))
        target, before = own(**SMALL), torch.get_rng_state()
        out = decode(target, prompts(1), 4)
        assert out.speculation.graphs.roles == {"target": "compiled"}
        if torch.backends.cpu.get_cpu_capability() == "AVX2":
            (package,) = folder.glob("*.pt2")
            assert OURS in source(package), "products of few rows"
        assert torch.equal(torch.get_rng_state(), before), "the compiler's trial runs have a generator of their own"
    return folder


@pytest.fixture
def target(built: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """A model that this process has not seen, whose package is on disk."""
    monkeypatch.setenv("SPECDEC_CACHE", str(built))
    model: PreTrainedModel = own(**SMALL)
    return model


def decode(target: PreTrainedModel, inputs: dict[str, Tensor], new_tokens: int, **kwargs: Any) -> Any:
    arguments = {"do_sample": False, "compile": True, **kwargs}
    return specdec.generate(target, **inputs, max_new_tokens=new_tokens, return_dict_in_generate=True, **arguments)


def nothing_is_built(*_: Any) -> Any:
    raise AssertionError("the compiler was asked again")


def test_fifty_prompts_compile_nothing(target: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts, drafts, batches and ragged rows of all lengths: one graph, loaded once, equal to transformers."""
    monkeypatch.setattr(choose.building, "build", nothing_is_built)
    decode(target, prompts(1), 2)
    monkeypatch.setattr(choose.building, "load", nothing_is_built)
    monkeypatch.setattr(torch.export, "export", nothing_is_built)
    compiled_before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    generator = torch.Generator().manual_seed(3)
    for number in range(50):
        length, rows, drafts = 1 + 3 * number, 1 + number % 3, 1 + number % 7
        ids = torch.randint(2, VOCAB_SIZE, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        for row in range(1, rows):
            mask[row, : min(length - 1, 2 * row + number % 5)] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        out = decode(target, inputs, 20, drafter=specdec.NgramDrafter(min_ngram=1), num_draft_tokens=drafts)
        assert torch.equal(out.sequences, target.generate(**inputs, max_new_tokens=20, do_sample=False)), number
        assert out.speculation.graphs.calls == out.speculation.rounds + 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled_before


def test_sampling_with_a_real_package(target: PreTrainedModel) -> None:
    """The graph's logits under the acceptance rules: the same coins give the same text as uncompiled."""
    texts = []
    for compile in (True, False):
        torch.manual_seed(1)
        kwargs = {"do_sample": True, "temperature": 0.9, "drafter": specdec.NgramDrafter(min_ngram=1)}
        texts.append(decode(target, prompts(3), 32, num_draft_tokens=3, compile=compile, **kwargs).sequences)
    assert torch.equal(*texts)


def test_another_process_builds_nothing(built: pathlib.Path) -> None:
    """It finds the package by the content of a model that it has made or loaded itself."""
    script = """
import json, sys
sys.path[:0] = sys.argv[1:3]
import torch
from test_package import SMALL, decode, nothing_is_built
from models import prompts
from fresh import own
from specdec.compiled import choose
torch.set_num_threads(1)
choose.building.build = nothing_is_built
out = decode(own(**SMALL), prompts(3), 12)
print(json.dumps([out.speculation.graphs.roles, out.sequences.tolist()]))
"""
    tests = pathlib.Path(__file__).parent.parent
    command = [sys.executable, "-W", "ignore", "-c", script, str(tests), str(tests / "compiled")]
    environment = {**os.environ, "SPECDEC_CACHE": str(built)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    roles, sequences = json.loads(result.stdout.splitlines()[-1])
    assert roles == {"target": "compiled"}
    assert sequences == own(**SMALL).generate(**prompts(3), max_new_tokens=12, do_sample=False).tolist()


def test_changed_weights_are_noticed(target: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package holds the weights. One of other weights would be wrong in silence."""
    decode(target, prompts(1), 4)
    target.model.layers[0].mlp.down_proj.weight.data.mul_(1.5)  # torch does not count this
    asked: list[object] = []

    def build(*args: Any) -> Any:
        asked.append(args)
        raise RuntimeError("no time")

    monkeypatch.setattr(choose.building, "build", build)
    out = decode(target, prompts(1), 24)
    assert len(asked) == 1
    assert out.speculation.graphs.roles["target"].startswith("it cannot be captured")
    assert torch.equal(out.sequences, target.generate(**prompts(1), max_new_tokens=24, do_sample=False))


def test_a_damaged_package_is_built_again(
    target: PreTrainedModel, built: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir(mode=0o700)
    for path in built.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (file,) = folder.glob("*.pt2")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    monkeypatch.setenv("SPECDEC_CACHE", str(folder))
    monkeypatch.setattr(choose.building, "build", nothing_is_built)
    assert decode(target, prompts(1), 4).speculation.graphs.roles["target"].startswith("it cannot be captured")
    assert not file.exists()


def test_the_model_and_its_config_are_left_alone(target: PreTrainedModel) -> None:
    before = target.config.to_dict(), target.config._attn_implementation, [id(p) for p in target.parameters()]
    decode(target, prompts(1), 4)
    assert before == (target.config.to_dict(), target.config._attn_implementation, [id(p) for p in target.parameters()])
    assert len(Store().packages()) == 1


@pytest.mark.long
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "qwen3", "mistral", "gemma2", "gpt_oss", "mixtral"])
def test_real_packages_of_families(name: str, folder: pathlib.Path) -> None:
    """float32 packages decode what transformers does, over windows, experts and ragged rows."""
    spec = families.ARCHITECTURES[name]
    target = families.family.__wrapped__(name).to(torch.float32)
    runner = ModelRunner(target)
    use = GraphUse()
    choose.compiled(runner, True, 48, use, "target")
    assert use.roles == {"target": "compiled"}
    draft = families.family.__wrapped__(name, spec.noise).to(torch.float32)
    traced.why_not_captured(draft)
    for batch_size in (1, 3):
        inputs = families.inputs(name, batch_size)
        out = decode(target, inputs, 48, drafter=draft, num_draft_tokens=4)
        assert out.speculation.graphs.roles == {"target": "compiled", "draft": "compiled"}
        assert torch.equal(out.sequences, target.generate(**inputs, max_new_tokens=48, do_sample=False))
