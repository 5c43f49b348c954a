"""Which package belongs to a model, when one is built, and what becomes of a call that cannot have one.

Nothing is compiled here: the uncompiled step stands in for its package.
"""

from __future__ import annotations

import json
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from fresh import own, own_family
from models import prompts
from torch import Tensor

import specdec
from specdec.compiled import Store, choose, note_uncompiled, support
from specdec.compiled import build as building
from specdec.compiled.fingerprint import key_of
from specdec.compiled.graph import StepGraph
from specdec.compiled.store import describe
from specdec.errors import OptionError

Outputs = tuple[Tensor, Tensor, Tensor]
TOO_SHORT = "the call is too short for it to pay"
NOT_YET = "no package is on disk, and building one would not pay yet"
OTHER_LOGITS = "its graph gave other logits"
NEW = 8


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing depends on what is installed."""
    monkeypatch.setattr(support, "get_cpp_compiler", lambda: "g++")


@dataclass
class StandIn:
    """In place of the compiler: a package is a file with a number, and runs the uncompiled step."""

    builds: int = 0
    loads: int = 0
    runs: int = 0
    fails: Exception | None = None  # what building raises
    spoil: Callable[..., Any] = lambda *outputs: outputs  # what the graph gives instead
    steps: dict[str, StepGraph] = field(default_factory=dict)

    def build(self, runner: Any, shapes: Any, store: Store, key: str) -> tuple[Any, pathlib.Path]:
        self.builds += 1
        if self.fails is not None:
            raise self.fails
        file = store.temporary(key)
        file.write_text(str(self.builds))
        self.steps[file.read_text()] = StepGraph(runner)
        return describe(key, type(runner.model).__name__, file, 1.0, list(shapes)), file

    def load(self, file: pathlib.Path) -> Any:
        self.loads += 1
        step = self.steps[file.read_text()]

        def run(inputs: list[Tensor]) -> Outputs:
            self.runs += 1
            with torch.no_grad():
                return self.spoil(*step(*inputs[:6], inputs[6:]))

        return run


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    compiler = StandIn()
    monkeypatch.setattr(building, "build", compiler.build)
    monkeypatch.setattr(building, "load", compiler.load)
    return compiler


def decode(model: Any, compile: Any = True, batch_size: int = 1, num_new: int = NEW, **arguments: Any) -> Any:
    """A greedy call whose output is the model's own."""
    inputs = {**prompts(batch_size), "max_new_tokens": num_new}
    out = specdec.generate(model, **inputs, **arguments, compile=compile, return_dict_in_generate=True)
    assert torch.equal(out.sequences, model.generate(**inputs, do_sample=False))
    return out


def reason(model: Any, compile: Any = True, **arguments: Any) -> str:
    """How the call ran its target: "compiled", or why not."""
    words: str = decode(model, compile, **arguments).speculation.graphs.roles["target"]
    return words


# The package's name


def test_two_loads_of_one_model_have_one_key(tmp_path: pathlib.Path) -> None:
    model = own()
    model.save_pretrained(tmp_path)
    loaded = [type(model).from_pretrained(tmp_path, dtype=torch.float32) for _ in range(2)]
    assert len({key_of(m) for m in (model, *loaded)}) == 1
    assert key_of(model) == key_of(model)
    decode(model, compile=False)
    model.to(torch.float32).requires_grad_(False)
    assert key_of(model) == key_of(loaded[0]), "using it changes nothing"


def in_place(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)


def one_value(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight[17, 5] += 1


def through_data(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.weight.data.mul_(1.5)


def loaded(model: Any) -> None:
    state = own(seed=1).state_dict()
    model.load_state_dict(state)


def replaced(model: Any) -> None:
    model.lm_head.weight = torch.nn.Parameter(-model.lm_head.weight)


def in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        model.model.norm.weight[::2].mul_(3)


def a_buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(0.5)


def swapped(model: Any) -> None:
    """The same values under other names."""
    model.model.layers = torch.nn.ModuleList(reversed(model.model.layers))


WRITES = [in_place, one_value, through_data, loaded, replaced, in_inference_mode, a_buffer, swapped]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_the_key_changes_with_the_weights(write: Callable[[Any], None]) -> None:
    """Also where the model's key is known already, and back again."""
    model, other = own(), own()
    before = key_of(model)
    write(model)
    after = key_of(model)
    assert after != before
    assert key_of(other) == before
    write(other)
    assert key_of(other) == after


def test_a_write_that_is_undone_brings_the_key_back() -> None:
    model = own()
    before, weight = key_of(model), model.lm_head.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
        assert key_of(model) != before
        weight.copy_(kept)
    assert key_of(model) == before


def test_the_key_changes_with_the_dtype() -> None:
    keys = {key_of(own().to(dtype)) for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}
    assert len(keys) == 4
    model = own()
    before = key_of(model)
    assert key_of(model.double()) != before


@pytest.mark.parametrize(("name", "value"), [("rms_norm_eps", 1e-3), ("hidden_act", "gelu"), ("anything_else", 1)])
def test_the_key_changes_with_the_config(name: str, value: Any) -> None:
    """What is read from it in a forward is a part of the graph."""
    model = own()
    before = key_of(model)
    setattr(model.config, name, value)
    assert key_of(model) != before


def test_the_key_changes_with_the_class() -> None:
    model = own()
    before = key_of(model)

    class Other(type(model)):  # type: ignore[misc]
        pass

    model.__class__ = Other
    assert key_of(model) != before


def test_the_key_does_not_change_with_what_a_graph_does_not_read() -> None:
    """Where a model was loaded from, and how it was to attend: a graph has an attention of its own."""
    model = own()
    before = key_of(model)
    model.config._name_or_path = "somewhere/else"
    model.generation_config.max_new_tokens = 7
    assert key_of(model) == before == key_of(own(attention="eager"))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_key_changes_with_the_number_of_threads(threads: Callable[[int], None]) -> None:
    model = own()
    before = key_of(model)
    threads(torch.get_num_threads() + 1)
    assert key_of(model) != before
    threads(torch.get_num_threads() - 1)
    assert key_of(model) == before


# A call with a package


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma3_text"])
def test_a_call_runs_through_the_graph(kind: str, batch_size: int, stand_in: StandIn) -> None:
    target = own(kind) if kind in ("llama", "gpt2") else own_family(kind).float()
    out = decode(target, batch_size=batch_size, drafter=specdec.NgramDrafter(), num_draft_tokens=3, num_new=16)
    assert out.speculation.graphs.roles == {"target": "compiled"}
    assert out.speculation.graphs.calls >= out.speculation.rounds
    assert stand_in.builds == 1


def test_target_and_draft_have_a_graph_each(stand_in: StandIn) -> None:
    target, draft = own(), own(noise=0.02)
    for _ in range(2):
        out = decode(target, batch_size=3, drafter=draft, num_draft_tokens=4, num_new=16)
        assert out.speculation.graphs.roles == {"target": "compiled", "draft": "compiled"}
        assert out.speculation.accepted
    assert stand_in.builds == stand_in.loads // 2 == 2, "loaded once to time it, once to check it, not at every call"


def test_a_package_on_disk_is_not_built_again(stand_in: StandIn) -> None:
    """By another process, or for another object with the same weights."""
    decode(own())
    choose._known.clear()
    assert reason(own()) == "compiled"
    assert reason(own(), "auto", num_new=NEW) == TOO_SHORT
    assert stand_in.builds == 1


def test_another_process_may_have_built_it_meanwhile(stand_in: StandIn) -> None:
    """Who waits for the lock looks again before building."""
    model = own()
    decode(model)
    (manifest,) = pathlib.Path(Store().folder).glob("*.json")
    text = manifest.read_text()
    package = Store().packages()[0]
    choose._known.clear()
    aside = manifest.with_name("aside")
    manifest.with_suffix(".pt2").rename(aside)
    manifest.unlink()
    result = []
    with Store().locked(package.key):
        thread = threading.Thread(target=lambda: result.append(reason(model)))
        thread.start()
        time.sleep(0.3)
        assert not result and stand_in.builds == 1, "it waits"
        aside.rename(manifest.with_suffix(".pt2"))
        manifest.write_text(text)
    thread.join()
    assert result == ["compiled"]
    assert stand_in.builds == 1


def test_two_threads_build_once(stand_in: StandIn) -> None:
    model, out, start = own(), [], threading.Barrier(2)

    def call() -> None:
        start.wait()
        out.append(specdec.generate(model, **prompts(1), max_new_tokens=NEW, compile=True))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(out) == 2 and torch.equal(*out)
    assert stand_in.builds == 1


def test_a_loaded_graph_does_not_wait_for_another_models_build(stand_in: StandIn) -> None:
    model = own()
    before = decode(model)
    again: list[Any] = []
    with choose._LOCK:  # as a thread that builds holds it for minutes
        call = threading.Thread(target=lambda: again.append(decode(model)), daemon=True)
        call.start()
        call.join(timeout=20)
        assert again, "the call waits"
    assert torch.equal(again[0].sequences, before.sequences)


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_weights_that_were_changed_get_a_graph_of_their_own(write: Callable[[Any], None], stand_in: StandIn) -> None:
    """A package holds a copy of the weights: the old one would go on giving the old model's text."""
    model = own()
    before = decode(model)
    write(model)
    out = decode(model)
    assert out.speculation.graphs.roles == {"target": "compiled"}
    assert stand_in.builds == 2
    assert write is one_value or not torch.equal(out.sequences, before.sequences)


def an_activation(model: Any) -> None:
    model.model.layers[1].mlp.act_fn = torch.nn.ReLU()


def a_number(model: Any) -> None:
    model.model.layers[1].self_attn.scaling = 2.0


def the_config(model: Any) -> None:
    model.config.num_hidden_layers = 1


@pytest.mark.parametrize("change", [an_activation, a_number, the_config], ids=lambda change: change.__name__)
def test_a_model_that_was_changed_otherwise(change: Callable[[Any], None], stand_in: StandIn) -> None:
    """What decides the output besides weights is followed from call to call, too."""
    model = own()
    before = decode(model)
    change(model)
    assert not torch.equal(decode(model).sequences, before.sequences)


def test_sampling_through_a_graph(stand_in: StandIn) -> None:
    """The same seed gives the same tokens as without."""
    model, arguments = own(), {**prompts(3), "max_new_tokens": NEW, "do_sample": True, "temperature": 0.7}
    outputs = []
    for compile in (False, True):
        torch.manual_seed(5)
        outputs.append(specdec.generate(model, **arguments, drafter=specdec.NgramDrafter(), compile=compile))
    assert torch.equal(*outputs)
    assert stand_in.builds == 1


# "auto"


def test_a_short_call_does_not_build(stand_in: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    assert reason(own(), "auto") == TOO_SHORT
    assert stand_in.builds == 0
    assert not Store().folder.exists()
    assert not caplog.records


def test_the_time_spent_uncompiled_adds_up(stand_in: StandIn) -> None:
    """Of target and draft, call by call."""
    target, draft = own(), own(noise=0.02)
    decode(target, "auto", drafter=draft, num_draft_tokens=3)
    seconds = {}
    for model in (target, draft):
        known = choose._known[model]
        assert known.tokens == NEW
        assert known.seconds > 0
        seconds[model] = known.seconds
    decode(target, "auto", drafter=draft, num_draft_tokens=3, batch_size=3)
    for model in (target, draft):
        assert choose._known[model].tokens == 4 * NEW
        assert choose._known[model].seconds > seconds[model]
    decode(target, compile=False)
    assert choose._known[target].tokens == 4 * NEW, "without compile= nothing is weighed"


def test_it_builds_once_that_is_worth_it(stand_in: StandIn) -> None:
    model = own()
    assert reason(model, "auto") == TOO_SHORT
    note_uncompiled(model, 5.0, 500)
    assert reason(model, "auto") == NOT_YET
    assert stand_in.builds == 0
    note_uncompiled(model, 1000.0, 100_000)
    assert reason(model, "auto") == "compiled"
    assert stand_in.builds == 1
    tokens = choose._known[model].tokens
    assert reason(model, "auto") == "compiled"
    assert choose._known[model].tokens == tokens


def test_a_long_call_is_worth_it_at_once(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what a token has taken so far; `max_new_tokens` may never be reached."""
    model = own(max_position_embeddings=1024)
    eos = decode(model).sequences[0, -1].item()
    choose._known.clear()
    note_uncompiled(model, 10.0, 20)
    out = specdec.generate(
        model, **prompts(1), max_new_tokens=900, eos_token_id=eos, compile="auto", return_dict_in_generate=True
    )
    assert out.speculation.graphs.roles == {"target": "compiled"}
    assert out.sequences.shape[1] <= 11 + NEW


def test_what_is_on_disk_is_used_before_building_would_pay(stand_in: StandIn) -> None:
    decode(own())
    choose._known.clear()
    model = own()
    note_uncompiled(model, 5.0, 500)
    assert reason(model, "auto") == "compiled"
    assert stand_in.builds == 1


def test_a_graph_that_is_loaded_serves_every_call(stand_in: StandIn) -> None:
    """However short."""
    model = own()
    decode(model)
    assert reason(model, "auto", num_new=1) == "compiled"


def test_auto_that_fails_to_build(stand_in: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    model = own()
    note_uncompiled(model, 1000.0, 10)
    stand_in.fails = RuntimeError("no such operation")
    for _ in range(2):
        assert reason(model, "auto") == "it cannot be captured (RuntimeError: no such operation)"
    assert stand_in.builds == 1
    assert not caplog.records, "nobody insisted"


# What cannot be built


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

    def __call__(self, program: Any, file: pathlib.Path, options: Any) -> None:
        self.options.append(options)
        torch.rand(3)
        torch.manual_seed(99)
        file.write_text("half")
        if len(self.options) <= self.failures:
            raise RuntimeError("no kernel")


@pytest.mark.parametrize("failures", [1, 2])
def test_nothing_of_the_user_s_is_disturbed(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a build that fails at last, nor by one that succeeds at the second attempt."""
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
    assert len(compiler.options) == 2
    assert compiler.options[0] != compiler.options[1]
    roles = out.speculation.graphs.roles
    files = {path.suffix for path in Store().folder.iterdir()} - {".lock"}
    if failures == 1:
        assert roles == {"target": "compiled"}
        assert files == {".json", ".pt2"}
    else:
        assert roles == {"target": "it cannot be captured (RuntimeError: no kernel)"}
        assert files == set(), "nothing is left of it"


# What is not to be trusted


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


# Arguments


@pytest.mark.parametrize("value", ["yes", "Auto", "", 1, 0, None, ["auto"]])
def test_bad_values(value: Any) -> None:
    model, words = own(), r"compile must be True, False or 'auto', got "
    with pytest.raises(OptionError, match=words):
        specdec.SpeculativeDecoder(compile=value)
    with pytest.raises(OptionError, match=words):
        specdec.generate(model, **prompts(1), max_new_tokens=2, compile=value)
    with pytest.raises(OptionError, match=words), specdec.attached(model, compile=value):
        pass
    assert "generate" not in vars(model)


def test_not_asked_for(stand_in: StandIn) -> None:
    """By default nothing is compiled, nor is what is there used."""
    model = own()
    decode(model)
    out = specdec.generate(model, **prompts(1), max_new_tokens=NEW, return_dict_in_generate=True)
    assert out.speculation.graphs.roles == {}
    assert out.speculation.graphs.calls == 0
    assert specdec.SpeculativeDecoder().compile is False


def test_every_way_in(stand_in: StandIn) -> None:
    """A decoder, its hook in transformers, and an attached model."""
    model, arguments = own(), {**prompts(3), "max_new_tokens": NEW}
    expected = model.generate(**arguments)
    decoder = specdec.SpeculativeDecoder(specdec.NgramDrafter(), compile=True)
    uses = []
    assert torch.equal(decoder.generate(model, **arguments, on_finish=uses.append), expected)
    hooked = model.generate(**arguments, custom_generate=decoder, return_dict_in_generate=True)
    assert torch.equal(hooked.sequences, expected)
    with specdec.attached(model, specdec.NgramDrafter(), compile=True) as attachment:
        assert torch.equal(model.generate(**arguments), expected)
    for stats in (*uses, hooked.speculation, attachment.speculation):
        assert stats.graphs.roles == {"target": "compiled"}
        assert stats.graphs.calls
    assert stand_in.builds == 1
