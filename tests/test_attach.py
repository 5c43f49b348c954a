"""`attached` and the custom_generate hook: code that calls target.generate() speculates, and nothing stays behind."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from families import family, inputs
from models import prompts, tiny
from transformers import GenerationConfig, LogitsProcessorList, pipeline
from transformers.generation import TopKLogitsWarper
from transformers.generation.streamers import BaseStreamer

import specdec

TARGET, DRAFT = tiny("llama"), tiny("llama", noise=0.02)
INPUTS = prompts(3)
PLAIN = TARGET.generate(**INPUTS, max_new_tokens=20)


def test_generate_is_ours_inside_and_theirs_outside() -> None:
    with specdec.attached(TARGET, DRAFT, num_draft_tokens=3) as attachment:
        for calls in (1, 2):
            assert torch.equal(TARGET.generate(**INPUTS, max_new_tokens=20), PLAIN)
            assert attachment.calls == calls
        assert torch.equal(TARGET.generate(INPUTS["input_ids"][:1], max_new_tokens=20), PLAIN[:1])
        out = TARGET.generate(**INPUTS, max_new_tokens=20, return_dict_in_generate=True)
    assert isinstance(out, specdec.SpeculativeOutput)
    assert attachment.calls == 4
    assert 0 < attachment.speculation.accepted < attachment.speculation.drafted
    assert attachment.speculation.new_tokens == 20 * (3 + 3 + 1 + 3)
    assert "generate" not in vars(TARGET)
    assert torch.equal(TARGET.generate(**INPUTS, max_new_tokens=20), PLAIN)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_restores(error: type[BaseException]) -> None:
    with pytest.raises(error), specdec.attached(TARGET, DRAFT):
        raise error
    assert "generate" not in vars(TARGET)


def test_bad_settings_attach_nothing() -> None:
    for bad in ({"num_draft_tokens": 0}, {"unsupported": "ignore"}, {"drafter": "model"}):
        with pytest.raises(specdec.OptionError), specdec.attached(TARGET, **bad):
            raise AssertionError
        assert "generate" not in vars(TARGET)


def test_blocks_can_be_nested_and_keep_what_others_put_there() -> None:
    target = copy.deepcopy(TARGET)
    theirs = target.generate
    target.generate = theirs
    with specdec.attached(target, DRAFT) as outer:
        with specdec.attached(target, specdec.NgramDrafter()) as inner:
            assert torch.equal(target.generate(**INPUTS, max_new_tokens=20), PLAIN)
        assert (outer.calls, inner.calls) == (0, 1)
        assert torch.equal(target.generate(**INPUTS, max_new_tokens=20), PLAIN)
        assert outer.calls == 1
    assert vars(target)["generate"] is theirs


def test_blocks_of_two_threads_need_not_nest() -> None:
    """Whoever ends first, nothing of ours stays when both have ended."""
    for first_out in (0, 1):
        blocks = [specdec.attached(TARGET, DRAFT), specdec.attached(TARGET, specdec.NgramDrafter())]
        attachments = [block.__enter__() for block in blocks]
        blocks[first_out].__exit__(None, None, None)
        assert torch.equal(TARGET.generate(**INPUTS, max_new_tokens=20), PLAIN)
        assert [a.calls for a in attachments] == [first_out, 1 - first_out]
        blocks[1 - first_out].__exit__(None, None, None)
        assert "generate" not in vars(TARGET)


def test_arguments_by_position() -> None:
    """transformers takes them so: model.generate(input_ids, generation_config, ...)."""
    ids, config = INPUTS["input_ids"][:1], GenerationConfig(max_new_tokens=20, repetition_penalty=1.2)
    processors = LogitsProcessorList([TopKLogitsWarper(3)])
    expected = TARGET.generate(ids, config, processors)
    assert torch.equal(specdec.generate(TARGET, ids, config, logits_processor=processors, drafter=DRAFT), expected)
    with specdec.attached(TARGET, DRAFT) as attachment:
        assert torch.equal(TARGET.generate(ids, config, processors), expected)
        for bad, words in (({"generation_config": config}, "twice"), ({}, "at most")):
            with pytest.raises(specdec.OptionError, match=words):
                TARGET.generate(ids, config, *([] if bad else [None] * 20), **bad)
    assert attachment.calls == 1


def test_a_receiver_of_the_callers_own_is_told_as_well() -> None:
    told: list[specdec.SpeculationStats] = []
    with specdec.attached(TARGET, DRAFT) as attachment:
        TARGET.generate(**INPUTS, max_new_tokens=5, on_finish=told.append)
    assert (attachment.calls, len(told)) == (1, 1)
    assert told[0].new_tokens == attachment.speculation.new_tokens == 15


def test_refused_calls_raise() -> None:
    with specdec.attached(TARGET, DRAFT), pytest.raises(specdec.UnsupportedOptionError, match="num_beams"):
        TARGET.generate(**INPUTS, num_beams=2, max_new_tokens=5)


class Ends(BaseStreamer):
    def __init__(self) -> None:
        self.puts, self.ends = 0, 0

    def put(self, value: Any) -> None:
        self.puts += 1

    def end(self) -> None:
        self.ends += 1


def test_or_are_decoded_plainly(caplog: pytest.LogCaptureFixture) -> None:
    """On request a refused call is transformers' own, with one warning per reason; a streamer ends once."""
    expected = TARGET.generate(**INPUTS, num_beams=2, max_new_tokens=5)
    streamer = Ends()
    with (
        caplog.at_level(logging.WARNING, "specdec"),
        specdec.attached(TARGET, DRAFT, unsupported="plain") as attachment,
    ):
        for _ in range(2):
            assert torch.equal(TARGET.generate(**INPUTS, num_beams=2, max_new_tokens=5), expected)
        TARGET.generate(**INPUTS, output_attentions=True, max_new_tokens=5, streamer=streamer)
    assert attachment.plain_calls == 3
    assert attachment.calls == 0
    assert (streamer.puts, streamer.ends) == (6, 1)
    reasons = [r.getMessage() for r in caplog.records if "without speculation" in r.getMessage()]
    assert len(reasons) == 2
    assert "num_beams=2" in reasons[0]


def test_an_error_while_decoding_is_not_hidden() -> None:
    class Broken(specdec.Drafter):
        def start(self, state: specdec.DecodeState) -> specdec.DraftSession:
            class Session(specdec.DraftSession):
                def propose(self, state: specdec.DecodeState, limit: Any) -> specdec.Proposal:
                    return specdec.Proposal.chain(torch.full_like(state.tokens[:, :1], -5))

            return Session()

    attached = specdec.attached(TARGET, Broken(), num_draft_tokens=2, unsupported="plain")
    with attached, pytest.raises(specdec.DrafterError):
        TARGET.generate(**INPUTS, max_new_tokens=5)


def test_a_refusal_amid_the_output_is_not_decoded_again() -> None:
    """What has been streamed cannot be taken back, so that a late error is raised, and ends the streamer."""

    def answers_for_two(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.zeros(2 if input_ids.shape[1] > 14 else 3, dtype=torch.bool)

    streamer = Ends()
    attached = specdec.attached(TARGET, DRAFT, unsupported="plain")
    with attached as attachment, pytest.raises(specdec.OptionError, match="2 values"):
        TARGET.generate(**INPUTS, max_new_tokens=9, streamer=streamer, stopping_criteria=[answers_for_two])
    assert attachment.plain_calls == 0
    assert streamer.ends == 1


def test_a_pipeline() -> None:
    target, draft, tokenizer = specdec.bundled_pair(torch.float32)
    text = pipeline("text-generation", model=target, tokenizer=tokenizer)
    arguments: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False}
    expected = text("def fibonacci(n):", **arguments)
    with specdec.attached(target, draft) as attachment:
        assert text("def fibonacci(n):", **arguments) == expected
    assert attachment.calls == 1
    assert attachment.speculation.accepted > 0


@pytest.mark.parametrize("drafter", [None, DRAFT, specdec.NgramDrafter()])
def test_as_custom_generate(drafter: Any) -> None:
    """transformers' hook, whose limits docs/generate.md tells."""
    decoder = specdec.SpeculativeDecoder(drafter)
    assert torch.equal(TARGET.generate(**INPUTS, max_new_tokens=20, custom_generate=decoder), PLAIN)
    out = TARGET.generate(
        **INPUTS, max_new_tokens=20, custom_generate=decoder, return_dict_in_generate=True, output_scores=True
    )
    assert torch.equal(out.sequences, PLAIN)
    assert len(out.scores) == 20
    assert isinstance(out.past_key_values.to_dynamic_cache().get_seq_length(), int)


def test_custom_generate_refuses_what_it_must() -> None:
    decoder = specdec.SpeculativeDecoder(DRAFT)
    for bad in ({"num_beams": 2}, {"cache_implementation": "offloaded"}, {"prompt_lookup_num_tokens": 3}):
        with pytest.raises(specdec.UnsupportedOptionError):
            TARGET.generate(**INPUTS, max_new_tokens=5, custom_generate=decoder, **bad)


def test_whispers_own_order_of_arguments() -> None:
    """Its generate() takes others by position than transformers' does."""
    target = family("whisper")
    given = (inputs("whisper", 1)["input_features"], None, None, None, None, False, None, None, None)
    expected = target.generate(*given, max_new_tokens=12)
    with specdec.attached(target, drafter=family("whisper", 0.02)) as attachment:
        out = target.generate(*given, max_new_tokens=12)
    assert torch.equal(out, expected)
    assert attachment.calls == 1
