"""How often does greedy text in bfloat16 differ from `target.generate()`, and is each difference a tie?

`python -m bench.divergence` decodes prompts with the bundled pair in several ways and compares each with plain
`generate()`. The first difference of a text is arbitrated in float32 (`specdec.arbitrate`): a near-tie, where the two
tokens are closer than bfloat16's own error there, or not. transformers' own assisted generation is measured beside.
`--compile` adds compiled ways; their packages are built where they are not on disk, which takes minutes.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

import specdec
from specdec.arbitrate import first_divergence

HUMAN_EVAL = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "HumanEval.jsonl"
_K, _ROWS = 5, 4  # draft tokens, and rows of a batch
Way = Callable[[list[list[int]]], list[list[int]]]  # prompts -> new tokens


@dataclass
class Count:
    """What came of one way."""

    texts: int = 0
    tokens: int = 0  # compared: up to the first difference
    near_ties: int = 0
    others: list[str] = field(default_factory=list)

    @property
    def differing(self) -> int:
        return self.near_ties + len(self.others)


def prompts(tokenizer: Any, most: int, longest: int) -> list[list[int]]:
    """Token ids: the bundled prompts, then HumanEval's where they are there."""
    texts = [prompt["prompt"] for prompt in specdec.bundled_prompts()]
    if HUMAN_EVAL.is_file():
        texts += [json.loads(line)["prompt"] for line in HUMAN_EVAL.read_text(encoding="utf-8").splitlines()]
    ids = (tokenizer(text)["input_ids"] for text in texts)
    return [i for i in ids if len(i) <= longest][:most]


def ways(target: Any, draft: Any, new: int, pad: int, compiled: bool) -> dict[str, Way]:
    """Ways to decode: by drafter, one prompt a call and several, uncompiled and compiled; transformers' own last."""
    eos = target.generation_config.eos_token_id
    ends = set(eos if isinstance(eos, list) else [eos])

    def call(generate: Callable[..., Any], rows: list[list[int]], **asked: Any) -> list[list[int]]:
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = generate(input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, **asked)
        return [_until(row[width:].tolist(), ends) for row in out]

    def ours(drafter: specdec.Drafter | None, rows: int = 1, compile: bool = False) -> Way:
        def way(every: list[list[int]]) -> list[list[int]]:
            asked = {"drafter": drafter, "num_draft_tokens": _K if drafter else "auto", "compile": compile}
            out = []
            for begin in range(0, len(every), rows):
                out += call(lambda **a: specdec.generate(target, **a), every[begin : begin + rows], **asked)
            return out

        return way

    def theirs(**asked: Any) -> Way:
        return lambda every: [call(target.generate, [row], **asked)[0] for row in every]

    model, tree = specdec.ModelDrafter(draft), specdec.TreeDrafter(draft, num_nodes=12)
    out: dict[str, Way] = {
        "generate()": theirs(),
        "no drafts": ours(None),
        "model": ours(model),
        "tree": ours(tree),
        "n-gram": ours(specdec.NgramDrafter(min_ngram=1)),
        "mixed": ours(specdec.MixedDrafter([specdec.SuffixDrafter(), model])),
        f"model, batches of {_ROWS}": ours(model, _ROWS),
    }
    if compiled:
        out |= {
            "compiled, no drafts": ours(None, compile=True),
            "compiled, model": ours(model, compile=True),
            "compiled, tree": ours(tree, compile=True),
        }
    return {**out, "transformers, assisted": theirs(assistant_model=draft)}


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    """Up to the first end, which counts."""
    return next((tokens[: i + 1] for i, token in enumerate(tokens) if token in ends), tokens)


def compare(target: Any, every: list[list[int]], sides: dict[str, Way], chunk: int) -> Iterator[dict[str, Count]]:
    """The counts so far, after each chunk of prompts."""
    (_, plain), *others = sides.items()
    counts = {name: Count() for name, _ in others}
    for begin in range(0, len(every), chunk):
        rows = every[begin : begin + chunk]
        expected = plain(rows)
        for name, way in others:
            print(f"{begin + len(rows)} of {len(every)}: {name}", file=sys.stderr, flush=True)
            for prompt, one, other in zip(rows, expected, way(rows), strict=True):
                note(counts[name], target, prompt, one, other)
        yield counts


def note(count: Count, target: Any, prompt: Sequence[int], one: Sequence[int], other: Sequence[int]) -> None:
    """Adds the comparison of two texts."""
    found = first_divergence(target, prompt, one, other)
    count.texts += 1
    count.tokens += len(one) if found is None else found.position + 1
    if found is None:
        if len(one) != len(other):
            count.others.append(f"lengths {len(one)} and {len(other)}")
    elif found.is_near_tie:
        count.near_ties += 1
    else:
        count.others.append(f"position {found.position}: gap {found.gap:.4f}, noise {found.noise:.4f}")


def show(counts: dict[str, Count], new: int) -> None:
    """A table in Markdown."""
    print(f"\n| {new} new tokens, bfloat16 | texts | differ | near-ties | others | decisions | one difference in |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, c in counts.items():
        rate = f"{c.tokens // c.differing}" if c.differing else f"> {c.tokens}"
        print(f"| {name} | {c.texts} | {c.differing} | {c.near_ties} | {len(c.others)} | {c.tokens} | {rate} |")
    for name, c in counts.items():
        for other in c.others:
            print(f"  {name}: {other}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.divergence", description=__doc__)
    parser.add_argument("--prompts", type=int, default=40, help="how many (40)")
    parser.add_argument("--new-tokens", type=int, default=64, help="of each (64)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (2)")
    parser.add_argument("--longest", type=int, default=320, help="longest prompt in tokens (320)")
    parser.add_argument("--compile", action="store_true", help="compiled ways as well")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    target, draft, tokenizer = specdec.bundled_pair()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"{versions}, {platform.machine()}, {asked.threads} threads")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    every = prompts(tokenizer, asked.prompts, asked.longest)
    sides = ways(target, draft, asked.new_tokens, pad, asked.compile)
    counts: dict[str, Count] = {}
    for counts in compare(target, every, sides, _ROWS):
        show(counts, asked.new_tokens)


if __name__ == "__main__":
    main()
