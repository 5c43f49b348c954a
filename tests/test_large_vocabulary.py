"""Calls over large vocabularies: the form of acceptance that they get, and that their text is the rule's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import prompts, tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import specdec
import specdec.loop as loop
import specdec.verify.blocks as blocks
import specdec.verify.choice as choice
import specdec.verify.parts as parts
from specdec.drafters import Drafter, DraftSession
from specdec.errors import DrafterError
from specdec.types import Proposal
from specdec.verify.choice import form_of

VOCAB = 66_000
SAMPLED = {"do_sample": True, "temperature": 0.8, "top_k": 0}
CPU = torch.device("cpu")


def model(noise: float = 0.0, dtype: torch.dtype = torch.float32) -> Any:
    return tiny("llama", noise=noise, dtype=dtype, vocab_size=VOCAB)


class Watched:
    """Counts the rounds that a form judged."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.forms: list[str] = []
        patch.setattr(loop, "judged", self._judged)

    def _judged(self, form: Any, *args: Any) -> Any:
        self.forms.append(form)
        return choice.judged(form, *args)


def generated(drafter: Any, batch_size: int, **kwargs: Any) -> Any:
    arguments: dict[str, Any] = {"num_draft_tokens": 4, "max_new_tokens": 12, "return_dict_in_generate": True, **kwargs}
    generator = torch.Generator().manual_seed(3)
    return specdec.generate(model(), **prompts(batch_size), drafter=drafter, generator=generator, **arguments)


@pytest.mark.parametrize("warpers", [{}, {"top_k": 50, "top_p": 0.9}])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("drafts", ["model", "n-gram"])
def test_the_same_text(drafts: str, batch_size: int, warpers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_LEAST_NUMBERS", 1)
    watched = Watched(monkeypatch)
    drafter = model(noise=0.01) if drafts == "model" else specdec.NgramDrafter(min_ngram=1)
    ours = generated(drafter, batch_size, **{**SAMPLED, **warpers})
    assert set(watched.forms) == {"parts"} or (drafts == "n-gram" and not watched.forms)
    count = len(watched.forms)
    monkeypatch.setattr(choice, "_LEAST_VOCAB", 1 << 30)
    monkeypatch.setattr(choice, "_SMALL_VOCAB", 1 << 30)
    rule = generated(drafter, batch_size, **{**SAMPLED, **warpers})
    assert len(watched.forms) == count
    assert torch.equal(ours.sequences, rule.sequences)
    assert ours.speculation.accepted == rule.speculation.accepted
    assert drafts == "n-gram" or 0 < ours.speculation.accepted < ours.speculation.drafted
    assert ours.speculation.host_syncs == rule.speculation.host_syncs


@pytest.mark.parametrize("asked", [{"output_scores": True}, {"repetition_penalty": 1.2}, {"do_sample": False}, {}])
def test_what_the_rule_itself_decides(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_LEAST_NUMBERS", 1)
    watched = Watched(monkeypatch)
    generated(model(noise=0.01) if asked else None, 1, **{**SAMPLED, **asked, "max_new_tokens": 4})
    assert not watched.forms


def test_block_verification_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_LEAST_NUMBERS", 1)
    watched = Watched(monkeypatch)
    decoder = specdec.SpeculativeDecoder(model(noise=0.01), 3, rule="block")
    decoder.generate(model(), **prompts(1), max_new_tokens=5, **SAMPLED)
    assert not watched.forms


def test_which_form_pays() -> None:
    assert form_of(CPU, (32, 9, 131_072), 1.0) == "parts"
    assert form_of(CPU, (1, 5, 131_072), None) == "parts"
    assert form_of(CPU, (32, 9, 32_768), 1.0) == "parts"
    for shape in ((32, 1, 131_072), (1, 5, 32_768), (32, 9, 4096)):
        assert form_of(CPU, shape, 1.0) is None
    for shape in ((32, 9, 131_072), (32, 9, 4096), (1, 5, 131_072)):
        assert form_of(torch.device("cuda"), shape, 1.0) is None, "launches are what they cost"


@pytest.mark.parametrize("has_triton", [True, False])
def test_a_gpu_gets_kernels_where_triton_is(has_triton: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_has_triton", lambda: has_triton)
    expected = "kernels" if has_triton else None
    assert form_of(torch.device("cuda"), (128, 9, 131_072), 0.8) == expected
    assert form_of(torch.device("cuda"), (128, 9, 131_072), None) is None


class Chain(Drafter, DraftSession):
    """The same chain in every round."""

    def __init__(self, tokens: list[int], batch_size: int, q: Tensor | None = None) -> None:
        self.proposal = Proposal.chain(torch.tensor([tokens]).expand(batch_size, -1).contiguous(), q=q)

    def start(self, state: Any) -> DraftSession:
        return self

    def propose(self, state: Any, limit: Any) -> Proposal:
        if state.batch_size == len(self.proposal.tokens) and min(limit) >= self.proposal.num_nodes:
            return self.proposal
        return Proposal.empty(state.batch_size, state.device)


@pytest.mark.parametrize("fault", ["sum", "NaN", "id"])
def test_a_broken_drafter_gets_a_typed_error(fault: str) -> None:
    q = torch.full((3, 2, VOCAB), 1 / VOCAB)
    tokens = [5, VOCAB if fault == "id" else 6]
    if fault != "id":
        q[1, 0] *= 2 if fault == "sum" else torch.nan
    with pytest.raises(DrafterError):
        generated(Chain(tokens, 3, q), 3, **SAMPLED)
    assert generated(None, 3, **SAMPLED).sequences.shape[1] > 11  # the next call is as good as any


class Largest(TorchDispatchMode):
    """The most numbers of float32 in one operation's result over several positions of the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.dtype in (torch.float32, torch.float64):
                self.numbers = max(self.numbers, leaf.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize("asked", [SAMPLED, {"do_sample": False}], ids=["sampled", "greedy"])
def test_no_float_copy_of_all_logits(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole call of a model in bfloat16; only what was drafted is verified here, so that no q is made either."""
    monkeypatch.setattr(parts, "_PART", 2 * VOCAB)
    monkeypatch.setattr(blocks, "_PART", VOCAB)
    target = model(dtype=torch.bfloat16)
    common: dict[str, Any] = {
        **prompts(3),
        "drafter": Chain([5, 6, 7, 8], 3),
        "num_draft_tokens": 4,
        "max_new_tokens": 8,
    }

    def largest() -> int:
        with Largest() as seen:
            specdec.generate(target, **common, **asked)
        return seen.numbers

    largest()  # the first call tries the model's layouts
    assert largest() <= 3 * VOCAB  # one position of each row: the prompt's end, and what comes without a proposal
    monkeypatch.setattr(loop, "form_of", lambda *_: None)
    if asked["do_sample"]:
        assert largest() >= 3 * 5 * VOCAB  # the frame sees it
