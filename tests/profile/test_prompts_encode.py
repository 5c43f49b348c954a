"""A prompt's tokens, with and without a chat template."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from specdec.bundled import bundled_dir
from specdec.cli import Chat, encode_prompt
from specdec.errors import InputError, OptionError
from specdec.profile.prompts import Prompt, bundled, encode

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXT = Prompt(0, "0", "text", text=" def f(x):\n")
TALK = Prompt(
    1,
    "1",
    "chat",
    messages=(
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "eins"},
        {"role": "assistant", "content": "zwei"},
        {"role": "user", "content": "drei "},
    ),
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(bundled_dir() / "pair" / "target")


@pytest.fixture
def talker(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize("chat", ["auto", False])
def test_without_a_template_text_stays_text(tokenizer: PreTrainedTokenizerBase, chat: Any) -> None:
    assert encode(TEXT, tokenizer, chat=chat) == tokenizer(TEXT.text)["input_ids"]
    assert encode(TALK, tokenizer, chat=chat) == tokenizer("eins\n\ndrei ")["input_ids"]


@pytest.mark.parametrize("prompt", [TEXT, TALK])
def test_a_template_that_is_asked_for_must_be_there(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> None:
    with pytest.raises(OptionError, match="no chat template"):
        encode(prompt, tokenizer, chat=True)


def test_messages_go_through_the_template(talker: PreTrainedTokenizerBase) -> None:
    written = "<system>be kind\n<user>eins\n<assistant>zwei\n<user>drei \n<assistant>"
    for chat in ("auto", True):
        assert encode(TALK, talker, chat=chat) == talker(written, add_special_tokens=False)["input_ids"]
    assert encode(TALK, talker, chat=False) == talker("eins\n\ndrei ")["input_ids"]


def test_a_text_goes_through_the_template_only_if_told_to(talker: PreTrainedTokenizerBase) -> None:
    assert encode(TEXT, talker) == talker(TEXT.text)["input_ids"]
    assert talker.decode(encode(TEXT, talker, chat=True)) == "<user> def f(x):\n\n<assistant>"


def test_the_tokens_are_those_of_generate(talker: PreTrainedTokenizerBase) -> None:
    assert TEXT.text is not None
    for chat, asked in ((False, None), (True, Chat())):
        assert encode(TEXT, talker, chat=chat) == encode_prompt(talker, TEXT.text, asked)[1]["input_ids"][0].tolist()


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system message') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].content.nothing() }}",
        "{{ messages[99].content.x }}",
        "{{ 1 // 0 }}",
        "{% if",
    ],
)
def test_a_template_that_fails_is_named(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="chat template refuses a conversation"):
        encode(TALK, tokenizer)
    assert encode(TEXT, tokenizer), "a text does without"


def test_no_tokens_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="no tokens"):
        encode(Prompt(0, "0", "text", text=""), tokenizer)
    tokenizer.chat_template = "{{ '' }}"
    with pytest.raises(InputError, match="no tokens"):
        encode(TALK, tokenizer)


def test_a_wrong_choice_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(OptionError, match="'auto'"):
        encode(TEXT, tokenizer, chat="yes")  # type: ignore[arg-type]


def test_odd_characters_have_tokens(tokenizer: PreTrainedTokenizerBase, talker: PreTrainedTokenizerBase) -> None:
    for text in ("\0", "ü\u200b二", "\U0010ffff", "\ufeff"):
        for chat in (False, True):
            assert encode(Prompt(0, "0", "text", text=text), talker, chat=chat)


def test_the_bundled_prompts_are_encoded_whole(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    for prompt in bundled():
        assert tokenizer.decode(encode(prompt, tokenizer)) == prompt.text
    with caplog.at_level(logging.WARNING):
        assert len(encode(Prompt(0, "0", "text", text="x = 1\n" * 2000), tokenizer)) > tokenizer.model_max_length
    assert not caplog.records, "what is too long is the caller's to say"
