"""What a run of the comparison comes to: each side's figures, gains over its own engine's plain, and the statement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

from bench.harness import Comparison
from bench.peers.sides import EAGER, OURS, TRANSFORMERS, Named
from bench.peers.workers.wire import Loaded, Text
from bench.sides import Batch
from bench.texts import Judge, Triple

REFERENCE = f"{TRANSFORMERS} plain"


def figures(
    comparison: Comparison[Batch], sides: Sequence[Named], loaded: dict[str, Loaded], judge: Judge | None
) -> dict[str, Any]:
    """By side: tokens/s, counts, the gain over its own plain, texts equal to `target.generate()`'s."""
    out = {}
    for side in sides:
        texts: list[Text] = comparison.details(side.name)
        tokens = sum(len(text.tokens) for text in texts)
        calls, drafted, accepted = (_total(texts, name) for name in ("target_calls", "drafted", "accepted"))
        out[side.name] = {
            "engine": side.engine,
            "mode": side.mode,
            "tokens_per_second": comparison.rate(side.name),
            "tokens": tokens,
            "target_calls": calls,
            "drafted": drafted,
            "acceptance_rate": accepted / drafted if drafted and accepted is not None else None,
            "tokens_a_call": tokens / calls if calls else None,
        }
        own_plain = f"{side.engine} plain"
        if own_plain in comparison.sides:
            out[side.name]["gain"] = comparison.ratio(side.name, own_plain).spread
        if judge is not None:
            out[side.name]["texts"] = judge.count(_triples(comparison, side.name))
        if side.name in loaded:
            about = loaded[side.name]
            out[side.name] |= {"version": about.engine, "dtype": about.dtype, "note": about.note}
    return out


def statement(comparison: Comparison[Batch], sides: Sequence[Named]) -> list[dict[str, Any]]:
    """Our best gain over our own compiled plain beside each peer's best gain over its own plain.

    "fixed": both with the same number of drafted tokens; "any": ours with "auto" as well.
    """
    out = []
    for engine in dict.fromkeys(side.engine for side in sides):
        if engine in (OURS, EAGER) or f"{engine} plain" not in comparison.sides:
            continue
        theirs = _best(comparison, sides, engine, lambda mode: mode != "plain")
        for which, chosen in (
            ("fixed", lambda mode: mode in ("draft", "ngram")),
            ("any", lambda mode: mode != "plain"),
        ):
            ours = _best(comparison, sides, OURS, chosen)
            if ours is None or theirs is None:
                continue
            rounds = [a / b for a, b in zip(_gains(comparison, ours), _gains(comparison, theirs), strict=True)]
            out.append(
                {
                    "peer": engine,
                    "which": which,
                    "ours": ours.mode,
                    "our_gain": median(_gains(comparison, ours)),
                    "theirs": theirs.mode,
                    "their_gain": median(_gains(comparison, theirs)),
                    "ours_over_theirs": [median(rounds), min(rounds), max(rounds)],
                    "held": median(rounds) >= 1,
                }
            )
    return out


def absolute(comparison: Comparison[Batch], sides: Sequence[Named]) -> list[dict[str, Any]]:
    """Our fastest side over each other engine's fastest and over its plain decoding, and our plain over its plain."""
    fastest = {
        engine: max((s for s in sides if s.engine == engine), key=lambda s: comparison.rate(s.name))
        for engine in dict.fromkeys(s.engine for s in sides)
    }
    out = []
    for ours in (OURS, EAGER):
        for engine, theirs in fastest.items():
            pairs = [(fastest[ours].name, theirs.name), (f"{ours} plain", f"{engine} plain")]
            pairs += [(fastest[ours].name, f"{engine} plain")]
            out += [
                {"ours": side, "theirs": over, "ratio": comparison.ratio(side, over).spread}
                for side, over in dict.fromkeys(pairs)
                if engine not in (OURS, EAGER) and over in comparison.sides
            ]
    return out


def _best(
    comparison: Comparison[Batch], sides: Sequence[Named], engine: str, chosen: Callable[[str], bool]
) -> Named | None:
    found = [side for side in sides if side.engine == engine and chosen(side.mode)]
    return max(found, key=lambda side: median(_gains(comparison, side)), default=None)


def _gains(comparison: Comparison[Batch], side: Named) -> list[float]:
    """Of each round."""
    plain = comparison.rates(f"{side.engine} plain")
    return [rate / base for rate, base in zip(comparison.rates(side.name), plain, strict=True)]


def _total(texts: Sequence[Text], name: str) -> int | None:
    values = [getattr(text, name) for text in texts]
    return None if any(value is None for value in values) else sum(values)


def _triples(comparison: Comparison[Batch], side: str) -> Iterator[Triple]:
    """Each prompt, the side's text, and the reference's of the same round."""
    reference = {(r.item, r.round): r.outcome.detail.tokens for r in comparison.runs if r.side == REFERENCE}
    for run in comparison.runs:
        if run.side == side:
            prompt = comparison.items[run.item]["input_ids"][0].tolist()
            yield prompt, run.outcome.detail.tokens, reference[run.item, run.round]
