"""All records of a directory -> one `Profile`."""

from __future__ import annotations

import datetime
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median
from typing import Any

from transformers import PreTrainedTokenizerBase

from specdec.profile.advice import break_even, recommend, tree_advice, uppers
from specdec.profile.agreement_summary import agreements_of
from specdec.profile.example_texts import examples_of
from specdec.profile.fit import Costs, Key, Load, fit_costs, plain_points
from specdec.profile.loop_summary import measured_of, times_of
from specdec.profile.options import Options
from specdec.profile.prediction import predicted_of
from specdec.profile.schema import PLAIN, VERSION, Cost, Draft, Machine, Profile, Setting, Subject, Times
from specdec.profile.tables import write_prompts, write_tokens
from specdec.profile.workspace import Workspace

_EXAMPLE_TOKENS = 4  # the number of draft tokens that examples show, or the nearest that was run


@dataclass(frozen=True, slots=True)
class Facts:
    """What the records do not hold."""

    machine: Machine
    target: str
    parameters: int
    prompts: str
    skipped: Mapping[str, int]
    drafts: Sequence[Draft]
    predicts_batches: bool  # rows of a batch go on alone; else predictions are for one row


def summarise(
    space: Workspace,
    options: Options,
    facts: Facts,
    tokenizer: PreTrainedTokenizerBase,
    loop_prompts: Sequence[int],
    notes: Sequence[str],
    *,
    complete: bool,
) -> Profile:
    """Reads every record once or twice, one at a time; writes the tables beside the profile."""
    agreements, more = agreements_of(space.all("agreement"), options.seed)
    costs = fit_costs(chain(space.all("costs"), plain_points(space.all("loop"))))
    settings = _settings(space, options, facts, costs, loop_prompts)
    subject, names = _subject(space, options, facts, tokenizer)
    profile = Profile(
        version=VERSION,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        complete=complete,
        machine=facts.machine,
        subject=subject,
        drafts=list(facts.drafts),
        agreements=agreements,
        settings=settings,
        costs=_costs(space, costs),
        cost_models=[model for c in costs.values() for model in c.models.values()],
        uppers=[],
        recommendations=[],
        trees=[tree_advice(a, size) for a in agreements for size in options.trees if sum(a.ranks) > 0],
        break_even={},
        examples=examples_of(space.all("loop"), names, tokenizer, _shown(settings)),
        notes=[*notes, *more],
        tokens_file=write_tokens(space.all("agreement"), space.root),
    )
    write_prompts(space.all("agreement"), space.all("loop"), space.root)
    profile = replace(profile, uppers=uppers(profile.settings, profile.costs))
    return replace(profile, recommendations=recommend(profile, options.price_per_hour), break_even=break_even(profile))


def _settings(
    space: Workspace, options: Options, facts: Facts, costs: Mapping[Key, Costs], loop_prompts: Sequence[int]
) -> list[Setting]:
    """Every setting that was predicted or measured."""
    batches = options.batches if facts.predicts_batches else [b for b in options.batches if b == 1]
    there = predicted_of(space.all("agreement"), costs, batches, options.seed, set(loop_prompts))
    overall = predicted_of(space.all("agreement"), costs, batches, options.seed)
    measured = measured_of(space.all("loop"), options.seed, levels=not facts.predicts_batches)
    order = {PLAIN: -1} | {d.name: i for i, d in enumerate(facts.drafts)}
    keys = sorted({*there, *overall, *measured}, key=lambda k: (k[1], k[2], order.get(k[0], 0), k[3]))
    return [Setting(*k, there.get(k), measured.get(k), overall.get(k)) for k in keys]


def _subject(
    space: Workspace, options: Options, facts: Facts, tokenizer: PreTrainedTokenizerBase
) -> tuple[Subject, dict[int, str]]:
    """What was profiled, and names of the prompts that examples may show."""
    skipped, domains, names = Counter(facts.skipped), Counter[str](), dict[int, str]()
    for record in space.all("texts"):
        if "skip" in record:
            skipped[record["skip"]] += 1
        elif record["last"]:
            domains[record["domain"]] += 1
            if len(names) < 1000:
                names[record["index"]] = record["name"]
    subject = Subject(
        target=facts.target,
        parameters=facts.parameters,
        tokenizer=str(tokenizer.name_or_path),
        prompts=facts.prompts,
        used=sum(domains.values()),
        skipped=dict(skipped),
        domains=dict(domains),
        new_tokens=options.new_tokens,
        seed=options.seed,
    )
    return subject, names


def _costs(space: Workspace, models: Mapping[Key, Costs]) -> list[Cost]:
    """The grid as it was measured, and what the model says there."""
    points: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for record in space.all("costs"):
        if record["rounds"]:
            points[tuple(record["point"])].append(record)
    found = []
    for (draft, k, batch, context, sampled), repeats in points.items():
        depth, share, place = (median(r[name] for r in repeats) for name in ("depth", "share", "context"))
        fitted = models[draft, sampled].round_seconds(Load(batch, place, depth, share))
        found.append(Cost(draft, k, batch, context, _times(repeats), *fitted, sampled))
    return found


def _times(repeats: Sequence[Mapping[str, Any]]) -> Times:
    return times_of(
        [[r[name] / r["rounds"] for name in ("draft", "verify", "other")] for r in repeats],
        [r["prefill"] / max(r["prompt_tokens"], 1) for r in repeats],
    )


def _shown(settings: Sequence[Setting]) -> set[tuple[str, float, int]]:
    """The settings whose texts are shown: for each draft and temperature the one nearest to four draft tokens."""
    by_place: dict[tuple[str, float], list[int]] = defaultdict(list)
    for s in settings:
        if s.measured is not None and not s.is_plain:
            by_place[s.draft, s.temperature].append(s.num_draft_tokens)
    return {(*place, min(ks, key=lambda k: abs(k - _EXAMPLE_TOKENS))) for place, ks in by_place.items()}
