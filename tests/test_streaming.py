"""Streamers get the prompt, then every step in order, then the end: whatever happens."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from models import prompts, tiny
from transformers import TextIteratorStreamer, TextStreamer
from transformers.generation.streamers import BaseStreamer

import specdec

TARGET, DRAFT = tiny("llama"), tiny("llama", noise=0.02)


class Log(BaseStreamer):
    """Notes every call; fails at one of them if told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls: list[Any] = []
        self.fails_at = fails_at

    def put(self, value: torch.Tensor) -> None:
        if len(self.calls) == self.fails_at:
            raise RuntimeError("boom")
        self.calls.append(value.tolist())

    def end(self) -> None:
        self.calls.append("end")


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("with_eos", [False, True])
def test_the_same_calls_as_from_transformers(batch_size: int, with_eos: bool) -> None:
    eos = int(TARGET.generate(**prompts(1), max_new_tokens=12)[0, -1]) if with_eos else None
    arguments = {**prompts(batch_size), "max_new_tokens": 24, "eos_token_id": eos}
    theirs, ours = Log(), Log()
    out = TARGET.generate(**arguments, streamer=theirs)
    specdec.generate(TARGET, **arguments, streamer=ours, drafter=DRAFT, num_draft_tokens=4)
    if eos is not None:
        assert (out[:, 11:] == eos).any(), "a row must end early"
    assert ours.calls == theirs.calls


def test_tokens_come_as_soon_as_they_are_committed() -> None:
    """The first token is there before anything is drafted."""
    streamer, order = Log(), []

    class Watching(specdec.NgramDrafter):
        def start(self, state: specdec.DecodeState) -> Any:
            session = super().start(state)
            propose = session.propose
            session.propose = lambda *a: (order.append(len(streamer.calls)), propose(*a))[1]  # type: ignore[method-assign]
            return session

    specdec.generate(TARGET, **prompts(1), streamer=streamer, drafter=Watching(), num_draft_tokens=2, max_new_tokens=9)
    assert order[0] == 2  # the prompt and the first token


@pytest.mark.parametrize("fails_at", [0, 1, 3])
def test_the_end_comes_also_if_the_streamer_fails(fails_at: int) -> None:
    streamer = Log(fails_at)
    with pytest.raises(RuntimeError, match="boom"):
        specdec.generate(TARGET, **prompts(1), streamer=streamer, drafter=DRAFT, max_new_tokens=12)
    assert streamer.calls[-1] == "end"
    assert streamer.calls.count("end") == 1


@pytest.mark.parametrize("bad", [{"num_beams": 2}, {"input_ids": torch.tensor([[-1]])}, {"num_draft_tokens": 0}])
def test_the_end_comes_also_if_the_call_is_refused(bad: dict[str, Any]) -> None:
    streamer = Log()
    with pytest.raises(specdec.SpecdecError):
        specdec.generate(TARGET, **{"input_ids": torch.tensor([[5, 6]]), **bad}, streamer=streamer)
    assert streamer.calls == ["end"]


@pytest.mark.parametrize("way", ["generate", "decoder", "attached"])
def test_an_error_of_the_end_gives_the_seed_back(way: str) -> None:
    """The text is done by then; the call has failed all the same, and leaves the generators as they were."""

    class Fails(Log):
        def end(self) -> None:
            raise RuntimeError("boom")

    before, own = torch.get_rng_state(), torch.Generator().manual_seed(7)
    arguments: dict[str, Any] = {**prompts(1), "do_sample": True, "max_new_tokens": 4}
    decoder = specdec.SpeculativeDecoder(DRAFT)
    ways: dict[str, Any] = {"generate": specdec.generate, "decoder": decoder.generate}
    with specdec.attached(TARGET, drafter=DRAFT):
        ways["attached"] = lambda target, **given: target.generate(**given)
        for given in ({}, {"generator": own}):
            with pytest.raises(RuntimeError, match="boom"):
                ways[way](TARGET, **arguments, **given, streamer=Fails())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(own.get_state(), torch.Generator().manual_seed(7).get_state())


def test_an_iterator_in_another_thread() -> None:
    target, draft, tokenizer = specdec.bundled_pair(torch.float32)
    inputs = tokenizer("def add(a, b):", return_tensors="pt")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    arguments = {**inputs, "max_new_tokens": 16, "streamer": streamer, "drafter": draft}
    thread = threading.Thread(target=specdec.generate, args=(target,), kwargs=arguments)
    thread.start()
    text = "".join(streamer)
    thread.join()
    out = target.generate(**inputs, max_new_tokens=16)
    assert text == tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])


def test_text_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    target, draft, tokenizer = specdec.bundled_pair(torch.float32)
    inputs = tokenizer("def add(a, b):", return_tensors="pt")
    texts = []
    for generate in (target.generate, lambda **k: specdec.generate(target, drafter=draft, **k)):
        generate(**inputs, max_new_tokens=16, streamer=TextStreamer(tokenizer))
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != ""


@pytest.mark.parametrize("num_tokens", [1, 3, 8, 100])
def test_aggregated(num_tokens: int) -> None:
    """Bursts of one size, the same tokens, one end."""
    inner, bursts = Log(), []

    class Watching(specdec.AggregatedStreamer):
        def put(self, value: Any) -> None:
            before = len(inner.calls)
            super().put(value)
            bursts.append(len(inner.calls) - before)

    streamer = Watching(inner, num_tokens)
    for _ in range(2):  # the same streamer serves a second call
        inner.calls.clear()
        bursts.clear()
        out = specdec.generate(
            TARGET, **prompts(1), streamer=streamer, drafter=DRAFT, num_draft_tokens=4, max_new_tokens=20
        )
        assert [c[0] for c in inner.calls[1:-1]] == out[0, 11:].tolist()
        assert inner.calls[-1] == "end"
        assert set(bursts[1:]) <= {0, num_tokens}
        assert bursts[0] == 1, "the prompt passes at once"


@pytest.mark.parametrize("num_tokens", [0, -1, 2.0, True])
def test_aggregation_needs_a_positive_number(num_tokens: Any) -> None:
    with pytest.raises(specdec.OptionError, match="positive integer"):
        specdec.AggregatedStreamer(Log(), num_tokens)
