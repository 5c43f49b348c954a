"""Step 1: the corpus. Tokenises the running Python's own standard library into three flat arrays.

    python drafts/recipe/corpus.py WORK [--tokenizer drafts/pair/target]

Writes WORK/lib.npy (library modules), WORK/test.npy (their tests) and WORK/held.npy (held-out
modules), each a uint16 array in which every file starts with <|endoftext|>. Without --tokenizer a
byte-level BPE of 4096 entries is trained on the library modules and saved beside them.

The standard library is under the PSF licence; nothing of it is copied into this repository except
the short prompts in drafts/prompts.jsonl.
"""

from __future__ import annotations

import argparse
import pathlib
import sysconfig
from collections.abc import Iterable

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

# Modules (and their tests) that no training run may see: prompts and held-out losses come from them.
HELD_OUT = frozenset(
    [
        "heapq",
        "textwrap",
        "statistics",
        "shlex",
        "bisect",
        "fractions",
        "graphlib",
        "csv",
        "calendar",
        "difflib",
        "zipapp",
        "sched",
        "queue",
        "colorsys",
        "string",
        "netrc",
        "glob",
        "fnmatch",
        "tabnanny",
        "trace",
    ]
)
VOCAB_SIZE = 4096


def stdlib_sources() -> tuple[list[str], list[str], dict[str, str]]:
    """Returns (library texts, test texts, held-out texts by module name)."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    library: list[str] = []
    tests: list[str] = []
    held: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "lib2to3"} & set(path.parts):
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # deliberately mis-encoded test files
        if not 400 < len(text) < 400_000:
            continue
        is_test = bool({"test", "tests", "idle_test"} & set(path.parts))
        if path.stem.removeprefix("test_") in HELD_OUT:
            if not is_test:
                held[path.stem] = text
        else:
            (tests if is_test else library).append(text)
    return library, tests, held


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which <|endoftext|> is 0 and <|pad|> is 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        pad_token="<|pad|>",
        padding_side="left",
        model_max_length=1024,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> np.ndarray:
    """Concatenates the texts' ids, <|endoftext|> before each."""
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(list(texts)):
        ids += [0, *encoding.ids]
    return np.array(ids, dtype=np.uint16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path, help="use this one instead of training one")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    library, tests, held = stdlib_sources()
    if args.tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    else:
        tokenizer = train_tokenizer(library)
        tokenizer.save_pretrained(args.work)
    for name, texts in (("lib", library), ("test", tests), ("held", held.values())):
        ids = encode(tokenizer, texts)
        np.save(args.work / f"{name}.npy", ids)
        print(f"{name}: {len(texts)} files, {len(ids):,} tokens")


if __name__ == "__main__":
    main()
