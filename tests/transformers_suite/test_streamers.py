"""transformers' streamer tests, written afresh: a streamed text is the text that is returned."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from queue import Empty
from threading import Thread
from typing import Any

import pytest
import torch
from models import prompts
from transformers import (
    AsyncTextIteratorStreamer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextIteratorStreamer,
    TextStreamer,
)
from transformers.generation.streamers import BaseStreamer
from transformers_suite.sides import Writer, plain

PATIENCE = 30.0  # seconds, for a call that will never put anything


PROMPT = "def fibonacci(n):"


def arguments(writer: Writer) -> dict[str, Any]:
    return {**writer.tokens(PROMPT), "max_new_tokens": 16, "do_sample": False}


@cache
def expected(target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of transformers' own call."""
    ids = plain(target, **arguments(Writer(target, target, tokenizer)))
    return tokenizer.decode(ids[0])


@contextmanager
def in_a_thread(writer: Writer, streamer: Any) -> Iterator[None]:
    """generate() in a thread of its own, over before the block is left."""
    thread = Thread(target=writer.target.generate, kwargs={**arguments(writer), "streamer": streamer})
    thread.start()
    try:
        yield
    finally:
        thread.join()


def printed(writer: Writer, capsys: pytest.CaptureFixture[str], skip_prompt: bool) -> str:
    """What a TextStreamer prints during the call."""
    streamer = TextStreamer(writer.tokenizer, skip_prompt=skip_prompt)
    writer.target.generate(**arguments(writer), streamer=streamer)
    return capsys.readouterr().out


def test_text_streamer_matches_non_streaming(writer: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    """The text, and a line break behind it."""
    assert printed(writer, capsys, skip_prompt=False) == expected(writer.target, writer.tokenizer) + "\n"


def test_text_streamer_skip_prompt(writer: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what is new."""
    assert PROMPT + printed(writer, capsys, skip_prompt=True) == expected(writer.target, writer.tokenizer) + "\n"


def test_text_streamer_decode_kwargs(writer: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    """skip_special_tokens= reaches the tokenizer: the prompt's EOS is not printed."""
    inputs = writer.tokens(writer.tokenizer.eos_token + "def fibonacci(n):")
    streamer = TextStreamer(writer.tokenizer, skip_special_tokens=True)
    output = writer.target.generate(**inputs, max_new_tokens=4, do_sample=False, streamer=streamer)
    assert writer.tokenizer.eos_token in writer.tokenizer.decode(output[0])
    assert capsys.readouterr().out == writer.tokenizer.decode(output[0], skip_special_tokens=True) + "\n"


class Recorded(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.given.append(value.clone())

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_of_ones_own_gets_a_batch(llama: PreTrainedModel) -> None:
    """The prompt, then one token a row and step; padding where a row is over; one end."""
    inputs, streamer = prompts(3), Recorded()
    free = plain(llama, **inputs, max_new_tokens=12)
    arguments = {**inputs, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": int(free[1, -8])}
    output = llama.generate(**arguments, streamer=streamer)
    assert output.tolist() == plain(llama, **arguments).tolist()
    assert (output[1, -1], output.shape) == (0, free.shape), "no row ends early"
    assert streamer.given[0].tolist() == inputs["input_ids"].tolist()
    assert torch.stack(streamer.given[1:], 1).tolist() == output[:, inputs["input_ids"].shape[1] :].tolist()
    assert streamer.ended == 1


def test_a_text_streamer_refuses_a_batch(writer: Writer) -> None:
    """Its own error, for it prints one text only; and the next call works."""
    inputs = writer.tokens([PROMPT, PROMPT])
    with pytest.raises(ValueError, match="batch size 1"):
        writer.target.generate(**inputs, max_new_tokens=3, streamer=TextStreamer(writer.tokenizer))
    assert writer.target.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 2


def test_iterator_streamer_matches_non_streaming(writer: Writer) -> None:
    streamer = TextIteratorStreamer(writer.tokenizer, timeout=PATIENCE)
    with in_a_thread(writer, streamer):
        assert "".join(streamer) == expected(writer.target, writer.tokenizer)


def test_iterator_streamer_timeout(writer: Writer) -> None:
    """Waiting for a forward is given up after the timeout, and the call goes on."""
    streamer = TextIteratorStreamer(writer.tokenizer, timeout=0.0001)
    with in_a_thread(writer, streamer), pytest.raises(Empty):
        list(streamer)


def test_async_iterator_streamer_matches_non_streaming(writer: Writer) -> None:
    async def collect() -> str:
        streamer = AsyncTextIteratorStreamer(writer.tokenizer, timeout=PATIENCE)
        with in_a_thread(writer, streamer):
            return "".join([text async for text in streamer])

    assert asyncio.run(collect()) == expected(writer.target, writer.tokenizer)


def test_async_iterator_streamer_timeout(writer: Writer) -> None:
    async def collect() -> None:
        streamer = AsyncTextIteratorStreamer(writer.tokenizer, timeout=0.0001)
        with in_a_thread(writer, streamer), pytest.raises(TimeoutError):
            async for _ in streamer:
                pass
        await asyncio.sleep(0)  # what the thread has put meanwhile

    asyncio.run(collect())
