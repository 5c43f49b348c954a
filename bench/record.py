"""What a comparison of generating sides leaves in the record, and whether its sides did the same work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

import specdec
from bench import guard
from bench.harness import Comparison
from bench.prompts import Batch
from bench.settings import Settings
from bench.sides import Engine, Generated
from bench.texts import Judge, Triple, UnequalWorkError, fail_if_others


def describe(
    benchmark: Any,
    comparison: Comparison[Batch],
    settings: Settings,
    target: PreTrainedModel,
    temperature: float,
    batch_size: int,
    kinds: Sequence[str] | None = None,
) -> None:
    """Puts the circumstances and each side's own numbers into the benchmark's record.

    Args:
        kinds: of each item's prompts; with more than one the ratios are given by kind as well.
    """
    generating = [side for side in comparison.sides if isinstance(comparison.details(side)[0], Generated)]
    judge = Judge(target)
    benchmark.extra_info |= settings.info() | {
        "kind": "generate",
        "dtype": str(target.dtype).removeprefix("torch."),
        "temperature": temperature,
        "batch": batch_size,
        "prompts": len(comparison.items) * batch_size,
        "context": round(sum(_prompt_tokens(item) for item in comparison.items) / len(comparison.items)),
        "kinds": {kind: comparison_of(comparison, kinds or [], kind) for kind in dict.fromkeys(kinds or [])},
        "sides": {side: _summary(comparison, side, judge, greedy=temperature == 0) for side in generating},
        "ratios": [],
        "bounds": [],
    }
    by_kind = benchmark.extra_info["kinds"]
    benchmark.extra_info["kinds"] = by_kind if len(by_kind) > 1 else {}


def comparison_of(comparison: Comparison[Batch], kinds: Sequence[str], kind: str) -> dict[str, dict[str, Any]]:
    """Each side over plain decoding on the items of one kind: ratio, low, high, acceptance length, items."""
    items = {i for i, k in enumerate(kinds) if k == kind}
    part = Comparison(comparison.sides, comparison.items, [r for r in comparison.runs if r.item in items])
    found = {}
    for side in part.sides:
        if side == "plain" or not isinstance(part.details(side)[0], Generated):
            continue
        ratio, total = part.ratio(side, "plain"), _stats(part.details(side))
        length = None if total is None else total.acceptance_length
        found[side] = {
            "ratio": ratio.median,
            "low": ratio.low,
            "high": ratio.high,
            "acceptance_length": length,
            "items": len(items),
        }
    return found


def ratio(
    benchmark: Any, comparison: Comparison[Batch], side: str, over: str, goal: float | None = None, note: str = ""
) -> None:
    """Adds a ratio to the record."""
    found = comparison.ratio(side, over)
    benchmark.extra_info["ratios"].append(
        {"side": side, "over": over, "ratio": found.median, "low": found.low, "high": found.high}
        | ({"goal": goal} if goal else {})
        | ({"note": note} if note else {})
    )


def check(
    benchmark: Any, comparison: Comparison[Batch], plain: Mapping[Engine, str], ours: Mapping[str, Engine]
) -> None:
    """The suite's own faults: ratios that cannot be, and greedy sides that did not do the same work.

    Args:
        plain: each engine's plain decoding; all but the comparison's "plain" are ours too.
        ours: our sides and their engines.

    Raises:
        ImpossibleRatioError, UnequalWorkError: after all is recorded.
    """
    found = guard.bounds(comparison, plain, ours)
    benchmark.extra_info["bounds"] += [bound.info() for bound in found]
    benchmark.extra_info["not_judged"] = sorted(set(ours) - {bound.side for bound in found})
    benchmark.extra_info["round_ms"] = {engine: guard.milliseconds(comparison, engine) for engine in plain}
    fail_if_unequal(benchmark.extra_info["sides"], [*ours, *plain.values()])
    guard.fail_if_impossible(found)


def fail_if_unequal(sides: Mapping[str, Mapping[str, Any]], ours: Sequence[str]) -> None:
    """Raises UnequalWorkError if a greedy side's texts differ from plain decoding's by more than near-ties.

    Args:
        sides: their summaries; sampled ones have nothing to be compared with.
        ours: whose fault it would be. What transformers' own sides write is only told.
    """
    for side in ours:
        equal = sides[side].get("rows_equal_to_plain")
        if equal is None:
            continue
        fail_if_others(side, equal)
        if equal["equal"] == equal["texts"] and sides[side]["tokens"] != sides["plain"]["tokens"]:
            raise UnequalWorkError(
                f"{side} wrote the same texts as target.generate() and {sides[side]['tokens']} tokens where that wrote "
                f"{sides['plain']['tokens']}: tokens are counted wrongly."
            )


def _prompt_tokens(batch: Batch) -> int:
    return batch["input_ids"].shape[1]


def _triples(comparison: Comparison[Batch], side: str) -> Iterator[Triple]:
    """Each row's prompt, the side's text, and plain decoding's of the same round."""
    plain = {(r.item, r.round): r.outcome.detail.rows for r in comparison.runs if r.side == "plain"}
    for run in comparison.runs:
        if run.side == side:
            batch = comparison.items[run.item]
            for row, (new, other) in enumerate(zip(run.outcome.detail.rows, plain[run.item, run.round], strict=True)):
                yield batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist(), new, other


def _stats(calls: Sequence[Generated]) -> specdec.SpeculationStats | None:
    stats = [call.stats for call in calls if call.stats is not None]
    return sum(stats, specdec.SpeculationStats()) if stats else None


def _summary(comparison: Comparison[Batch], side: str, judge: Judge, greedy: bool) -> dict[str, Any]:
    calls: list[Generated] = comparison.details(side)
    tokens = sum(len(row) for call in calls for row in call.rows)
    summary: dict[str, Any] = {
        "tokens_per_second": comparison.rate(side),
        "tokens": tokens,
        "target_forwards": sum(call.target_forwards for call in calls),
    }
    if greedy:  # rounding may tip a tie between two tokens, in bfloat16 above all
        summary["rows_equal_to_plain"] = judge.count(_triples(comparison, side))
    total = _stats(calls)
    if total is not None:
        summary["acceptance_rate"], summary["acceptance_length"] = total.acceptance_rate, total.acceptance_length
    return summary
