"""One teacher-forced pass of target and drafts over the target's own texts, and the rounds that follow from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

import torch

from specdec.errors import SpecdecError
from specdec.profile.contenders import Contender
from specdec.profile.engine import Engine
from specdec.profile.measures import NAMES, TokenMeasures, measure
from specdec.profile.options import Options
from specdec.profile.replay import replayed_rounds
from specdec.profile.rounds import Rounds, expected_rounds
from specdec.profile.schema import PLAIN
from specdec.profile.scoring import logits_along
from specdec.profile.texts import Tick
from specdec.profile.workspace import Workspace
from specdec.target import ModelRunner


def measure_agreement(
    contenders: Sequence[Contender],
    engine: Engine,
    options: Options,
    space: Workspace,
    note: Callable[[str], None],
    tick: Tick,
) -> None:
    """Adds one record a text and contender (and one of the target by itself, named plain) to this process' file.

    Args:
        note: told which text could not be read.
    """
    done = {(r["index"], r["temperature"]) for r in space.own("agreement") if r["last"]}
    runner = ModelRunner(engine.target)
    with space.open("agreement") as records:
        for number, text in enumerate(r for r in space.own("texts") if "text" in r):
            if (text["index"], text["temperature"]) not in done:
                try:
                    found = _of_text(text, contenders, engine, runner, options)
                except (SpecdecError, torch.OutOfMemoryError) as error:
                    note(f"the text of prompt {text['index']} was not compared: {type(error).__name__}")
                else:
                    last = len(found) - 1
                    records.add_all([r | {"last": place == last} for place, r in enumerate(found)])
            tick(number + 1)


def _of_text(
    text: dict[str, Any], contenders: Sequence[Contender], engine: Engine, runner: ModelRunner, options: Options
) -> list[dict[str, Any]]:
    prompt, new, temperature = text["prompt"], text["text"], text["temperature"]
    target = logits_along(engine.target, prompt, new)
    tokens = torch.tensor(new, device=target.device)
    common = {k: text[k] for k in ("index", "key", "domain", "temperature")} | {"context": len(prompt)}
    own = to_lists(measure(target, target, tokens, temperature))
    found = [common | {"draft": PLAIN, "tokens": new} | {k: own[k] for k in ("target_entropy", "p")}]
    for contender in contenders:
        record = common | {"draft": contender.info.name}
        measures = None
        if contender.scorer is not None:
            measures = measure(target, logits_along(contender.scorer, prompt, new), tokens, temperature)
            record |= to_lists(measures)
        rounds = {k: _rounds(contender, k, measures, text, runner, options) for k in options.num_draft_tokens}
        record["rounds"] = {str(k): list(astuple(r)) for k, r in rounds.items() if r is not None}
        found.append(record)
    return found


def _rounds(
    contender: Contender,
    num_draft_tokens: int,
    measures: TokenMeasures | None,
    text: dict[str, Any],
    runner: ModelRunner,
    options: Options,
) -> Rounds | None:
    """What the loop is expected to take for one text; None where only the loop itself can tell."""
    if contender.info.predicts == "chain" and measures is not None:
        return expected_rounds(measures.share.tolist(), num_draft_tokens, options.new_tokens)
    if contender.info.predicts == "replay":
        return replayed_rounds(
            contender.drafter,
            runner,
            text["prompt"],
            text["text"],
            num_draft_tokens,
            options.new_tokens,
            do_sample=text["temperature"] > 0,
        )
    return None


def to_lists(measures: TokenMeasures) -> dict[str, list[Any]]:
    """For JSON: figures with six digits; an infinite divergence becomes None."""
    out: dict[str, list[Any]] = {}
    for name in NAMES:
        values = getattr(measures, name).tolist()
        if name not in ("greedy", "rank"):
            values = [float(f"{v:.6g}") if math.isfinite(v) else None for v in values]
        out[name] = [int(v) if isinstance(v, bool) else v for v in values]
    return out
