"""Prompt files: the public sets as they are, each form, and how many of which domain."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import tracemalloc
from typing import Any

import pytest

import specdec
from specdec.errors import InputError, OptionError
from specdec.profile import prompt_containers
from specdec.profile.prompts import MOST_DOMAINS, Prompt, bundled, open_prompts

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the public prompt sets are not at {SHARED}")


def _jsonl(path: pathlib.Path, *records: Any) -> pathlib.Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def _raw(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHARED / name).read_text(encoding="utf-8").splitlines()]


def _user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


@shared
def test_spec_bench_gives_first_turns_and_categories() -> None:
    raw = _raw("spec_bench_question.jsonl")
    prompts = open_prompts(SHARED / "spec_bench_question.jsonl")
    assert list(prompts) == [
        Prompt(i, str(r["question_id"]), r["category"], messages=_user(r["turns"][0])) for i, r in enumerate(raw)
    ]
    assert len(prompts) == 480 and len(prompts.domains) == 13 and not prompts.skipped
    assert list(prompts) == list(prompts), "it can be read again"


@shared
def test_human_eval_gives_code_to_continue() -> None:
    prompts = open_prompts(SHARED / "HumanEval.jsonl")
    expected = [Prompt(i, r["task_id"], "code", text=r["prompt"]) for i, r in enumerate(_raw("HumanEval.jsonl"))]
    assert list(prompts) == expected and len(prompts) == 164
    assert prompts.form == "HumanEval problems" and prompts.domains == {"code": 164}


@shared
def test_gsm8k_gives_questions_of_mathematics() -> None:
    prompts = open_prompts(SHARED / "gsm8k_test.jsonl")
    expected = [
        Prompt(i, str(i), "math", messages=_user(r["question"])) for i, r in enumerate(_raw("gsm8k_test.jsonl"))
    ]
    assert list(prompts) == expected and len(prompts) == 1319
    assert prompts.form == "GSM8K questions"


@shared
def test_forty_prompts_of_spec_bench_cover_its_domains() -> None:
    raw = _raw("spec_bench_question.jsonl")
    prompts = open_prompts(SHARED / "spec_bench_question.jsonl", limit=40)
    given = list(prompts)
    assert len(given) == len(prompts) == 40
    assert [p.index for p in given] == sorted(p.index for p in given)
    for domain in {r["category"] for r in raw}:
        of_it = [i for i, r in enumerate(raw) if r["category"] == domain]
        taken = [p.index for p in given if p.domain == domain]
        assert len(taken) == prompts.domains[domain] and 3 <= len(taken) <= 4
        assert taken == of_it[: len(taken)], "the first of each"


def test_the_bundled_prompts_are_code() -> None:
    given = list(bundled())
    assert [(p.name, p.text) for p in given] == [(p["name"], p["prompt"]) for p in specdec.bundled_prompts()]
    assert {p.domain for p in given} == {"code"}
    assert list(bundled(limit=3)) == given[:3]


@pytest.mark.parametrize(
    ("record", "text", "messages", "domain"),
    [
        ({"prompt": "say"}, "say", None, "text"),
        ({"text": " say\n"}, " say\n", None, "text"),
        ("say", "say", None, "text"),
        ({"prompt": None, "text": "say"}, "say", None, "text"),
        ({"text": "write f", "test_list": ["assert f"]}, "write f", None, "code"),
        ({"question": "who?", "answer": "me"}, None, [("user", "who?")], "qa"),
        ({"turns": ["one", "two"]}, None, [("user", "one")], "chat"),
        ({"prompt": [{"role": "user", "content": "hi"}]}, None, [("user", "hi")], "chat"),
        ({"prompt": "hi", "messages": [{"role": "user", "content": "hey"}]}, None, [("user", "hey")], "chat"),
        (
            {
                "messages": [
                    {"role": "system", "content": "be kind"},
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                    {"role": "assistant", "content": None, "tool_calls": [1]},
                ]
            },
            None,
            [("system", "be kind"), ("user", "a"), ("assistant", "b"), ("user", "c")],
            "chat",
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": " "},
                    {"from": "gpt", "value": "the end of an answer"},
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "b"},
                    {"from": "user", "value": "c"},
                    {"from": "gpt", "value": "d"},
                    {"from": "tool", "value": "e"},
                ]
            },
            None,
            [("user", "a"), ("assistant", "b"), ("user", "c")],
            "chat",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            None,
            [("user", "ab")],
            "chat",
        ),
    ],
)
def test_a_record_is_read_as_it_is(
    tmp_path: pathlib.Path, record: Any, text: str | None, messages: list[tuple[str, str]] | None, domain: str
) -> None:
    wanted = None if messages is None else tuple({"role": r, "content": c} for r, c in messages)
    (given,) = open_prompts(_jsonl(tmp_path / "p.jsonl", record))
    assert given == Prompt(0, "0", domain, text, wanted)
    (tmp_path / "list.json").write_text(json.dumps([record], indent=2))
    assert list(open_prompts(tmp_path / "list.json")) == [given]


@pytest.mark.parametrize(
    ("fields", "name", "domain"),
    [
        ({"category": "law"}, "0", "law"),
        ({"domain": "law", "source": "web"}, "0", "law"),
        ({"source": "web"}, "0", "web"),
        ({"task": "x" * 65}, "0", "text"),
        ({"category": 3, "task": "qa"}, "0", "qa"),
        ({"category": " \n"}, "0", "text"),
        ({"id": "conv_7"}, "conv_7", "text"),
        ({"question_id": 12}, "12", "text"),
        ({"name": "a\nb\x1b[31m\ud800"}, "a b?[31m?", "text"),
        ({"id": True, "name": [1]}, "0", "text"),
        ({"id": "y" * 999}, "y" * 80, "text"),
    ],
)
def test_names_and_domains(tmp_path: pathlib.Path, fields: dict[str, Any], name: str, domain: str) -> None:
    (given,) = open_prompts(_jsonl(tmp_path / "p.jsonl", {"prompt": "say"} | fields))
    assert (given.name, given.domain) == (name, domain)


def test_plain_text_is_one_prompt_a_line_or_a_paragraph(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeff  Erzähl mir\tdas.\r\n\r\n \t\r\n[INST] 二\r\n{x} drei ".encode())
    lines = open_prompts(path)
    assert [(p.index, p.text) for p in lines] == [(0, "  Erzähl mir\tdas."), (1, "[INST] 二"), (2, "{x} drei ")]
    assert lines.form == "plain text, one prompt a line" and lines.domains == {"text": 3}
    paragraphs = open_prompts(path, form="paragraphs")
    assert [(p.index, p.text) for p in paragraphs] == [(0, "  Erzähl mir\tdas."), (1, "[INST] 二\n{x} drei ")]


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.txt", "p", "p.dat"])
@pytest.mark.parametrize("is_list", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
def test_the_content_tells_json_whatever_the_name(
    tmp_path: pathlib.Path, name: str, is_list: bool, is_packed: bool
) -> None:
    records = [json.dumps({"prompt": p}, ensure_ascii=False) for p in ("eins, [zwei]", 'ü "\\', "三")]
    content = "[" + ",\r\n ".join(records) + "]\r\n" if is_list else "\r\n\r\n".join(records)
    raw = b"\xef\xbb\xbf" + content.encode()
    path = tmp_path / (name + ".gz" * is_packed)
    path.write_bytes(gzip.compress(raw) if is_packed else raw)
    assert [p.text for p in open_prompts(path)] == ["eins, [zwei]", 'ü "\\', "三"]


def test_one_record_may_be_the_whole_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"prompt": "say", "id": "a"}, indent=1))
    assert list(open_prompts(path)) == [Prompt(0, "a", "text", text="say")]


def test_a_long_first_record_of_a_text_file_is_still_json(tmp_path: pathlib.Path) -> None:
    path = _jsonl(tmp_path / "p.txt", {"prompt": "x" * 70_000})
    assert [p.text for p in open_prompts(path)] == ["x" * 70_000]


def test_a_limit_takes_one_of_each_domain_in_turn(tmp_path: pathlib.Path) -> None:
    domains = "aaaabbcaaab"
    path = _jsonl(tmp_path / "p.jsonl", *({"prompt": f"{i}", "category": d} for i, d in enumerate(domains)))
    taken = {n: [p.index for p in open_prompts(path, limit=n)] for n in (1, 2, 3, 4, 6, 7, 8, 11, 99)}
    assert taken == {
        1: [0],
        2: [0, 4],
        3: [0, 4, 6],
        4: [0, 1, 4, 6],
        6: [0, 1, 2, 4, 5, 6],
        7: [0, 1, 2, 4, 5, 6, 10],
        8: [0, 1, 2, 3, 4, 5, 6, 10],
        11: list(range(11)),
        99: list(range(11)),
    }
    assert open_prompts(path, limit=4).domains == {"a": 2, "b": 1, "c": 1}


def test_a_limit_counts_what_can_be_used_and_skips_are_of_the_whole_file(tmp_path: pathlib.Path) -> None:
    path = _jsonl(tmp_path / "p.jsonl", {"prompt": ""}, {"prompt": "a"}, {"x": 1}, {"prompt": "b"}, {"prompt": ""})
    prompts = open_prompts(path, limit=2)
    assert [p.index for p in prompts] == [1, 3] and len(prompts) == 2
    assert sum(prompts.skipped.values()) == 3 and prompts.skipped["empty"] == 2
    list(prompts)
    assert sum(prompts.skipped.values()) == 3, "not counted twice"


def test_too_many_categories_are_none(tmp_path: pathlib.Path) -> None:
    records = [{"prompt": "a", "source": f"https://{i}"} for i in range(MOST_DOMAINS)]
    assert len(open_prompts(_jsonl(tmp_path / "p.jsonl", *records)).domains) == MOST_DOMAINS
    records += [{"prompt": "a", "source": "https://one.more"}, {"question": "b"}]
    prompts = open_prompts(_jsonl(tmp_path / "p.jsonl", *records))
    assert prompts.domains == {"text": MOST_DOMAINS + 1, "qa": 1}
    assert [p.domain for p in prompts][-2:] == ["text", "qa"]


@pytest.mark.parametrize("limit", [0, -1, True, 2.5, "3"])
def test_a_wrong_limit_is_refused(tmp_path: pathlib.Path, limit: Any) -> None:
    with pytest.raises(OptionError, match="at least 1"):
        open_prompts(_jsonl(tmp_path / "p.jsonl", "a"), limit=limit)


def test_a_wrong_form_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match="paragraphs"):
        open_prompts(_jsonl(tmp_path / "p.jsonl", "a"), form="csv")


def test_a_file_that_was_replaced_is_not_read_on(tmp_path: pathlib.Path) -> None:
    prompts = open_prompts(_jsonl(tmp_path / "p.jsonl", "a"))
    os.utime(tmp_path / "p.jsonl", ns=(0, 0))
    with pytest.raises(InputError, match="changed"):
        list(prompts)
    (tmp_path / "p.jsonl").unlink()
    with pytest.raises(InputError, match="No such file"):
        list(prompts)


def test_memory_does_not_grow_with_the_file(tmp_path: pathlib.Path) -> None:
    line = json.dumps({"prompt": "word " * 2000, "category": "c"})
    sizes = {}
    for count in (100, 500):
        for name, content in (("p.jsonl", "\n".join([line] * count)), ("p.json", f"[{','.join([line] * count)}]")):
            (tmp_path / name).write_text(content)
            tracemalloc.start()
            assert sum(1 for _ in open_prompts(tmp_path / name, limit=count)) == count
            sizes[name, count] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    for name in ("p.jsonl", "p.json"):
        assert sizes[name, 500] < sizes[name, 100] + 100_000 < prompt_containers.LARGEST
