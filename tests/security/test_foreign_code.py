"""What a stranger's file or folder cannot do; docs/security.md has the table that these tests stand behind."""

from __future__ import annotations

import ast
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from models import prompts, tiny
from typer.testing import CliRunner

import specdec
from specdec.check import load
from specdec.cli import app

ROOT = pathlib.Path(specdec.__file__).parent
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "security.md"
TARGET, DRAFT = tiny("llama"), tiny("llama", noise=0.02)
# Loaders that read code, or objects that bring code along.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "runpy", "imp"}
FORBIDDEN_CALLS = {"torch.load", "torch.jit.load", "torch.hub.load", "np.load", "numpy.load", "eval", "exec", "compile"}
FORBIDDEN_CALLS |= {"__import__", "os.system", "importlib.import_module"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        if "_bundled" not in path.parts:
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def loads_code(tree: ast.AST) -> list[str]:
    """Imports and calls that could run what a file says."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in FORBIDDEN_MODULES else []
            found += [f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in FORBIDDEN_CALLS]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN_CALLS:
            found.append(ast.unparse(node.func))
    return found


def trusts(tree: ast.AST) -> list[str]:
    """Places where code from a hub could be allowed: a keyword, a default, an attribute or a key that is not False."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle", "weights_only"):
            safe = node.arg == "weights_only"
            if not (isinstance(node.value, ast.Constant) and node.value.value is safe):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.arg) and node.arg == "trust_remote_code":
            found.append("a parameter trust_remote_code")
        elif isinstance(node, ast.Attribute) and node.attr == "trust_remote_code":
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "REMOTE_CODE" in node.value:
            found.append(node.value)
        elif isinstance(node, ast.Dict):
            found += [
                ast.unparse(value)
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code"
                if not isinstance(value, ast.Constant) or value.value is True
            ]
    return found


def test_nothing_that_could_run_a_files_code() -> None:
    """No pickles, no eval, no hub code, no switch for it: in no module of the package."""
    found = {name: [*loads_code(tree), *trusts(tree)] for name, tree in sources()}
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from torch import load\nload(path)",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=flag)",
        "AutoModel.from_pretrained(path, **{'trust_remote_code': True})",
        "def load(path, trust_remote_code=False): ...",
        "os.environ.get('SPECDEC_TRUST_REMOTE_CODE')",
        "self.trust_remote_code",
    ],
)
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    tree = ast.parse(code)
    assert loads_code(tree) or trusts(tree)


def test_every_load_says_that_it_trusts_no_code() -> None:
    """transformers asks on the terminal where nobody said: an answer would run a stranger's code."""
    silent = set()
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                given = {k.arg for k in node.keywords}
                if "trust_remote_code" not in given and None not in given:
                    silent.add(name)
    assert not silent


@pytest.fixture
def evil(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """A model folder whose config names code of its own, and the file that this code would write."""
    mark, folder = tmp_path / "executed", tmp_path / "model"
    folder.mkdir()
    code = f"import pathlib\npathlib.Path({str(mark)!r}).write_text('!')\n"
    code += "from transformers import LlamaConfig as EvilConfig, LlamaForCausalLM as EvilModel\n"
    code += "from transformers import PreTrainedTokenizerFast as EvilTokenizer\n"
    (folder / "evil.py").write_text(code)
    names = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    config = {"model_type": "evil", "auto_map": names, "architectures": ["EvilModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {"auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}, "tokenizer_class": "EvilTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder, mark


def test_a_folder_with_code_of_its_own_is_refused(
    evil: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """By what `specdec check` and `specdec index` load with; also where somebody would answer "y"."""
    folder, mark = evil
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(str(folder), torch.float32, None)
    (tmp_path / "text.txt").write_text("words")
    runner = CliRunner()
    for command in (
        ["check", str(folder)],
        ["index", "build", str(tmp_path / "text.txt"), "--tokenizer", str(folder), "-o", str(tmp_path / "i.npz")],
    ):
        assert runner.invoke(app, command, input="y\ny\ny\n").exit_code != 0
    assert not mark.exists()
    assert not (tmp_path / "i.npz").exists()
    # In a process of its own: transformers marks the classes that such code names, and saves them otherwise after that.
    code = f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(folder)!r}, trust_remote_code=True)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert mark.exists(), "the folder's code is what such code would be"


def test_trust_remote_code_is_refused_by_generate() -> None:
    for value in (True, "yes", 1):
        with pytest.raises(specdec.UnsupportedOptionError, match="never runs code from a hub"):
            specdec.generate(TARGET, **prompts(1), trust_remote_code=value, max_new_tokens=2)


def test_the_page_names_tests_that_exist() -> None:
    """Each row of the table has a test, or says that there is nothing to test yet."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| what")]
    assert len(rows) >= 12
    root = PAGE.parent.parent
    for row in rows:
        named = [w for w in row.replace("`", " ").split() if "::" in w]
        assert named or "not there yet" in row, row
        for name in named:
            path, _, function = name.partition("::")
            assert f"def {function.partition('[')[0]}(" in (root / path).read_text(), name
    text = PAGE.read_text()
    assert "2411.01076" in text and "2410.17175" in text
