"""`specdec recommend` and `specdec compare`: what to run, from a saved profile; and two profiles side by side."""

from __future__ import annotations

import json
import pathlib
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console

from specdec.errors import OptionError
from specdec.profile.advice import break_even
from specdec.profile.advice import recommend as recommended
from specdec.profile.choice import only
from specdec.profile.compare import compare as compared
from specdec.profile.compare_print import print_comparison
from specdec.profile.engines import SGLANG, VLLM, notes, to_sglang, to_vllm
from specdec.profile.files import load
from specdec.profile.schema import Profile
from specdec.profile.terminal import print_recommendation
from specdec.said import one_line_errors

_DIRECTORY = "The directory that `specdec profile --out` wrote."
_BATCH = "Only for this batch size; with --vllm and --sglang 1 if omitted."
_TEMPERATURE = "Only for this temperature; with --vllm and --sglang the lowest profiled one if omitted."
_DRAFT = "Choose among the settings of this draft and plain decoding."
_PRICE = "Of the machine, in dollars: adds the cost of a million new tokens."
_VLLM = f"Print the JSON of vllm serve's --speculative-config instead ({VLLM})."
_SGLANG = f"Print flags of sglang.launch_server instead ({SGLANG})."
_TENSOR_PARALLEL = "With --vllm: of a draft model, 1 or the target's; the target's if omitted."


def recommend(
    directory: Annotated[pathlib.Path, typer.Argument(help=_DIRECTORY)],
    batch: Annotated[int | None, typer.Option(min=1, help=_BATCH)] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help=_TEMPERATURE)] = None,
    draft: Annotated[str | None, typer.Option(help=_DRAFT)] = None,
    price_per_hour: Annotated[float | None, typer.Option(help=_PRICE)] = None,
    vllm: Annotated[bool, typer.Option("--vllm", help=_VLLM)] = False,
    sglang: Annotated[bool, typer.Option("--sglang", help=_SGLANG)] = False,
    draft_tensor_parallel_size: Annotated[int | None, typer.Option(min=1, help=_TENSOR_PARALLEL)] = None,
) -> None:
    """Says what to run, and why, from a saved profile; or prints it as another engine's settings."""
    with one_line_errors():
        if vllm and sglang:
            raise OptionError("--vllm and --sglang are two engines: ask for one at a time.")
        if draft_tensor_parallel_size is not None and not vllm:
            raise OptionError("--draft-tensor-parallel-size is vLLM's: add --vllm.")
        profile = load(directory)
        if not (vllm or sglang):
            print_recommendation(
                _narrowed(profile, batch, temperature, draft, price_per_hour), Console(highlight=False)
            )
            return
        place = (1 if batch is None else batch, temperature)
        if vllm:
            config = to_vllm(profile, *place, draft=draft, draft_tensor_parallel_size=draft_tensor_parallel_size)
            text = json.dumps(config) if config else ""
        else:
            text = shlex.join(to_sglang(profile, *place, draft=draft))
        said = Console(stderr=True, highlight=False)
        for note in notes(VLLM if vllm else SGLANG, profile, *place, draft=draft):
            said.print(note, style="dim", markup=False, soft_wrap=True)
    if not text:
        raise typer.Exit(1)
    typer.echo(text)


def compare(
    a: Annotated[pathlib.Path, typer.Argument(help=_DIRECTORY)],
    b: Annotated[pathlib.Path, typer.Argument(help="Another one.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Compares two profiles on the prompts that both measured: differences b - a, prompts paired, with intervals."""
    with one_line_errors():
        print_comparison(compared(a, b, seed), Console(highlight=False))


def _narrowed(
    profile: Profile, batch: int | None, temperature: float | None, draft: str | None, price: float | None
) -> Profile:
    """The profile with its recommendations made anew, and only those that were asked for."""
    if draft is not None:
        profile = only(profile, draft)
    found = recommended(profile, price)
    wanted: list[Callable[[int, float], bool]] = []
    if batch is not None:
        wanted.append(lambda b, _: b == batch)
    if temperature is not None:
        wanted.append(lambda _, t: t == temperature)
    kept = [r for r in found if all(w(r.batch, r.temperature) for w in wanted)]
    if not kept:
        there = "; ".join(f"temperature {r.temperature:g} with batch {r.batch}" for r in found) or "nothing"
        raise OptionError(f"no setting of this batch size and temperature was profiled. There is {there}.")
    return replace(profile, recommendations=kept, break_even=break_even(profile))
