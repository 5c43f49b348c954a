"""What becomes of a call whose package cannot be built, or cannot be trusted."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from fresh import own
from models import prompts
from stand_in import NEW, Outputs, StandIn, decode, reason
from torch import Tensor

import specdec
from specdec.compiled import Store, choose
from specdec.compiled import build as building
from specdec.compiled.graph import StepGraph

OTHER_LOGITS = "its graph gave other logits"
pytestmark = pytest.mark.usefixtures("compiler_is_there")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("first line\nsecond line"), "it cannot be captured (RuntimeError: first line)"),
        (NotImplementedError(), "it cannot be captured (NotImplementedError)"),
        (ValueError("x" * 300), f"it cannot be captured (ValueError: {'x' * 160})"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_build_that_raises(error: Exception, words: str, stand_in: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    """The call is decoded all the same, and it is not tried again."""
    model, stand_in.fails = own(), error
    for batch_size in (1, 3):
        out = decode(model, batch_size=batch_size, drafter=specdec.NgramDrafter())
        assert out.speculation.graphs.roles == {"target": words}
        assert out.speculation.graphs.calls == 0
    assert stand_in.builds == 1
    assert [record.getMessage() for record in caplog.records] == [f"LlamaForCausalLM is decoded uncompiled: {words}."]
    assert Store().packages() == []


def test_a_full_disk_may_pass(stand_in: StandIn) -> None:
    """The call is decoded, and the next one tries again."""
    model, stand_in.fails = own(), OSError(28, "No space left on device")
    assert reason(model) == "it cannot be captured (OSError: [Errno 28] No space left on device)"
    stand_in.fails = None
    assert reason(model) == "compiled"
    assert stand_in.builds == 2


def test_a_build_that_is_interrupted(stand_in: StandIn) -> None:
    """Ctrl-C ends the call; the next one tries again."""
    model = own()
    stand_in.fails = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        specdec.generate(model, **prompts(1), max_new_tokens=4, compile=True)
    stand_in.fails = None
    assert reason(model) == "compiled"
    assert stand_in.builds == 2


def test_a_draft_that_cannot_be_built(stand_in: StandIn) -> None:
    """Each has its own graph, or not."""
    target, draft = own(), own("gpt2")
    build = stand_in.build

    def only_llama(runner: Any, *rest: Any) -> Any:
        if runner.model is draft:
            raise RuntimeError("no")
        return build(runner, *rest)

    building.build = only_llama  # put back by the fixture
    out = decode(target, batch_size=3, drafter=draft, num_draft_tokens=3)
    assert out.speculation.graphs.roles == {"target": "compiled", "draft": "it cannot be captured (RuntimeError: no)"}


def snapshot(model: Any) -> str:
    modules = [(name, type(m).__name__, sorted(vars(m))) for name, m in model.named_modules()]
    return json.dumps([model.config.to_dict(), model.config._attn_implementation, modules], default=str)


@dataclass
class Compiler:
    """In place of inductor, behind a build that is otherwise the real one: it draws, writes half a file and raises."""

    failures: int
    options: list[Any] = field(default_factory=list)

    def __call__(self, program: Any, file: pathlib.Path, *attempt: Any) -> None:
        self.options.append(attempt)
        torch.rand(3)
        torch.manual_seed(99)
        file.write_text("half")
        if len(self.options) <= self.failures:
            raise RuntimeError("no kernel")


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_nothing_of_the_user_s_is_disturbed(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a build that fails at last, nor by one that succeeds at the second or third attempt."""
    model, compiler = own(), Compiler(failures)
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: torch.rand(5))
    monkeypatch.setattr(building, "_compile", compiler)
    step = StepGraph(specdec.target.ModelRunner(model))
    monkeypatch.setattr(building, "load", lambda _: lambda inputs: step(*inputs[:6], inputs[6:]))
    before, state = snapshot(model), torch.get_rng_state()
    versions = [p._version for p in model.parameters()]
    out = specdec.generate(model, **prompts(1), max_new_tokens=NEW, compile=True, return_dict_in_generate=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert snapshot(model) == before
    assert [p._version for p in model.parameters()] == versions
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    assert torch.equal(out.sequences, model.generate(**prompts(1), max_new_tokens=NEW))
    assert len(compiler.options) == min(failures + 1, 3)
    assert len({str(attempt) for attempt in compiler.options}) == len(compiler.options)
    roles = out.speculation.graphs.roles
    files = {path.suffix for path in Store().folder.iterdir()} - {".lock"}
    if failures < 3:
        assert roles == {"target": "compiled"}
        assert files == {".json", ".pt2"}
    else:
        assert roles == {"target": "it cannot be captured (RuntimeError: no kernel)"}
        assert files == set(), "nothing is left of it"


def noisy(outcome: Tensor, ends: Tensor, logits: Tensor) -> Outputs:
    generator = torch.Generator().manual_seed(1)
    return outcome, ends, logits + 0.01 * torch.randn(logits.shape, generator=generator, dtype=logits.dtype)


def nothing(outcome: Tensor, ends: Tensor, logits: Tensor) -> Outputs:
    return outcome, ends, torch.zeros_like(logits)


def not_a_number(outcome: Tensor, ends: Tensor, logits: Tensor) -> Outputs:
    return outcome, ends, logits * float("nan")


def one_row(outcome: Tensor, ends: Tensor, logits: Tensor) -> Outputs:
    """Only a padded row is wrong."""
    return outcome, ends, torch.cat([logits[:-1], logits[-1:].roll(1, -1)])


def shifted(outcome: Tensor, ends: Tensor, logits: Tensor) -> Outputs:
    return outcome, ends, logits.roll(1, 1) if logits.shape[1] > 1 else logits


@pytest.mark.parametrize("spoil", [noisy, nothing, not_a_number, one_row, shifted], ids=lambda spoil: spoil.__name__)
def test_a_graph_with_other_logits_is_refused(
    spoil: Callable[..., Outputs], stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """Before it writes a token; its package goes."""
    model, stand_in.spoil = own(), spoil
    for _ in range(2):
        out = decode(model, batch_size=3, drafter=specdec.NgramDrafter())
        assert out.speculation.graphs.roles["target"].startswith(OTHER_LOGITS)
        assert out.speculation.graphs.calls == 0
    assert stand_in.builds == 1
    assert len(caplog.records) == 1
    assert Store().packages() == []
    assert not list(Store().folder.glob("*.pt2"))


def test_rounding_is_no_reason(stand_in: StandIn) -> None:
    """What a compiler does in another order differs by a few units of the dtype."""
    stand_in.spoil = lambda outcome, ends, logits: (outcome, ends, logits * (1 + 1e-7))
    assert reason(own()) == "compiled"


def test_a_package_that_went_bad_is_found_out(stand_in: StandIn) -> None:
    """One on disk is checked like a new one, each time that it is loaded."""
    decode(own())
    choose._known.clear()
    stand_in.spoil = noisy
    model = own()
    assert reason(model).startswith(OTHER_LOGITS)
    assert Store().packages() == []
    assert stand_in.builds == 1


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_a_package_that_cannot_be_loaded(is_on_disk: bool, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a library that is not there any more, say: the call is decoded uncompiled."""
    if is_on_disk:
        decode(own())
        choose._known.clear()

    def load(_: pathlib.Path) -> Any:
        raise RuntimeError("undefined symbol: x")

    monkeypatch.setattr(building, "load", load)
    assert "undefined symbol: x" in reason(own())


def test_a_package_that_cannot_be_run(stand_in: StandIn) -> None:
    """As one that was compiled for other inputs."""
    decode(own())
    choose._known.clear()

    def fails(*_: Any) -> Any:
        raise RuntimeError("expected 5 inputs")

    stand_in.spoil = fails
    assert reason(own()) != "compiled"
