"""`specdec profile`: the command line's edge around `run.py`."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers.utils import logging as hf_logging

from specdec.errors import OptionError
from specdec.loading import DTYPES
from specdec.profile.html import write_html
from specdec.profile.options import Options, parse_counts, parse_temperatures
from specdec.profile.run import PHASES, Profiling
from specdec.profile.sharing import Team
from specdec.profile.terminal import print_report
from specdec.said import one_line_errors

_SAYS = {
    "texts": "the target writes",
    "agreement": "drafts read along",
    "costs": "costs of a round",
    "loop": "the loop runs",
}
_STRATEGY = (
    "Other ways to draft, separated by commas: ngram, suffix, suffix:INDEX, early-exit:auto, early-exit:LAYERS, "
    "lookahead, tree (of each --draft), cross-tokenizer (for a --draft of another tokenizer)."
)
_PROMPTS = (
    "Prompts: question.jsonl of Spec-Bench or MT-Bench, HumanEval, GSM8K, any jsonl with prompt, text or messages, "
    "ShareGPT conversations, plain text. Held-out code if omitted."
)


_DEVICE = "cpu, cuda, ...; auto spreads a large target. cpu if omitted; under a launcher each process' own GPU."


def profile(
    target: Annotated[str | None, typer.Option(help="Directory or hub id; the bundled pair if omitted.")] = None,
    draft: Annotated[list[str] | None, typer.Option(help="Draft model; may be given several times.")] = None,
    strategy: Annotated[str, typer.Option(help=_STRATEGY)] = "",
    prompts: Annotated[pathlib.Path | None, typer.Option(help=_PROMPTS)] = None,
    max_prompts: Annotated[int | None, typer.Option(min=1, help="Of the file, its domains in turn.")] = None,
    loop_prompts: Annotated[int, typer.Option(min=1, help="Of them, prompts to run the loop on.")] = 5,
    new_tokens: Annotated[int, typer.Option(min=2, help="Most new tokens a prompt.")] = 48,
    temperature: Annotated[str, typer.Option(help="As in 0,0.7,1; 0 is greedy.")] = "0,1",
    num_draft_tokens: Annotated[str, typer.Option("--num-draft-tokens", "-k", help="As in 1-8 or 2,4.")] = "1-8",
    batch: Annotated[str, typer.Option(help="Batch sizes, as in 1,4.")] = "1",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each setting on each prompt.")] = 1,
    chat: Annotated[bool | None, typer.Option("--chat/--no-chat", help="Put prompts into the chat template; messages "
                                              "only if omitted.")] = None,
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="Run compiled graphs.")] = False,
    price_per_hour: Annotated[float | None, typer.Option(help="Adds the cost of a million tokens.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16, float32 or auto.")] = "auto",
    device: Annotated[str | None, typer.Option(help=_DEVICE)] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's choice if omitted.")] = None,
    out: Annotated[pathlib.Path, typer.Option(help="Directory for all of it.")] = pathlib.Path("specdec-profile"),
    full: Annotated[bool, typer.Option("--full", help="Print costs, trees, domains and ranks, too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run ended.")] = False,
) -> None:  # fmt: skip
    """Measures whether a draft pays, how much, with which settings, and what a token then costs."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    with one_line_errors(ValueError):
        if dtype not in ("auto", *DTYPES):
            raise OptionError(f"--dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}.")
        options = Options(
            target=target,
            drafts=tuple(draft or ()),
            strategies=tuple(s.strip() for s in strategy.split(",") if s.strip()),
            prompts=prompts,
            max_prompts=max_prompts,
            loop_prompts=loop_prompts,
            new_tokens=new_tokens,
            temperatures=parse_temperatures(temperature),
            num_draft_tokens=parse_counts(num_draft_tokens, "num_draft_tokens"),
            batches=parse_counts(batch, "batch"),
            repeats=repeats,
            seed=seed,
            dtype=dtype,
            device=device or "cpu",
            compile=compile,
            chat="auto" if chat is None else chat,
            price_per_hour=price_per_hour,
        )
        team = Team.joined(device)
        with _progress(team.leads) as told:
            profiling = Profiling(options, out, resume, told, team)
            found = profiling.run()
        if found is None:
            return
        page = out / "report.html"
        write_html(found, page)
        console = Console(highlight=False)
        print_report(found, console, is_full=full)
        console.print(f"\nThe whole report, with pictures: {page}", markup=False, soft_wrap=True)
    if profiling.interrupted:
        raise typer.Exit(130)


@contextmanager
def _progress(is_shown: bool) -> Iterator[Any]:
    """A bar a phase, on standard error; nothing in processes that do not lead."""
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown) as bars:
        tasks: dict[str, TaskID] = {
            phase: bars.add_task(f"{number} {_SAYS[phase]}", total=None, start=False)
            for number, phase in enumerate(PHASES, start=1)
        }

        def told(phase: str, done: int, total: int) -> None:
            task = tasks[phase]
            if not bars.tasks[task].started:
                bars.start_task(task)
            bars.update(task, completed=done, total=total)

        yield told
