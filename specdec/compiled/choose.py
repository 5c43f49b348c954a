"""Whether a model decodes compiled: by what the call asks for, what is on disk, and what building would cost."""

from __future__ import annotations

import logging
import pathlib
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter
from typing import Literal

import torch
from transformers import PreTrainedModel

from specdec.cache import RollbackCache
from specdec.compiled import build as building
from specdec.compiled.arena import Arena
from specdec.compiled.fingerprint import Survey, environment, key_of, survey
from specdec.compiled.graph import MemoryShape
from specdec.compiled.recorded import Capture
from specdec.compiled.runner import CompiledRunner, Graph
from specdec.compiled.shapes import WIDEST, Compiler, ShapeGraphs, inductor
from specdec.compiled.store import Package, Store
from specdec.compiled.support import why_not, why_not_here
from specdec.errors import SpecdecError, is_out_of_memory
from specdec.probe import agrees, attention_rounding, largest_rounding, relative_error, tolerance
from specdec.stats import GraphUse
from specdec.target import ModelRunner
from specdec.types import Compile, Proposal
from specdec.window import Plan, build_window

logger = logging.getLogger("specdec")
_SAVED = 0.6  # share of uncompiled decoding that a graph saves at least, on the bundled pair (docs/performance.md)
_LOAD_SECONDS = 0.5  # to load a package and check it
_AS_FAR = 2.0  # a graph may be from a model, measured by how far two of torch's attentions are from each other
_WIDE = 64  # tokens of the window at which prefill is timed, compiled and not
_LOCK = threading.Lock()


@dataclass(slots=True)
class _Known:
    """What this process knows of a model."""

    graphs: dict[str, tuple[object, Graph]] = field(default_factory=dict)  # by environment, with the model's stamp
    refusals: dict[str, tuple[object, str]] = field(default_factory=dict)  # likewise
    seconds: float = 0.0  # decoded uncompiled under "auto"
    tokens: int = 0


_known: weakref.WeakKeyDictionary[PreTrainedModel, _Known] = weakref.WeakKeyDictionary()
_warned: set[tuple[type, str]] = set()


def compiled(
    runner: ModelRunner, want: Compile, tokens: int, use: GraphUse, role: Literal["target", "draft"]
) -> ModelRunner:
    """The runner through a graph if it can be had and pays; else as it is. `use` says which, and why.

    Args:
        runner: probed.
        want: True: build what is missing. "auto": build once the time that this process has spent on the model
            uncompiled, and may spend in this call, is worth it; use what is on disk. On a GPU: record the kernels that
            there are, and with True make better ones first.
        tokens: the call may still write so many.
    """
    if want is False:
        return runner
    seen = survey(runner.model)
    reason = why_not(runner, seen)
    if reason is None:
        graph = _settled(runner, seen, want)
        if graph is None:
            with _LOCK:  # a second thread waits for the first one's package
                graph = _graph(runner, seen, want, tokens)
        if isinstance(graph, Graph):
            use.roles[role] = "compiled"
            return CompiledRunner(runner, graph, use)
        reason = graph
    use.roles[role] = reason
    kind = type(runner.model)
    if want is True and (kind, reason) not in _warned:
        _warned.add((kind, reason))
        logger.warning("%s is decoded uncompiled: %s.", kind.__name__, reason)
    return runner


def note_uncompiled(model: PreTrainedModel, seconds: float, tokens: int) -> None:
    """Remembers what decoding without a graph took, for "auto" to weigh."""
    known = _known.setdefault(model, _Known())
    known.seconds += seconds
    known.tokens += tokens


def _places(runner: ModelRunner, want: Compile) -> list[str]:
    """Where what this process knows of a model's graphs stands, the best first; new knowledge belongs to the last."""
    here = environment()
    if runner.device.type != "cuda":
        return [here]
    kernels = f"{here} with kernels of its own"
    return [kernels] if want is True else [kernels, here]


def _settled(runner: ModelRunner, seen: Survey, want: Compile) -> Graph | str | None:
    """The graph that this process has loaded, or the refusal it remembers, of the model as it is now."""
    known = _known.get(runner.model)
    if known is None:
        return None
    now = seen.stamp()
    places = _places(runner, want)
    graphs, refusals = [known.graphs.get(here) for here in places], [known.refusals.get(places[-1])]
    return next((found[1] for found in [*graphs, *refusals] if found is not None and found[0] == now), None)


def _graph(runner: ModelRunner, seen: Survey, want: Compile, tokens: int) -> Graph | str:
    """The model's graph, or why there is none."""
    settled = _settled(runner, seen, want)  # by the thread that this one has waited for
    if settled is not None:
        return settled
    model, here, now = runner.model, _places(runner, want)[-1], seen.stamp()
    known = _known.setdefault(model, _Known())
    reason = why_not_here(runner, seen)
    if reason is not None:
        return reason
    saved = _SAVED * _uncompiled_seconds(runner, known, tokens) if want == "auto" else float("inf")
    if saved < _LOAD_SECONDS:
        return "the call is too short for it to pay"
    if runner.device.type == "cuda":
        graph = by_shapes(runner, inductor if want is True else None)
        _remember(known, here, now, graph)
        return graph
    store, key = Store(), key_of(model, now)
    found = store.find(key)
    if found is None and saved < building.expected_seconds(runner):
        return "no package is on disk, and building one would not pay yet"
    try:
        package, file = found or store.obtain(key, lambda: _built(runner, store, key))
    except (SpecdecError, MemoryError):
        raise
    except Exception as error:  # whatever torch's compiler raises: the model decodes uncompiled
        reason = f"it cannot be captured ({_first_line(error)})"
        if not (isinstance(error, OSError) or is_out_of_memory(error)):  # a full disk or memory may pass
            known.refusals[here] = (now, reason)
        return reason
    try:
        graph = Graph(building.load(file), package.memory, package.widest)
        problem = _problem(runner, graph)
    except Exception as error:
        problem = f"its package cannot be run ({_first_line(error)})"
        if is_out_of_memory(error):  # the package is none the worse
            return problem
    if problem is not None:
        store.remove(key)
    _remember(known, here, now, problem or graph)
    return problem or graph


def by_shapes(runner: ModelRunner, compiler: Compiler | None, capture: Capture | None = None) -> Graph | str:
    """A graph for each shape that recurs, where there are no packages; or why there is none.

    It must give the model's logits, and a step of one token in less time than the model.
    """
    try:
        shapes = memory_shapes(runner)
        arena = Arena()
        problem = _problem(runner, Graph(ShapeGraphs(runner, None, capture), shapes, WIDEST, fine=False, arena=arena))
        # Kernels are compared with the step's own as they are made, since each kind of window needs some of its own.
        graph = Graph(ShapeGraphs(runner, compiler, capture), shapes, WIDEST, fine=False, arena=arena)
        if problem is None and capture is None:
            with torch.inference_mode():  # as it will be decoded: kernels are made for one mode
                seconds = seconds_of(CompiledRunner(runner, graph, GraphUse()), width=1, repeats=20)
                if seconds > seconds_of(runner, width=1, repeats=20):
                    problem = "its graph was not faster than the model"
    except Exception as error:
        return f"it cannot be captured ({_first_line(error)})"
    return problem or graph


def _remember(known: _Known, here: str, stamp: object, graph: Graph | str) -> None:
    if isinstance(graph, Graph):
        known.graphs[here] = (stamp, graph)
    else:
        known.refusals[here] = (stamp, graph)


def _built(runner: ModelRunner, store: Store, key: str) -> tuple[Package, pathlib.Path]:
    package, file = building.build(runner, memory_shapes(runner), store, key)
    return replace(package, widest=_widest(runner, Graph(building.load(file), package.memory))), file


def _problem(runner: ModelRunner, graph: Graph) -> str | None:
    """Why a graph is not to be trusted: its logits, over ragged rows, a rejection and a tree, are not the model's."""
    own = relative_error(runner)
    error = relative_error(CompiledRunner(runner, graph, GraphUse()))
    limit = tolerance(runner.dtype, own)
    if not agrees(error, limit) and runner.device.type == "cuda":
        # There products of any width round alike, so that `own` says little of what an attention's other roundings do.
        limit = min(largest_rounding(runner.dtype), max(limit, _AS_FAR * attention_rounding(runner)))
    if agrees(error, limit):
        return None
    return f"its graph gave other logits than the model (relative error {error:.2g}, of which {limit:.2g} is rounding)"


def _uncompiled_seconds(runner: ModelRunner, known: _Known, tokens: int) -> float:
    """What has been spent without a graph, and may be in this call."""
    each = known.seconds / known.tokens if known.tokens else _step_seconds(runner)
    return known.seconds + each * tokens


@torch.inference_mode()
def _step_seconds(runner: ModelRunner) -> float:
    """Seconds of an uncompiled forward of one token."""
    return seconds_of(runner, width=1, repeats=3)


@torch.inference_mode()
def _widest(runner: ModelRunner, graph: Graph) -> int | None:
    """Where to leave wide windows to the uncompiled model: its library's products may be better there."""
    compiled_seconds = seconds_of(CompiledRunner(runner, graph, GraphUse()), _WIDE, repeats=5)
    return _WIDE // 2 if seconds_of(runner, _WIDE, repeats=5) < compiled_seconds else None


def seconds_of(runner: ModelRunner, width: int, repeats: int) -> float:
    """Median time of a prompt's forward over `width` tokens."""
    width = min(width, runner.max_positions or width)
    tokens = torch.zeros(1, width, dtype=torch.int64, device=runner.device)
    nothing, lengths = Proposal.empty(1, runner.device), torch.tensor([width], device=runner.device)
    cache = runner.new_cache(1, width)
    times = []
    for _ in range(repeats):
        window = build_window(tokens, lengths, cache.lengths, nothing, Plan(width, width, masked=False, level=True))
        begun = perf_counter()
        logits = runner.forward(window, cache, keep=1).logits
        logits.flatten()[0].item()  # a GPU has only begun by now
        times.append(perf_counter() - begun)
        cache.commit(torch.zeros_like(lengths))
    return median(times[1:])


@torch.no_grad()
def memory_shapes(runner: ModelRunner) -> Sequence[MemoryShape]:
    """Heads, width of a key and of a value of each attention layer, as a forward of one token shows them."""
    whole = [replace(kind, window=None) for kind in runner.kinds]
    cache = RollbackCache(whole, 1, runner.device, 1)
    tokens, one = torch.zeros(1, 1, dtype=torch.int64, device=runner.device), torch.ones(1, dtype=torch.int64)
    plan = Plan(1, 1, masked=False, level=True)
    window = build_window(tokens, one.to(runner.device), cache.lengths, Proposal.empty(1, runner.device), plan)
    runner.forward(window, cache, keep=1)
    buffers = cache.buffers()
    return [
        (int(k.shape[1]), int(k.shape[3]), int(v.shape[3])) for k, v in zip(buffers[::2], buffers[1::2], strict=True)
    ]


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
