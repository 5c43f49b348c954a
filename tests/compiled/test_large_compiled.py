"""A compiled target with a large vocabulary: chance is no graph there, and acceptance is judged in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import traced
from models import prompts, tiny

import specdec
import specdec.loop as loop
import specdec.verify.choice as choice

VOCAB = 66_000  # above what a graph of chance takes


def test_sampled_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny("llama", dtype=torch.float32, vocab_size=VOCAB)
    draft = tiny("llama", noise=0.01, dtype=torch.float32, vocab_size=VOCAB)
    assert traced.why_not_captured(target) is traced.why_not_captured(draft) is None
    forms: list[str] = []

    def judged(form: Any, *args: Any) -> Any:
        forms.append(form)
        return choice.judged(form, *args)

    monkeypatch.setattr(loop, "judged", judged)

    def generate(compile: bool) -> Any:
        return specdec.generate(
            target,
            **prompts(3),
            drafter=draft,
            num_draft_tokens=4,
            max_new_tokens=10,
            do_sample=True,
            temperature=0.8,
            top_k=0,
            compile=compile,
            generator=torch.Generator().manual_seed(4),
            return_dict_in_generate=True,
        )

    compiled = generate(compile=True)
    assert compiled.speculation.graphs.roles["target"] == "compiled"
    assert "large" in compiled.speculation.graphs.roles["sampling"]
    assert set(forms) == {"parts"} and compiled.speculation.accepted > 0
    assert torch.equal(compiled.sequences, generate(compile=False).sequences)
