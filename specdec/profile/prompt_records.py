"""What one record of a prompt file says: a text or a conversation, its name and its category."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from specdec.profile.prompt_containers import Skip

Messages = tuple[dict[str, str], ...]
_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
_CATEGORIES = ("category", "domain", "source", "task")
_NAMES = ("task_id", "question_id", "id", "name")
_CODE = ("canonical_solution", "entry_point", "test_list")  # HumanEval and MBPP
_LONGEST_NAME = 80
_LONGEST_CATEGORY = 64  # what is longer describes this record, not a group of them


@dataclass(frozen=True, slots=True)
class Record:
    """A record that can be used.

    Attributes:
        form: what people call its form.
        domain: what follows from the form.
        category: what the record itself says; None where it says nothing.
        name: None where it has none.
        text, messages: one of the two.
    """

    form: str
    domain: str
    text: str | None = None
    messages: Messages | None = None
    category: str | None = None
    name: str | None = None


def read_line(text: str) -> Record:
    """A prompt of plain text, as it stands. Raises `Skip`."""
    return Record("plain text", "text", text=_usable(text))


def read_value(value: object) -> Record:
    """A record of JSON: an object of one of the known forms, or a string.

    The first of turns, conversations, conversation, messages, prompt, question and text that is there (and not null)
    decides.

    Raises:
        Skip: it is of no known form, empty or of wrong types.
    """
    if isinstance(value, str):
        return Record("texts", "text", text=_usable(value))
    if not isinstance(value, dict):
        raise Skip("neither an object nor a text")
    for field, read in _READERS.items():
        if value.get(field) is not None:
            form, domain, content = read(value, field)
            text, messages = (content, None) if isinstance(content, str) else (None, content)
            return Record(form, domain, text, messages, _category(value), _name(value))
    raise Skip(f"none of the fields {', '.join(_READERS)}")


Read = tuple[str, str, str | Messages]


def _turns(record: dict[str, Any], field: str) -> Read:
    turns = record[field]
    if not isinstance(turns, list) or any(not isinstance(t, str) for t in turns):
        raise Skip("'turns' is no list of texts")
    if not turns:
        raise Skip("empty")
    # Later turns answer what the model wrote to the first.
    return "Spec-Bench / MT-Bench questions", "chat", _said(turns[0])


def _conversations(record: dict[str, Any], field: str) -> Read:
    return "ShareGPT conversations", "chat", _conversation(record[field], field)


def _messages(record: dict[str, Any], field: str) -> Read:
    return "messages", "chat", _conversation(record[field], field)


def _prompt(record: dict[str, Any], field: str) -> Read:
    content = record[field]
    if isinstance(content, list):
        return "messages", "chat", _conversation(content, field)
    if not isinstance(content, str):
        raise Skip(f"'{field}' is neither a text nor messages")
    if any(key in record for key in _CODE):
        return "HumanEval problems" if "entry_point" in record else "problems of code", "code", _usable(content)
    return ("prompts" if field == "prompt" else "texts"), "text", _usable(content)


def _question(record: dict[str, Any], field: str) -> Read:
    question, answer = record[field], record.get("answer")
    if not isinstance(question, str):
        raise Skip("'question' is no text")
    # GSM8K ends its answers so; other questions with answers need not be mathematics.
    math = isinstance(answer, str) and "#### " in answer
    return "GSM8K questions" if math else "questions", "math" if math else "qa", _said(question)


_READERS: dict[str, Callable[[dict[str, Any], str], Read]] = {
    "turns": _turns,
    "conversations": _conversations,
    "conversation": _conversations,
    "messages": _messages,
    "prompt": _prompt,
    "question": _question,
    "text": _prompt,
}


def _conversation(turns: object, field: str) -> Messages:
    """Up to and including the last turn of the user, without what an assistant said before the first."""
    if not isinstance(turns, list):
        raise Skip(f"'{field}' is no list of turns")
    roles = [_role(turn) for turn in turns]
    if "user" not in roles:
        raise Skip("no turn of a user")
    first = roles.index("user")
    last = len(roles) - 1 - roles[::-1].index("user")
    messages = []
    for i, role in enumerate(roles[: last + 1]):
        if role is None:
            raise Skip("a turn of neither user, assistant nor system")
        if i < first and role == "assistant":
            continue
        content = _content(turns[i])
        if role != "system" or content.strip():
            messages.append({"role": role, "content": _usable(content)})
    return tuple(messages)


def _role(turn: object) -> str | None:
    """user, assistant or system; None for a role of another name, such as a tool's."""
    role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    if not isinstance(role, str):
        raise Skip("a turn without a role")
    return _ROLES.get(role.strip().lower())


def _content(turn: dict[str, Any]) -> str:
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        # As the OpenAI API has it: parts, each with its type; a picture is no text.
        parts: list[Any] = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
        is_text = len(parts) == len(content) and all(isinstance(p, str) for p in parts)
        content = "".join(parts) if is_text else None
    if not isinstance(content, str):
        raise Skip("a turn that is no text")
    return content


def _said(text: str) -> Messages:
    return ({"role": "user", "content": _usable(text)},)


def _usable(text: str) -> str:
    """The text, which a tokenizer can take."""
    if not text.strip():
        raise Skip("empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Skip("lone surrogates") from None
    return text


def _category(record: dict[str, Any]) -> str | None:
    for field in _CATEGORIES:
        value = record.get(field)
        if isinstance(value, str) and len(value) <= _LONGEST_CATEGORY and (category := _shown(value)):
            return category
    return None


def _name(record: dict[str, Any]) -> str | None:
    for field in _NAMES:
        value = record.get(field)
        if type(value) in (str, int) and (name := _shown(str(value)[: 4 * _LONGEST_NAME])):
            return name[:_LONGEST_NAME]
    return None


def _shown(text: str) -> str:
    """On one line, and without what steers a terminal or cannot be written to a file."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
