"""The graph of chance at work: found or built, checked, and called by sampled rounds."""

from __future__ import annotations

import hashlib
import logging
import pathlib
import threading
from functools import cache
from time import perf_counter

import torch
from torch import Tensor
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from specdec.compiled import build as building
from specdec.compiled.build import Run
from specdec.compiled.chance import ChanceGraph, Recipe
from specdec.compiled.fingerprint import environment
from specdec.compiled.recorded import Capture, Recordings
from specdec.compiled.store import Store
from specdec.errors import SpecdecError
from specdec.sampling import Sampler
from specdec.state import HOST
from specdec.stats import GraphUse
from specdec.target import ModelRunner
from specdec.types import Compile, Proposal
from specdec.verify import KeyedCoins, Purpose, rejection

logger = logging.getLogger("specdec")
# Above these many tokens torch's own operations are as fast (docs/performance.md): a sort is a sort.
_MOST_VOCAB, _MOST_SORTED = 1 << 16, 1 << 14
_MOST_ON_GPU = 1 << 19  # rows times vocabulary
_RECORDED, _MOST_RECORDED = "recorded", 8  # in `_known`: how their keys begin, and how many are kept
_OWN = ("compiled/chance.py", "types.py", "verify/coins.py", "verify/rules.py", "verify/tree.py")
_FRESH = (0, 1, 2, 3, 9)  # of `ChanceGraph.forward`'s arguments: which may be written to between calls
_LOCK = threading.Lock()
_known: dict[str, Run | str] = {}  # by key: what runs it, or why nothing does
Names = tuple[Tensor, Tensor, Tensor]  # of a round's coins; see `DecodeState.coin_names`


class Chance:
    """Draws and judges for one call.

    Args:
        run: the graph's entry; see `ChanceGraph.forward`.
        recipe: the call's processors.
        use: counts calls and seconds.
        device: where the models' logits are.
    """

    def __init__(self, run: Run, recipe: Recipe, use: GraphUse, device: torch.device) -> None:
        self._run = run
        self._use = use
        self._device = device
        self._numbers = torch.tensor(recipe.numbers, dtype=torch.float32, device=device)
        self._next = torch.tensor([Purpose.NEXT_TOKEN, 0], device=device)
        self._is_given = {answer: torch.tensor([answer], device=device) for answer in (True, False)}
        self._draft: dict[int, Tensor] = {}
        self._none = torch.zeros(0, dtype=torch.int64, device=device)
        self._nothing = torch.zeros(0, 1, 0, dtype=torch.float32, device=device)  # stands for q where there is none

    def draw(self, logits: Tensor, names: Names, node: int) -> tuple[Tensor, Tensor]:
        """Draft node `node` from logits [B, V]: its token [B], -1 if they are no distribution, and q [B, V]."""
        batch_size = len(logits)
        if len(self._none) != batch_size:
            self._none = torch.zeros(batch_size, dtype=torch.int64, device=self._device)
        purpose = self._draft.get(node)
        if purpose is None:
            purpose = self._draft[node] = torch.tensor([Purpose.DRAFT, node], device=self._device)
        nothing = self._none  # a chain of no tokens
        outcome, _, probs = self._call(logits[:, None], nothing[:, None], nothing, None, names, purpose, nothing)
        return outcome[:, 3], probs[:, 0]

    def judge(
        self, logits: Tensor, tokens: Tensor, num_valid: Tensor, q: Tensor | None, names: Names, starts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outcome [B, 4 + K] and ends [B] of a chain; see `ChanceGraph.forward`."""
        outcome, ends, _ = self._call(logits, tokens, num_valid, q, names, self._next, starts)
        return outcome, ends

    def _call(
        self,
        logits: Tensor,
        tokens: Tensor,
        num_valid: Tensor,
        q: Tensor | None,
        names: Names,
        purpose: Tensor,
        starts: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        is_given = self._is_given[q is None]
        if q is None:
            shape = (logits.shape[0], 1, logits.shape[2])
            if self._nothing.shape != shape:
                self._nothing = torch.zeros(shape, dtype=torch.float32, device=self._device)
            q = self._nothing
        # Whatever the model's and the drafter's dtypes: compiled code would read one for another.
        logits, q = logits.to(torch.float32), q.to(torch.float32)
        inputs = [logits, tokens, num_valid, q, is_given, *names, purpose, starts, self._numbers]
        begun = perf_counter()
        outcome, ends, probs = self._run([i.contiguous() for i in inputs])
        self._use.seconds += perf_counter() - begun
        self._use.calls += 1
        return outcome, ends, probs


def chance(sampler: Sampler, runner: ModelRunner, want: Compile, use: GraphUse, batch_size: int) -> Chance | None:
    """What decides a sampled call's rounds as one graph, if it can be had; `use` says why not.

    Args:
        runner: the target's, compiled.
        want: True: build it if it is not on disk. "auto": use what is on disk. On a GPU both record.
        batch_size: of the call.
    """
    recipe = Recipe.of(sampler.processors)
    if isinstance(recipe, str):
        use.roles["sampling"] = f"{recipe} is not part of the graph"
        return None
    found = _why_not(recipe, runner, batch_size) or _run_of(recipe, want, runner)
    if isinstance(found, str):
        use.roles["sampling"] = found
        return None
    use.roles["sampling"] = "compiled"
    return Chance(found, recipe, use, runner.device)


def _why_not(recipe: Recipe, runner: ModelRunner, batch_size: int) -> str | None:
    vocab_size = runner.vocab_size
    if vocab_size < recipe.least_vocab:
        return "its vocabulary is smaller than top_k"
    if runner.device.type == "cuda":
        is_large = batch_size * vocab_size > _MOST_ON_GPU
        return "its logits are so many that a recording would spend its time copying them" if is_large else None
    sorts = any(isinstance(p, TopKLogitsWarper | TopPLogitsWarper) for p in recipe.processors)
    if vocab_size > (_MOST_SORTED if sorts else _MOST_VOCAB):
        return "its vocabulary is so large that torch's own operations are as fast"
    return None


def _run_of(recipe: Recipe, want: Compile, runner: ModelRunner) -> Run | str:
    on_cpu = runner.device.type == "cpu"
    key = _key(recipe) if on_cpu else f"{_RECORDED} {_key(recipe)} {runner.device} {runner.vocab_size}"
    found = _known.get(key)
    if found is None:
        with _LOCK:  # a second thread waits for the first one's package
            found = _known.get(key)
            if found is None:
                found = _loaded(recipe, want, key) if on_cpu else _made(recipe, runner, key)
    return found


def _made(recipe: Recipe, runner: ModelRunner, key: str) -> Run | str:
    """On a GPU: its operations as they are, recorded. inductor's kernels for it drew other tokens (torch 2.11)."""
    run = recorded_chance(recipe)
    is_right = _is_right(run, recipe, runner.device, runner.vocab_size, passes=3)
    _known[key] = run if is_right else "its recording gave other tokens than torch's own operations"
    recorded = [name for name in _known if name.startswith(_RECORDED)]
    for name in recorded[:-_MOST_RECORDED]:
        del _known[name]
    return _known[key]


def recorded_chance(recipe: Recipe, capture: Capture | None = None) -> Run:
    """The graph of chance as `ShapeGraphs` are of a model."""
    recordings = Recordings(ChanceGraph(recipe), _FRESH, capture, most=16)
    return lambda inputs: recordings(inputs)


def _loaded(recipe: Recipe, want: Compile, key: str) -> Run | str:
    store = Store()
    found = store.find(key)
    if found is None and want == "auto":
        return "no package is on disk, and compile='auto' builds none for sampling"
    try:
        _, file = found or store.obtain(key, lambda: building.build_chance(recipe, store, key))
        run = building.load(file)
        if _is_right(run, recipe):
            _known[key] = run
            return run
        problem = "its graph gave other tokens than torch's own operations"
    except (SpecdecError, MemoryError):
        raise
    except OSError as error:  # a full disk may pass
        return f"it cannot be kept ({type(error).__name__}: {error})"
    except Exception as error:  # whatever torch's compiler raises
        problem = f"it cannot be captured ({type(error).__name__}: {str(error)[:160]})"
    store.remove(key)
    logger.warning("sampling runs uncompiled: %s.", problem)
    _known[key] = problem
    return problem


def _is_right(
    run: Run, recipe: Recipe, device: torch.device = HOST, vocab_size: int | None = None, passes: int = 2
) -> bool:
    """Rounds of one and of two rows, with and without q, drafts and not: the tokens that the uncompiled rule commits.

    One may differ, at a tie's edge.

    Args:
        vocab_size: of the logits; any that will do if omitted.
        passes: how often each round is decided; a recording is replayed at the third.
    """
    vocab, wrong = vocab_size or max(64, 2 * recipe.least_vocab), 0
    graph, sampler = Chance(run, recipe, GraphUse(), device), Sampler(recipe.processors, do_sample=True)
    cases = [(1, 0, False), (2, 0, False), (1, 3, True), (1, 3, False), (2, 2, True)]
    for length, (batch_size, num_nodes, has_q) in enumerate(cases * passes):
        steps = torch.arange(batch_size * (num_nodes + 1) * vocab, dtype=torch.float32, device=device)
        logits = 3 * torch.sin((length + 7.3) * steps).view(batch_size, num_nodes + 1, vocab)
        requests = torch.arange(batch_size, device=device)
        lengths = requests + length
        q = (logits[:, :num_nodes] + torch.cos(5.1 * logits[:, :num_nodes])).softmax(-1)
        tokens, count = q.argmax(-1), torch.full_like(requests, num_nodes)
        given, drafted = q if has_q else None, torch.cat([torch.zeros_like(requests)[:, None], tokens], dim=1)
        outcome, _ = graph.judge(
            logits, drafted, count, given, (torch.tensor([11], device=device), requests, lengths), lengths
        )
        proposal, coins = Proposal.chain(tokens, q=given), KeyedCoins(11, requests, lengths)
        rule = rejection(sampler.scores(logits, None).softmax(-1), proposal, coins)
        for row, kept in enumerate((rule.num_accepted + 1).tolist()):
            wrong += outcome[row, 3 : 3 + kept].tolist() != rule.tokens(proposal)[row, :kept].tolist()
    return wrong <= 1


def _key(recipe: Recipe) -> str:
    parts = [recipe.name, environment(), _sources()]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


@cache
def _sources() -> str:
    root = pathlib.Path(__file__).parent.parent
    return hashlib.blake2b(b"".join((root / name).read_bytes() for name in _OWN), digest_size=8).hexdigest()
