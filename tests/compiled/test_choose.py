"""When a package is built or loaded, and that a call runs through it.

Nothing is compiled here: the uncompiled step stands in for its package.
"""

from __future__ import annotations

import pathlib
import threading
import time
from typing import Any

import pytest
import torch
from fresh import own, own_family
from models import prompts
from stand_in import NEW, StandIn, decode, reason

import specdec
from specdec.compiled import Store, choose, note_uncompiled
from specdec.errors import OptionError

TOO_SHORT = "the call is too short for it to pay"
NOT_YET = "no package is on disk, and building one would not pay yet"
pytestmark = pytest.mark.usefixtures("compiler_is_there")


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


def test_sampling_through_a_graph(stand_in: StandIn) -> None:
    """The same seed gives the same tokens as without."""
    model, arguments = own(), {**prompts(3), "max_new_tokens": NEW, "do_sample": True, "temperature": 0.7}
    outputs = []
    for compile in (False, True):
        torch.manual_seed(5)
        outputs.append(specdec.generate(model, **arguments, drafter=specdec.NgramDrafter(), compile=compile))
    assert torch.equal(*outputs)
    assert stand_in.builds == 1


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
