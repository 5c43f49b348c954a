"""What a stranger's file, drafter or prompt cannot do; docs/security.md has the table that these tests stand behind."""

from __future__ import annotations

import ast
import inspect
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import families
import pytest
import torch
from models import VOCAB_SIZE, prompts, tiny
from transformers import LogitsProcessor
from typer.testing import CliRunner

import specdec
from specdec.cache.recurrent import RecurrentLayer
from specdec.check import load
from specdec.cli import app
from specdec.controller import MAX_DRAFT_TOKENS
from specdec.drafters.shapes import optimal_tree
from specdec.generate import MOST_NESTED
from specdec.types import MAX_NODES

ROOT = pathlib.Path(specdec.__file__).parent
PAGE = pathlib.Path(__file__).parent.parent / "docs" / "security.md"
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


# Bounds


@pytest.mark.parametrize(
    "make",
    [
        lambda: specdec.TreeDrafter(DRAFT, num_nodes=MAX_NODES + 1),
        lambda: specdec.TreeDrafter(DRAFT, widths=[40, 40]),
        lambda: specdec.TreeDrafter(DRAFT, parents=[-1] * (MAX_NODES + 1)),
        lambda: specdec.SuffixDrafter(max_nodes=MAX_NODES + 1),
        lambda: specdec.LookaheadDrafter(window=200, ngram=10),
        lambda: optimal_tree([0.5], MAX_NODES + 1),
        lambda: specdec.SpeculativeDecoder(DRAFT, num_draft_tokens=MAX_DRAFT_TOKENS + 1),
    ],
    ids=["tree", "widths", "parents", "suffix", "lookahead", "optimal", "depth"],
)
def test_nodes_and_depth_are_bounded(make: Callable[[], object]) -> None:
    with pytest.raises(specdec.OptionError):
        make()


class Proposes(specdec.Drafter):
    """What a function makes of the state."""

    def __init__(self, make: Callable[[specdec.DecodeState, int], Any]) -> None:
        self._make = make

    def start(self, state: specdec.DecodeState) -> specdec.DraftSession:
        session = specdec.DraftSession()
        session.propose = lambda state, limit: self._make(state, max(limit))  # type: ignore[method-assign]
        return session


@pytest.mark.parametrize(("nodes", "deep"), [(MAX_NODES + 1, 1), (9, 9)])
def test_a_drafters_own_proposal_is_bounded_as_well(nodes: int, deep: int) -> None:
    """Before anything of the square of its size is made."""

    def make(state: specdec.DecodeState, _: int) -> specdec.Proposal:
        tokens = torch.full((1, nodes), 3)
        if deep > 1:
            return specdec.Proposal.chain(tokens)
        return specdec.Proposal(tokens, torch.full_like(tokens, -1), torch.ones_like(tokens).bool(), 1, nodes)

    with pytest.raises(specdec.DrafterError, match="at most"):
        specdec.generate(TARGET, **prompts(1), drafter=Proposes(make), num_draft_tokens=4, max_new_tokens=8)


def test_indexes_are_bounded_in_all() -> None:
    """Whatever calls write: by default 256 MB, and never more than was said."""
    assert specdec.SuffixIndex().max_bytes == 256_000_000
    remembering = specdec.SuffixDrafter(remember=True)
    assert remembering.index is not None and remembering.index.max_bytes == 256_000_000
    drafter = specdec.SuffixDrafter(specdec.SuffixIndex(400), remember=True)
    for seed in range(4):
        specdec.generate(TARGET, **prompts(1, seed=seed), drafter=drafter, max_new_tokens=24)
        assert drafter.index is not None and 0 < drafter.index.num_bytes <= 400


def test_indexes_of_a_request_grow_with_its_text_only() -> None:
    """Of a text of any content: two states a token, an n-gram a size and token, as many n-grams as the pool holds."""
    from specdec.drafters.jacobi import Pool
    from specdec.drafters.ngram import NgramIndex
    from specdec.drafters.suffix_automaton import SuffixAutomaton

    worst = {"alike": [5] * 600, "different": list(range(600)), "rising": [i % (1 + i // 9) for i in range(600)]}
    for text in worst.values():
        automaton, ngrams = SuffixAutomaton(), NgramIndex(2, 6)
        automaton.extend(text)
        ngrams.propose(text, 4)
        assert max(len(v) for v in vars(automaton).values() if hasattr(v, "__len__")) <= 2 * len(text) + 1
        assert len(ngrams._ends) <= 5 * len(text)
    assert inspect.signature(specdec.LookaheadDrafter).parameters["max_ngrams"].default == 16_384
    assert "max_ngrams" in inspect.getsource(Pool)


def test_snapshots_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one for each drafted token of a round and one more; none is held between rounds."""
    most, take = [0], RecurrentLayer.take_snapshot

    def counted(self: RecurrentLayer) -> int:
        size = take(self)
        most[0] = max(most[0], len(self.snapshots))
        return size

    monkeypatch.setattr(RecurrentLayer, "take_snapshot", counted)
    name = "lfm2"
    drafter = specdec.ModelDrafter(families.family(name, 0.05))
    out = specdec.generate(
        families.family(name), **prompts(1), drafter=drafter, num_draft_tokens=MAX_DRAFT_TOKENS, max_new_tokens=40,
        do_sample=False, return_dict_in_generate=True,
    )  # fmt: skip
    assert 2 <= most[0] <= MAX_DRAFT_TOKENS + 1
    assert out.speculation.snapshot_bytes > 0


# What calls share


@pytest.mark.parametrize(
    "make",
    [
        specdec.NgramDrafter,
        specdec.SuffixDrafter,
        specdec.LookaheadDrafter,
        lambda: specdec.ModelDrafter(DRAFT),
        lambda: specdec.MixedDrafter([specdec.SuffixDrafter(), specdec.ModelDrafter(DRAFT)]),
    ],
    ids=["ngram", "suffix", "lookahead", "model", "mixed"],
)
def test_nothing_is_kept_from_one_request_to_the_next(make: Callable[[], specdec.Drafter]) -> None:
    """A second request drafts as if it were the first: the same numbers, whatever was decoded before it."""
    used, fresh = make(), make()
    secret = TARGET.generate(**prompts(1), max_new_tokens=40)
    arguments: dict[str, Any] = {"num_draft_tokens": 4, "max_new_tokens": 24, "return_dict_in_generate": True}
    # The next request's text is the earlier one's: what had been kept would draft it.
    specdec.generate(TARGET, **prompts(1), drafter=used, max_new_tokens=40)
    beside = [specdec.generate(TARGET, secret[:, :20], drafter=d, **arguments).speculation for d in (used, fresh)]
    assert (beside[0].drafted, beside[0].accepted) == (beside[1].drafted, beside[1].accepted)
    assert getattr(used, "index", None) is None


def test_keeping_texts_is_for_the_user_to_ask() -> None:
    """With remember=True the same request is drafted from the earlier one's output: the test above would show it."""
    used, fresh = (specdec.SuffixDrafter(remember=True) for _ in range(2))
    secret = TARGET.generate(**prompts(1), max_new_tokens=40)
    specdec.generate(TARGET, **prompts(1), drafter=used, max_new_tokens=40)
    counts = [
        specdec.generate(
            TARGET, secret[:, :20], drafter=d, num_draft_tokens=4, max_new_tokens=24, return_dict_in_generate=True
        ).speculation.accepted
        for d in (used, fresh)
    ]
    assert counts[0] > counts[1]
    for kind in (specdec.SuffixDrafter, specdec.drafters.SuffixDrafter):
        assert inspect.signature(kind).parameters["remember"].default is False


def test_the_models_forward_is_the_models_own_during_a_call() -> None:
    """Nothing is patched, not even while the call runs (afterwards: tests/faults/test_fault_points.py)."""
    seen = []

    def look(_: specdec.Committed) -> None:
        for model in (TARGET, DRAFT):
            patched = [n for m in model.modules() for n in vars(m) if n in ("forward", "generate", "__call__")]
            seen.append((patched, model.training, type(model).forward))

    before = type(TARGET).forward
    for drafter in (DRAFT, "early-exit:1", specdec.LayerSkipDrafter([1])):
        specdec.generate(TARGET, **prompts(1), drafter=drafter, num_draft_tokens=3, max_new_tokens=8, on_commit=look)
    assert seen
    assert all(one == ([], False, before) for one in seen)


# Calls inside calls


def inner(state: specdec.DecodeState, most: int, **arguments: Any) -> specdec.Proposal:
    """Drafts with a call of its own on the same target."""
    rows = [
        specdec.generate(TARGET, torch.tensor([tokens]), max_new_tokens=most, **arguments)[0, len(tokens) :].tolist()
        for tokens in state.host_tokens
    ]
    return specdec.Proposal.chain(torch.tensor(rows))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_drafter_that_decodes_with_the_same_target(batch_size: int) -> None:
    """Works, since a call keeps nothing on a model; also where the target's generate is ours."""
    inputs = prompts(batch_size)
    expected = TARGET.generate(**inputs, max_new_tokens=12)
    drafter = Proposes(lambda s, d: inner(s, d, drafter=specdec.NgramDrafter()))
    out = specdec.generate(
        TARGET, **inputs, drafter=drafter, num_draft_tokens=3, max_new_tokens=12, return_dict_in_generate=True
    )
    assert torch.equal(out.sequences, expected)
    assert out.speculation.accepted == out.speculation.drafted > 0
    with specdec.attached(TARGET, drafter, num_draft_tokens=3):
        assert torch.equal(TARGET.generate(**inputs, max_new_tokens=12), expected)


@pytest.mark.parametrize("where", ["processor", "on_commit"])
def test_a_callback_that_decodes_with_the_same_target(where: str) -> None:
    inputs, texts = prompts(1), []

    def decodes(*_: Any) -> None:
        texts.append(specdec.generate(TARGET, **inputs, drafter=DRAFT, num_draft_tokens=2, max_new_tokens=4))

    class Decodes(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            decodes()
            return scores

    given: dict[str, Any] = {"on_commit": decodes} if where == "on_commit" else {"logits_processor": [Decodes()]}
    out = specdec.generate(TARGET, **inputs, drafter=DRAFT, num_draft_tokens=3, max_new_tokens=8, **given)
    assert torch.equal(out, TARGET.generate(**inputs, max_new_tokens=8))
    assert len(texts) > 2
    assert all(torch.equal(text, out[:, : texts[0].shape[1]]) for text in texts)


def test_a_drafter_that_calls_itself_without_end() -> None:
    """A typed error instead of Python's own limit, and the next call is as always."""
    calls = [0]

    def again(state: specdec.DecodeState, most: int) -> specdec.Proposal:
        calls[0] += 1
        specdec.generate(TARGET, **prompts(1), drafter=drafter, num_draft_tokens=3, max_new_tokens=8)
        return specdec.Proposal.chain(torch.full((1, most), 3))

    drafter = Proposes(again)
    for _ in range(2):
        calls[0] = 0
        with pytest.raises(specdec.OptionError, match="runs inside itself"):
            specdec.generate(TARGET, **prompts(1), drafter=drafter, num_draft_tokens=3, max_new_tokens=8)
        assert calls[0] == MOST_NESTED
    out = specdec.generate(TARGET, **prompts(1), drafter=DRAFT, max_new_tokens=8)
    assert torch.equal(out, TARGET.generate(**prompts(1), max_new_tokens=8))


# What leaves a call


@pytest.mark.parametrize("num_tokens", [8, 16])  # more than a round commits
def test_bursts_of_an_aggregated_stream_tell_nothing_of_acceptance(num_tokens: int) -> None:
    """Two drafters of very different luck hand the same bursts on."""
    texts = TARGET.generate(**prompts(1), max_new_tokens=33)
    lucky = Proposes(lambda s, d: specdec.Proposal.chain(texts[:, len(s.host_tokens[0]) :][:, :d]))
    unlucky = Proposes(lambda s, d: specdec.Proposal.chain(torch.full((1, d), VOCAB_SIZE - 1)))
    shapes = []
    for drafter in (lucky, unlucky):
        held, bursts = [], []

        class Inner:
            def put(self, value: torch.Tensor) -> None:
                held.append(value)  # noqa: B023

            def end(self) -> None:
                bursts.append(len(held))  # noqa: B023

        streamer = specdec.AggregatedStreamer(Inner(), num_tokens)
        out = specdec.generate(
            TARGET, **prompts(1), drafter=drafter, num_draft_tokens=4, max_new_tokens=33, streamer=streamer,
            on_commit=lambda _: bursts.append(len(held)), return_dict_in_generate=True,  # noqa: B023
        )  # fmt: skip
        shapes.append((sorted(set(bursts)), out.speculation.accepted))
    assert shapes[0][1] > 20 > shapes[1][1]
    assert shapes[0][0] == shapes[1][0]


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
