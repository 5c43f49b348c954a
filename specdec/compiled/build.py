"""Tracing, compiling and loading: from a model to a native package, once for a model, dtype and machine."""

from __future__ import annotations

import contextlib
import io
import logging
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor
from transformers.utils import logging as hf_logging

from specdec.compiled import chance
from specdec.compiled.chance import Recipe
from specdec.compiled.graph import MemoryShape, StepGraph, example, free_sizes
from specdec.compiled.options import OPTIONS, WITH_RIVALS
from specdec.compiled.store import Package, Store, describe
from specdec.target import ModelRunner

logger = logging.getLogger("specdec")
CHANCE_SECONDS = 60.0  # to build what chance decides
# Options, and whether with products of ours. Where those cannot be compiled, inductor's own are next, not torch's as
# rivals of ours: trials hide such errors.
ATTEMPTS = ((OPTIONS, True), (OPTIONS, False), (WITH_RIVALS, True))
Run = Callable[[list[Tensor]], Sequence[Tensor]]


def expected_seconds(runner: ModelRunner) -> float:
    """What building takes on one core, roughly: measured at 46 to 61 s for 2 or 3 layers and 140 to 152 s for 12."""
    return 40.0 + 8.0 * runner.num_layers


def build(runner: ModelRunner, shapes: Sequence[MemoryShape], store: Store, key: str) -> tuple[Package, pathlib.Path]:
    """Compiles the model's step into a file beside the store; `Store.put` takes it over.

    Raises:
        Exception: whatever tracing or compiling raises for a model that cannot be captured.
    """
    name = type(runner.model).__name__
    file, seconds = _built(name, expected_seconds(runner), lambda: trace(runner, shapes), ATTEMPTS, store, key)
    return describe(key, name, file, seconds, list(shapes)), file


def build_chance(recipe: Recipe, store: Store, key: str) -> tuple[Package, pathlib.Path]:
    """The same for what chance decides."""
    name = "sampling"
    file, seconds = _built(name, CHANCE_SECONDS, lambda: trace_chance(recipe), ((chance.OPTIONS, False),), store, key)
    return describe(key, name, file, seconds, []), file


def _built(
    name: str,
    expected: float,
    traced: Callable[[], torch.export.ExportedProgram],
    attempts: Sequence[tuple[dict[str, Any], bool]],
    store: Store,
    key: str,
) -> tuple[pathlib.Path, float]:
    """The compiled file, and the seconds that it took; attempts: options and whether with own products, in turn."""
    file, begun = store.temporary(key), time.perf_counter()
    logger.warning(
        "compiling %s, once for its kind, this processor and number of threads: about %d seconds.", name, expected
    )
    try:
        with _shown(name) as show, undisturbed():
            show("tracing")
            program = traced()
            show("compiling")
            for attempt in attempts:
                try:
                    _compile(program, file, *attempt)
                    break
                except Exception as error:
                    if attempt is attempts[-1]:
                        raise
                    logger.info("compiling %s otherwise, after %s: %.300s", name, type(error).__name__, error)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    seconds = time.perf_counter() - begun
    logger.warning("compiled %s in %.0f seconds; kept in %s.", name, seconds, store.folder)
    return file, seconds


def trace(runner: ModelRunner, shapes: Sequence[MemoryShape]) -> torch.export.ExportedProgram:
    """The model's step as a graph, not compiled yet."""
    inputs, sizes = example(shapes, runner.dtype, runner.device), free_sizes(2 * len(shapes))
    with contextlib.redirect_stderr(io.StringIO()):  # all of a graph that cannot be made
        return torch.export.export(StepGraph(runner), inputs, dynamic_shapes=sizes, strict=False)


def trace_chance(recipe: Recipe) -> torch.export.ExportedProgram:
    """What chance decides as a graph, not compiled yet."""
    inputs, sizes = chance.example(recipe), chance.free_sizes(recipe)
    return torch.export.export(chance.ChanceGraph(recipe), inputs, dynamic_shapes=sizes, strict=False)


def _compile(
    program: torch.export.ExportedProgram, file: pathlib.Path, options: dict[str, Any], own_products: bool
) -> None:
    products = _few_rows() if own_products else contextlib.nullcontext()
    with products, contextlib.redirect_stderr(io.StringIO()):  # statistics of each trial
        torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)


def _few_rows() -> contextlib.AbstractContextManager[None]:
    """Our products; nothing where this torch has no place for them."""
    try:
        from specdec.compiled.products import few_rows  # imports all of the compiler: not before it is needed
    except (ImportError, AttributeError) as error:
        logger.info("no products of few rows with torch %s: %s", torch.__version__, error)
        return contextlib.nullcontext()
    return few_rows()


def load(file: pathlib.Path) -> Run:
    """The package's entry: flat inputs of the graph's forward -> its three outputs."""
    run: Run = torch._inductor.aoti_load_package(str(file)).loader.run
    return run


@contextmanager
def undisturbed() -> Iterator[None]:
    """The compiler draws random inputs to try kernels on, and is full of deprecation warnings."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def building_kernels(name: str, device: torch.device) -> Iterator[None]:
    """Around a call in which torch.compile makes kernels for a GPU: says so, and leaves all generators as they were."""
    begun = time.perf_counter()
    logger.warning("compiling kernels for %s: about half a minute, less where torch has kept them.", name)
    devices = [device] if device.type == "cuda" else []
    with _shown(name) as show, torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        show("compiling kernels")
        yield
    logger.info("compiled kernels for %s in %.0f seconds.", name, time.perf_counter() - begun)


@contextmanager
def _shown(name: str) -> Iterator[Callable[[str], None]]:
    """A line on the terminal with the stage and the time so far."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    hidden = not hf_logging.is_progress_bar_enabled()
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, disable=hidden) as progress:
        task = progress.add_task(name)
        yield lambda stage: progress.update(task, description=f"{name}: {stage}")
