"""A compiled target whose vocabulary is too large for a graph of chance: acceptance is judged in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import traced
from models import prompts, tiny

import specdec
import specdec.loop as loop
import specdec.verify.choice as choice
from specdec.compiled import sampled


def test_sampled_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds are moved, so that a tiny vocabulary is a large one."""
    for name in ("_LEAST_VOCAB", "_LEAST_NUMBERS"):
        monkeypatch.setattr(choice, name, 1)
    monkeypatch.setattr(sampled, "_MOST_VOCAB", 1)
    target, draft = tiny("llama"), tiny("llama", noise=0.02)
    assert traced.why_not_captured(target) is traced.why_not_captured(draft) is None
    forms: list[str] = []

    def judged(form: Any, *args: Any) -> Any:
        forms.append(form)
        return choice.judged(form, *args)

    monkeypatch.setattr(loop, "judged", judged)

    def generate(compile: bool) -> Any:
        arguments: dict[str, Any] = {"do_sample": True, "temperature": 0.9, "top_k": 0, "max_new_tokens": 24}
        return specdec.generate(
            target,
            **prompts(3),
            drafter=draft,
            num_draft_tokens=4,
            compile=compile,
            generator=torch.Generator().manual_seed(4),
            return_dict_in_generate=True,
            **arguments,
        )

    compiled = generate(compile=True)
    assert compiled.speculation.graphs.roles["target"] == "compiled"
    assert "large" in compiled.speculation.graphs.roles["sampling"]
    assert set(forms) == {"parts"}
    assert 0 < compiled.speculation.accepted < compiled.speculation.drafted
    assert torch.equal(compiled.sequences, generate(compile=False).sequences)
