"""The comparison's record -> Markdown, for `bench.report`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.markdown import equal_texts, spread, table

KIND = "peers"


def parts(infos: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every comparison of peers among pytest-benchmark's `extra_info`s."""
    return [part for info in infos if info["kind"] == KIND for part in _one(info)]


def _one(info: Mapping[str, Any]) -> Iterator[str]:
    sampling = "greedy" if info["temperature"] == 0 else f"temperature {info['temperature']}"
    yield f"### Peers: {info['dtype']}, {sampling}"
    yield (
        f"{info['prompts']} prompts, {info['new_tokens']} new tokens each, {info['draft_tokens']} drafted tokens where "
        f"fixed, {info['threads']} threads on {info['cpus']} CPUs, {info['rounds']} rounds; all sides alternate prompt "
        f"by prompt. torch {info['torch']}, transformers {info['transformers']} (ours and transformers). A gain is "
        "tokens a second over those of the same engine's plain decoding: the median of the rounds, lowest to highest "
        "in brackets. Acceptance length: new tokens over target calls, the prompt's included."
    )
    yield _sides(info["sides"])
    engines = _engines(info["sides"])
    if engines:
        yield engines
    if info["statement"]:
        yield "Our best gain over our own compiled plain decoding, beside each other engine's best over its own:"
        yield _statement(info["statement"])
    yield "Ours over each other engine, round by round:"
    yield table(
        "ours|theirs|ours / theirs",
        [[_name(o["ours"]), _name(o["theirs"]), spread(o["ratio"])] for o in info["absolute"]],
    )
    yield f"Absolute order, each engine's best: {_order(info['sides'])}."
    if info["skipped"]:
        yield "\n".join(f"- {name} skipped: {_line(why)}" for name, why in info["skipped"].items())


def _sides(sides: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            side["engine"],
            _mode(side),
            f"{side['tokens_per_second']:.1f}",
            spread(side.get("gain")),
            _optional(side["target_calls"], "d"),
            "" if side["mode"] == "plain" else _optional(side["acceptance_rate"], ".2f"),
            _optional(side["tokens_a_call"], ".2f"),
            equal_texts(side.get("texts")),
        ]
        for side in sides.values()
    ]
    return table(
        "engine|mode|tokens/s|gain over its own plain|target calls|acceptance rate|acceptance length|"
        "texts equal to generate()'s",
        rows,
    )


def _engines(sides: Mapping[str, Mapping[str, Any]]) -> str:
    """What each peer computes in, once where its modes agree."""
    said: dict[str, None] = {}
    for side in sides.values():
        if "dtype" in side:
            said.setdefault(f"- {side['engine']}: {side['version']}, {side['dtype']}.")
            if side["note"]:
                said.setdefault(f"- {side['engine']} {_mode(side)}: {side['note']}.")
    return "\n".join(said)


def _statement(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for one in found:
        what = "same number of drafted tokens" if one["which"] == "fixed" else 'ours may use "auto"'
        rows.append(
            [
                one["peer"],
                what,
                f"{one['our_gain']:.2f} ({_name(one['ours'])})",
                f"{one['their_gain']:.2f} ({_name(one['theirs'])})",
                spread(one["ours_over_theirs"]),
                "yes" if one["held"] else "**no**",
            ]
        )
    return table("against||our gain|its gain|ours / its|at least as much", rows)


def _order(sides: Mapping[str, Mapping[str, Any]]) -> str:
    best: dict[str, Mapping[str, Any]] = {}
    for side in sides.values():
        other = best.get(side["engine"])
        if other is None or side["tokens_per_second"] > other["tokens_per_second"]:
            best[side["engine"]] = side
    ranked = sorted(best.values(), key=lambda side: -side["tokens_per_second"])
    names = (f"{s['engine']} {_mode(s)} ({s['tokens_per_second']:.0f} tokens/s)" for s in ranked)
    return ", ".join(names)


def _mode(side: Mapping[str, Any]) -> str:
    return _name(side["mode"])


def _name(mode: str) -> str:
    return mode.replace("ngram", "n-gram")


def _optional(value: float | None, form: str) -> str:
    return "not told" if value is None else format(value, form)


def _line(text: str) -> str:
    """An error of several lines, short enough for a list."""
    return " ".join(text.split())[:400]
