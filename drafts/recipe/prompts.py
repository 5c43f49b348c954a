"""Step 4: held-out prompts for the demo, the profiler and the benchmarks.

    python drafts/recipe/prompts.py TOKENIZER drafts/prompts.jsonl

One prompt a module that no training run has seen (corpus.HELD_OUT): whole lines from a function's
`def` on, about 100 tokens, ending in the middle of the work. The text is the Python standard library's,
under the PSF licence.
"""

from __future__ import annotations

import ast
import json
import sys

from corpus import stdlib_sources
from transformers import AutoTokenizer, PreTrainedTokenizerBase

MODULES = (
    "heapq textwrap statistics shlex bisect fractions graphlib csv calendar difflib sched queue string glob trace netrc"
)
MIN_TOKENS = 100


def cut(source: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The first function long enough, cut after the line in which MIN_TOKENS are reached."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or node.end_lineno is None:
            continue
        text = ""
        for line in lines[node.lineno - 1 : node.end_lineno - 3]:
            text += line
            if len(tokenizer(text).input_ids) >= MIN_TOKENS:
                return text
    return None


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    _, _, held = stdlib_sources()
    with open(sys.argv[2], "w", encoding="utf-8") as out:
        for name in MODULES.split():
            prompt = cut(held[name], tokenizer)
            if prompt is not None:
                out.write(json.dumps({"name": name, "prompt": prompt}) + "\n")


if __name__ == "__main__":
    main()
