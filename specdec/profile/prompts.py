"""Reading a file of prompts: what it holds as it is, what of it is left out and why, and its tokens."""

from __future__ import annotations

import os
import pathlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from specdec.bundled import bundled_dir
from specdec.errors import InputError, OptionError
from specdec.profile.prompt_containers import (
    Container,
    Skip,
    raw_records,
    recognise,
    stamp,
    text_of,
    unknown,
    value_of,
)
from specdec.profile.prompt_records import Record, read_line, read_value

MOST_DOMAINS = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt; it has a text or messages.

    Attributes:
        index: number of its record in the file, from 0; records that are skipped count, blank lines do not.
        name: what the record calls itself ("HumanEval/0", "81"), else its number; not always unique.
        domain: its category, else what follows from the form: "chat", "code", "math", "qa" or "text".
        text: what the model continues.
        messages: a conversation (dicts of role and content) that ends with the user's turn to be answered.
    """

    index: int
    name: str
    domain: str
    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None


@dataclass(frozen=True, slots=True)
class _DomainRule:
    """Which domain a record belongs to.

    Attributes:
        by_category: records name theirs.
        fixed: one for all.
    """

    by_category: bool
    fixed: str | None = None

    def domain(self, record: Record) -> str:
        return self.fixed or (record.category if self.by_category else None) or record.domain


@dataclass(frozen=True, slots=True)
class PromptFile:
    """The prompts of a file in their order; each iteration reads it anew, and holds one at a time.

    Attributes:
        path: the file.
        form: what it was taken for, in words.
        domains: domain -> prompts that an iteration gives, in order of appearance; at most 64.
        skipped: reason -> records of the whole file that cannot be used. A `limit` skips nothing.
    """

    path: pathlib.Path
    form: str
    domains: dict[str, int]
    skipped: Counter[str]
    _container: Container = field(repr=False)
    _stamp: tuple[int, int] = field(repr=False)
    _rule: _DomainRule = field(repr=False)

    def __len__(self) -> int:
        return sum(self.domains.values())

    def __iter__(self) -> Iterator[Prompt]:
        """Raises InputError where the file has changed since it was opened or can no longer be read."""
        if stamp(self.path) != self._stamp:
            raise InputError(f"{self.path} has changed since it was opened: start again.")
        missing, total = dict(self.domains), len(self)
        for index, record in _records(self.path, self._container):
            if isinstance(record, Skip):
                continue
            domain = self._rule.domain(record)
            if missing.get(domain, 0):
                missing[domain] -= 1
                total -= 1
                yield Prompt(index, record.name or str(index), domain, record.text, record.messages)
            if not total:
                return


def open_prompts(path: str | os.PathLike[str], *, limit: int | None = None, form: str = "auto") -> PromptFile:
    """Recognises a file of prompts and reads it once, so that what is wrong with it is said before anything runs.

    Read as they are, each also packed with gzip:

    - Spec-Bench's and MT-Bench's question.jsonl: the first of the `turns` (the later ones need the model's own
      answer), `category`; HumanEval; GSM8K (`question`, `answer`).
    - JSON Lines, or a JSON file that is a list, of records with `conversations` (ShareGPT: from and value),
      `messages` or `prompt` as messages (role and content), each up to the last turn of the user with the answers
      that stand there; `prompt`, `question` or `text` as a text; or of plain strings.
      `category`, `domain`, `source` or `task` is the domain. With more than 64 different ones it is no category, and
      all records have the domain of their form.
    - Plain text (.txt or no ending, UTF-8): one prompt a line, as it stands. form="paragraphs" takes what lies between
      blank lines for one prompt.

    A record that cannot be used is counted under its reason. One is at most 4 MiB.

    Args:
        limit: at most so many prompts, one of each domain in turn (the first of the file) until they are reached, so
            that few prompts still cover the domains.
        form: "auto", or "jsonl", "json", "lines", "paragraphs" where the name or the content misleads.

    Raises:
        InputError: the file is missing, empty, of an unknown form, or none of its records can be used.
        OptionError: a wrong `limit` or `form`.

    Example:
        >>> prompts = open_prompts("question.jsonl", limit=40)  # doctest: +SKIP
        >>> len(prompts), prompts.form, len(prompts.domains)  # doctest: +SKIP
        (40, 'Spec-Bench / MT-Bench questions', 13)
    """
    return _opened(pathlib.Path(path), limit, form, None)


def bundled(*, limit: int | None = None) -> PromptFile:
    """The prompts of `specdec.bundled_prompts()`, which no training run of the bundled pair has seen: code."""
    return _opened(bundled_dir() / "prompts.jsonl", limit, "jsonl", "code")


def _opened(path: pathlib.Path, limit: int | None, form: str, fixed: str | None) -> PromptFile:
    if limit is not None and (type(limit) is not int or limit < 1):
        raise OptionError(f"the number of prompts must be an integer of at least 1, got {limit!r}.")
    container = recognise(path, form)
    seen = stamp(path)
    forms: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    rules = [_DomainRule(True, fixed), _DomainRule(False, fixed)]
    counts: list[Counter[str]] = [Counter(), Counter()]
    for _, record in _records(path, container):
        if isinstance(record, Skip):
            skipped[record.reason] += 1
            continue
        forms[record.form] += 1
        if len(rules) > 1:
            counts[0][rules[0].domain(record)] += 1
        counts[-1][rules[-1].domain(record)] += 1
        if len(counts[0]) > MOST_DOMAINS and len(rules) > 1:  # no categories: memory must not grow with them
            del rules[0], counts[0]
    if not forms:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common())
        raise unknown(path, f"each of its records was skipped: {reasons}" if reasons else "it is blank")
    shares = _shares(counts[0], limit)
    name = " and ".join(name for name, _ in forms.most_common())
    name += {"lines": ", one prompt a line", "paragraphs": ", one prompt a paragraph"}.get(container, "")
    return PromptFile(path, name, shares, skipped, container, seen, rules[0])


def _records(path: pathlib.Path, container: Container) -> Iterator[tuple[int, Record | Skip]]:
    is_text = container in ("lines", "paragraphs")
    for index, raw in enumerate(raw_records(path, container)):
        record: Record | Skip
        try:
            record = raw if isinstance(raw, Skip) else read_line(text_of(raw)) if is_text else read_value(value_of(raw))
        except Skip as skip:
            record = skip
        yield index, record


def _shares(counts: dict[str, int], limit: int | None) -> dict[str, int]:
    """How many of each domain: one of each in turn, in order of appearance, until `limit` is reached."""
    total = sum(counts.values())
    if limit is None or limit >= total:
        return dict(counts)
    left = limit
    shares = dict.fromkeys(counts, 0)
    while left:
        for domain in [d for d, count in counts.items() if shares[d] < count][:left]:
            shares[domain] += 1
            left -= 1
    return {domain: share for domain, share in shares.items() if share}


def encode(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, chat: bool | Literal["auto"] = "auto") -> list[int]:
    """A prompt's tokens, with the special tokens that the tokenizer or its chat template puts.

    Args:
        chat: "auto" puts messages into the tokenizer's chat template and leaves a text as it stands. True makes a
            text the user's message. False uses no template. Messages without a template are the user's turns as they
            stand, with blank lines between.

    Returns:
        Token ids, at least one.

    Raises:
        OptionError: chat=True, and the tokenizer has no chat template.
        InputError: the template refuses this conversation (some know no system message), or there is no token.

    Example:
        >>> encode(Prompt(0, "0", "text", text="def f"), tokenizer)  # doctest: +SKIP
        [1011, 292]
    """
    if chat not in (True, False, "auto"):
        raise OptionError(f"chat must be True, False or 'auto', got {chat!r}.")
    messages = prompt.messages
    if chat is True:
        if tokenizer.chat_template is None:
            raise OptionError(
                "the prompts shall be a user's messages, and this tokenizer has no chat template, as is usual for "
                "models that were not trained to converse: leave the chat template out."
            )
        messages = messages or ({"role": "user", "content": prompt.text or ""},)
    if messages is not None and chat is not False and tokenizer.chat_template is not None:
        ids = _in_template(list(messages), tokenizer)
    else:
        turns = [m["content"] for m in messages or () if m["role"] == "user"]
        text = prompt.text if prompt.text is not None else "\n\n".join(turns)
        ids = tokenizer(text, verbose=False)["input_ids"]  # not verbose: the caller says what is too long
    if not ids:
        raise InputError("a prompt has no tokens: the tokenizer makes nothing of its text. Leave the prompt out.")
    return [int(i) for i in ids]


def _in_template(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    apply: Any = tokenizer.apply_chat_template
    try:
        return apply(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    # A template is a program: besides its own errors it fails as Python does.
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"the chat template refuses a conversation: {error}. Leave such prompts or the chat template out."
        ) from None
