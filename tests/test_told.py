"""What drafters and readers of the trace are told is what became of the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import families
import pytest
import torch
from equality.own import EndsWith
from models import prompts, tiny
from transformers import StoppingCriteriaList

import specdec


class TellsPaths(specdec.Drafter, specdec.DraftSession):
    """Proposes the right token as the eldest child and as a child of that; keeps the paths that it is told."""

    def __init__(self, answer: list[int]) -> None:
        self.answer = answer
        self.paths: list[list[int]] = []
        self.tokens: list[list[int]] = []

    def start(self, state: Any) -> specdec.DraftSession:
        return self

    def propose(self, state: specdec.DecodeState, limit: Sequence[int]) -> specdec.Proposal:
        at = len(state.host_tokens[0])
        if limit[0] < 2 or at + 2 > len(self.answer):
            return specdec.Proposal.empty(1, state.device)
        one, two = self.answer[at : at + 2]
        tokens = torch.tensor([[one, (one + 1) % 96, (two + 1) % 96, two]])
        parents = torch.tensor([[-1, -1, 1, 0]])  # the right path is nodes 0 and 3
        return specdec.Proposal(tokens, parents, torch.ones_like(tokens).bool(), depth=2, width=2)

    def observe(self, proposal: specdec.Proposal, acceptance: specdec.Acceptance, num_accepted: Sequence[int]) -> None:
        self.paths.append(acceptance.path[0].tolist())
        self.tokens.append(proposal.tokens[0].tolist())


@pytest.mark.parametrize("name", ["llama", "bloom", "mamba2"])
def test_paths_are_those_of_the_drafters_own_tree(name: str) -> None:
    """Also where a model verifies no trees, and of each only the first branch."""
    model, inputs = families.family(name), families.inputs(name, 1)
    arguments: dict[str, Any] = {**inputs, "max_new_tokens": 16, "do_sample": False}
    expected = model.generate(**arguments)
    drafter = TellsPaths(expected[0].tolist())
    out = specdec.generate(model, **arguments, drafter=drafter, num_draft_tokens=2)
    assert torch.equal(out, expected)
    assert len(drafter.paths) > 3
    assert all(path == [0, 3] for path in drafter.paths)


def test_the_trace_ends_where_the_text_does() -> None:
    """A criterion of the user's own is asked column by column, behind a block that went on."""
    target, inputs = tiny("llama"), prompts(2)
    free = target.generate(**inputs, max_new_tokens=40, do_sample=False)
    ends = EndsWith(free[:, -22])
    arguments: dict[str, Any] = {**inputs, "max_new_tokens": 40, "do_sample": False, "eos_token_id": 95}
    out = specdec.generate(
        target,
        **arguments,
        stopping_criteria=StoppingCriteriaList([ends]),
        drafter=target,
        num_draft_tokens=6,
        return_dict_in_generate=True,
    )
    lengths = [int((row != 0).sum()) for row in out.sequences[:, inputs["input_ids"].shape[1] :]]
    assert max(lengths) < 40
    assert [len(sources) for sources in out.speculation.trace.sources] == lengths
