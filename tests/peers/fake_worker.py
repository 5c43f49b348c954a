"""A peer that only counts: new tokens go up from the last one. Run as a script; `mode` picks how it misbehaves."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "peers" / "workers"))
import wire


class Fake:
    def load(self, asked: wire.Load) -> wire.Loaded:
        print("an engine prints to stdout")
        os.system("echo and so do its children")
        if asked.mode == "refuses":
            raise RuntimeError("no such mode")
        if asked.mode == "dies":
            print("out of memory", file=sys.stderr, flush=True)
            os._exit(9)
        if asked.mode == "hangs":
            time.sleep(60)
        self.mode = asked.mode
        return wire.Loaded(f"Fake 1.0, {os.environ['OMP_NUM_THREADS']} threads", asked.dtype, f"{os.getpid()}")

    def generate(self, asked: wire.Ask) -> wire.Text:
        if self.mode == "fails":
            raise MemoryError("no room for a text")
        tokens = [asked.ids[-1] + 1 + i for i in range(asked.new_tokens)]
        calls, drafted = (len(tokens), 0) if self.mode == "plain" else (2, 2 * len(tokens))
        return wire.Text(tokens, 0.5, calls, drafted, len(tokens) - calls)

    def batch(self, asked: wire.Batch) -> wire.Texts:
        return wire.Texts([[ids[-1] + 1 + i for i in range(asked.new_tokens)] for ids in asked.rows], 0.25)


if __name__ == "__main__":
    wire.serve(Fake())
