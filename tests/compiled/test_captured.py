"""The compiled column of the exactness matrix: a graph decodes what transformers does, token for token.

Programs are traced and run node by node here (`traced.py`); `test_package.py` runs a compiled one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import families
import pytest
import torch
import traced
from families import ARCHITECTURES, NEW_TOKENS, family, inputs
from torch import Tensor

import specdec
from specdec.compiled import choose

CAPTURED = [
    *("llama", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox", "opt", "falcon"),
    *("mistral", "gemma2", "gemma3_text", "cohere2", "gpt_oss", "qwen2_sliding"),
    *("mixtral", "qwen3_moe", "deepseek_v3"),
]

EACH_CHANGE = ("llama", "gpt_oss")  # a sliding window, sinks and experts; gpt2: test_matrix_compiled.py
COLUMN = [name if name in EACH_CHANGE else pytest.param(name, marks=pytest.mark.long) for name in CAPTURED]
COMPILED_DRAFTS = ("llama", "gpt2", "gemma2", "mixtral")


@pytest.fixture(autouse=True)
def _nothing_is_really_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> Any:
        raise RuntimeError("this test compiles nothing")

    monkeypatch.setattr(choose.building, "build", build)


@cache
def reference(name: str, batch_size: int) -> Tensor:
    return family(name).generate(**inputs(name, batch_size), max_new_tokens=NEW_TOKENS, do_sample=False)


def drafter(kind: str, name: str) -> specdec.Drafter | None:
    if kind == "ngram":
        return specdec.NgramDrafter(min_ngram=1)
    draft = family(name, ARCHITECTURES[name].noise)
    if name in COMPILED_DRAFTS:  # the others draft uncompiled, for time
        assert traced.why_not_captured(draft) is None
    return specdec.ModelDrafter(draft)


def decode(name: str, batch_size: int, draft: specdec.Drafter | None, **kwargs: Any) -> Any:
    assert traced.why_not_captured(family(name)) is None
    arguments = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "num_draft_tokens": 4, **kwargs}
    out = specdec.generate(
        family(name), **inputs(name, batch_size), drafter=draft, compile=True, return_dict_in_generate=True, **arguments
    )
    assert out.speculation.graphs.roles["target"] == "compiled"
    return out


def test_every_family_is_captured_or_refused_by_name() -> None:
    """The column is whole: what is not in it says why."""
    for name in families.names("attention", "sliding", "moe", "recurrent", "encoder-decoder"):
        if name not in CAPTURED:
            reason = traced.why_not_captured(family(name))
            assert reason is not None and any(w in reason for w in ("level", "recurrent", "encoder-decoder")), name


@pytest.mark.parametrize("kind", ["model", "ngram"])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", COLUMN)
def test_equals_generate(name: str, batch_size: int, kind: str) -> None:
    """48 tokens, past windows of 8; one graph call a round and one a drafted token."""
    out = decode(name, batch_size, drafter(kind, name))
    assert torch.equal(out.sequences, reference(name, batch_size))
    stats = out.speculation
    assert stats.host_syncs == stats.rounds + 1
    draft_calls = stats.draft_calls if name in COMPILED_DRAFTS else 0
    assert stats.graphs.calls == stats.rounds + 1 + draft_calls
    if kind == "model":
        assert (stats.graphs.roles["draft"] == "compiled") is (name in COMPILED_DRAFTS)
        assert 0.05 < stats.acceptance_rate < 0.95
