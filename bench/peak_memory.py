"""Peak memory of one call beyond the loaded model, in a process of its own: Linux's high-water mark.

python -m bench.peak_memory SIDE CONTEXT [--size small] [--new-tokens 32] [--draft-tokens 8]

Sides: transformers, plain, chain (n-gram drafts, k fixed), compiled, lookup (transformers' prompt lookup, same k).
Prints one JSON object, bytes. Each side is called once before, over a short prompt, so that what torch and the
libraries allocate for good is not counted. With MALLOC_MMAP_THRESHOLD_=65536 in the environment, as
test_long_context.py has it, the mark is that of live tensors; without it glibc keeps freed ones of some megabytes.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any

import torch

import specdec
from bench.constructed import SIZES, heavy

SIDES = ("transformers", "lookup", "plain", "chain", "compiled")


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def peak_of(call: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that the process grew by at most during the call, and its result."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from now
    before = _status("VmRSS")
    result = call()
    return _status("VmHWM") - before, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("context", type=int)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--draft-tokens", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = heavy(options.size, getattr(torch, options.dtype))
    ids = torch.randint(2, 16_000, (1, options.context), generator=torch.Generator().manual_seed(0))
    ids[0, -8:] = ids[0, 8:16]  # n-grams find something
    kwargs: dict[str, Any] = {
        "max_new_tokens": options.new_tokens,
        "do_sample": False,
        "return_dict_in_generate": True,
    }
    generate: Any = model.generate
    if options.side == "lookup":
        kwargs["prompt_lookup_num_tokens"] = options.draft_tokens
    if options.side not in ("transformers", "lookup"):
        drafter = specdec.NgramDrafter() if options.side == "chain" else None
        decoder = specdec.SpeculativeDecoder(
            drafter, options.draft_tokens if drafter else "auto", compile=options.side == "compiled"
        )
        generate = lambda **given: decoder.generate(model, **given)  # noqa: E731
    generate(input_ids=ids[:, :16], **kwargs)
    peak, out = peak_of(lambda: generate(input_ids=ids, **kwargs))
    cache = out.past_key_values
    held = getattr(cache, "cache_bytes", None)
    if held is None:
        held = sum(b.numel() * b.element_size() for layer in cache.layers for b in (layer.keys, layer.values))
    print(json.dumps({"side": options.side, "context": options.context, "peak": peak, "cache": held}))


if __name__ == "__main__":
    main()
