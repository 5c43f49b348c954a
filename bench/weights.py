"""The target of `test_weights.py` as a folder that other engines can load, and its package.

python -m bench.weights save DIR [--size 170M] [--dtype bfloat16]     # config, safetensors; no tokenizer
python -m bench.weights build [--size 170M] [--dtype bfloat16] [--threads 2]     # the compiled package, minutes
"""

from __future__ import annotations

import argparse
import pathlib
from time import perf_counter

import torch

from bench.constructed import SIZES, heavy
from specdec.compiled import compiled
from specdec.probe import probe
from specdec.stats import GraphUse
from specdec.target import ModelRunner


def graph_of(runner: ModelRunner) -> ModelRunner:
    """The runner through a package; built where none is on disk."""
    use = GraphUse()
    probe(runner)
    found = compiled(runner, True, 0, use, "target")
    assert use.roles == {"target": "compiled"}, use.roles
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["save", "build"])
    parser.add_argument("folder", nargs="?", type=pathlib.Path)
    parser.add_argument("--size", choices=list(SIZES), default="170M")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = heavy(options.size, getattr(torch, options.dtype))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} million parameters, {options.dtype}")
    if options.what == "save":
        if options.folder is None:
            parser.error("save wants a folder")
        model.save_pretrained(options.folder)
        return
    begun = perf_counter()
    graph_of(ModelRunner(model))
    print(f"package ready after {perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
