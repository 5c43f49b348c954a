"""The command line, as a user types it."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from specdec.bundled import bundled_dir
from specdec.cli import Chat, app, encode_prompt

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}# assistant:{% endif %}"
)
NO_SYSTEM = "{{ raise_exception('no system role, please') if messages[0].role == 'system' }}" + TEMPLATE
WITHOUT_SYSTEM = TEMPLATE.replace("# {{ m.role", "{% if m.role == 'system' %}{% continue %}{% endif %}# {{ m.role")
FAST = ["-n", "12", "--repeats", "1"]


def run(*arguments: str, stdin: str | None = None) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, ["generate", *arguments], input=stdin)
    return result.exit_code, result.output


def test_the_bundled_pair_by_default() -> None:
    code, output = run(*FAST, "--dtype", "float32")
    assert code == 0, output
    assert "def heapreplace" in output
    assert "target.generate()" in output
    assert "outputs are equal: 12 of 12 tokens." in output
    assert "\x1b[" not in output, "plain when not a terminal"


def test_prompts_from_argument_file_and_standard_input(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "prompt.py"
    file.write_text("class Stack:\n    def push(")
    outputs = [
        run("class Stack:\n    def push(", "-n", "8", "--repeats", "0"),
        run("--file", str(file), "-n", "8", "--repeats", "0"),
        run("-", "-n", "8", "--repeats", "0", stdin="class Stack:\n    def push("),
    ]
    assert [code for code, _ in outputs] == [0, 0, 0]
    assert len({text for _, text in outputs}) == 1
    assert "tokens/s" not in outputs[0][1]


@pytest.mark.parametrize("draft", ["ngram", "none"])
def test_other_drafters_and_sampling(draft: str) -> None:
    code, output = run(*FAST, "--draft", draft, "--temperature", "0.8", "--top-p", "0.9", "-k", "3")
    assert code == 0, output
    assert "their distribution is the same" in output


def test_another_model(tmp_path: pathlib.Path) -> None:
    """Any local checkpoint works as target and as draft."""
    target = str(bundled_dir() / "pair" / "target")
    code, output = run("def f(x):", *FAST, "--target", target, "--draft", target, "-k", "3", "--dtype", "float32")
    assert code == 0, output
    assert "1.00\n" in output  # every draft token of the target itself is accepted
    code, output = run("def f(x):", *FAST, "--target", str(tmp_path))
    assert code == 2
    assert "error:" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-k", "0"], "num_draft_tokens"),
        (["-k", "many"], "--num-draft-tokens"),
        (["--dtype", "int4"], "--dtype"),
        (["x", "--file", "pyproject.toml"], "not both"),
        (["-n", "5000"], "positions"),
        ([""], "empty"),
    ],
)
def test_bad_input(arguments: list[str], words: str) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert words in output
    assert "Traceback" not in output


@pytest.fixture
def template(tmp_path: pathlib.Path) -> str:
    file = tmp_path / "chat.jinja"
    file.write_text(TEMPLATE)
    return str(file)


def test_chat_continues_the_templated_prompt(template: str) -> None:
    """The template's text is shown, and the model continues it: the same as when it is typed as it stands."""
    options = ["-n", "12", "--repeats", "0"]
    written = "<|endoftext|># system: Answer in Python.\n# user: Reverse [a] list!\n# assistant:"
    system = ["--system", "Answer in Python."]
    code, output = run("Reverse [a] list!", "--chat", *system, "--chat-template", template, *options)
    assert code == 0, output
    assert written in output
    assert output == run(written, *options)[1]
    code, output = run("Reverse [a] list!", "--chat", "--chat-template", template, *options)
    assert code == 0, output
    assert "# system" not in output
    assert "<|endoftext|># user: Reverse [a] list!\n# assistant:" in output


def test_chat_with_the_tokenizer_s_own_template(tmp_path: pathlib.Path, template: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(bundled_dir() / "pair" / "target", model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE.replace("# user", "# human").replace("# assistant", "# machine")
    tokenizer.save_pretrained(model)
    code, output = run("Hello?", "--chat", "--target", str(model), "-n", "4", "--repeats", "0")
    assert code == 0, output
    assert "# user: Hello?\n# machine:" in output
    code, output = run("Hello?", "--chat", "--chat-template", template, "--target", str(model), "-n", "4")
    assert code == 0, output
    assert "# user: Hello?\n# assistant:" in output, "--chat-template comes before the tokenizer's own"


def test_chat_adds_no_special_token_twice(tmp_path: pathlib.Path) -> None:
    """A tokenizer that begins every text with a BOS token does so in a plain prompt, not before the template's."""
    copy = tmp_path / "tokenizer"
    copy.mkdir()
    for file in (bundled_dir() / "pair" / "target").glob("*token*"):
        shutil.copy(file, copy)
    settings = json.loads((copy / "tokenizer.json").read_text())
    bos = "<|endoftext|>"
    settings["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {bos: {"id": bos, "ids": [0], "tokens": [bos]}},
    }
    (copy / "tokenizer.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(copy)
    text, inputs = encode_prompt(tokenizer, "Hello?")
    assert text == "Hello?"
    assert inputs["input_ids"][0].tolist().count(tokenizer.bos_token_id) == 1
    text, inputs = encode_prompt(tokenizer, "Hello?", Chat(template=TEMPLATE))
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids) == text == bos + "# user: Hello?\n# assistant:"
    assert inputs["attention_mask"].tolist() == [[1] * len(ids)]


@pytest.mark.parametrize(
    ("arguments", "template", "words"),
    [
        (["--chat"], None, "leave out --chat, or pass a Jinja file with --chat-template FILE"),
        (["--system", "Be brief."], None, "--system is a part of a conversation"),
        ([], TEMPLATE, "--chat-template is a part of a conversation"),
        (["--chat"], "{% for %}", "the chat template failed"),
        (["--chat", "--system", "Be brief."], NO_SYSTEM, "no system role, please"),
        (["--chat", "--system", "Be brief."], WITHOUT_SYSTEM, "leaves the system message out"),
        (["--chat", "--chat-template", "missing.jinja"], None, "missing.jinja"),
    ],
)
def test_chat_that_cannot_be(arguments: list[str], template: str | None, words: str, tmp_path: pathlib.Path) -> None:
    if template is not None:
        (tmp_path / "t").write_text(template)
        arguments = [*arguments, "--chat-template", str(tmp_path / "t")]
    code, output = run("Hello?", *arguments)
    assert code == 2
    assert words in " ".join(output.replace("│", " ").split())
    assert "accepted draft token" not in output, "nothing was decoded"
    assert "Traceback" not in output
