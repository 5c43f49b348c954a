"""Predicted against measured speed-up, for every number of draft tokens: does `specdec profile` promise what comes?

python -m bench.prediction --threads 2
python -m bench.prediction --threads 2 --compile --dtype bfloat16
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from statistics import median
from unittest import mock

import torch
import transformers

from specdec.profile.options import Options
from specdec.profile.run import Profiling
from specdec.profile.schema import Profile


def table(profile: Profile) -> list[list[str]]:
    """A row a draft and temperature: predicted / measured (error) by number of draft tokens."""
    lines = []
    for draft in profile.drafts:
        for temperature in sorted({s.temperature for s in profile.settings}):
            cells, errors = [], []
            for s in profile.settings:
                if (s.draft, s.temperature, s.batch) == (draft.name, temperature, 1) and s.predicted and s.measured:
                    error = s.predicted.speedup / s.measured.speedup.value - 1
                    errors.append(abs(error))
                    cells.append(f"{s.predicted.speedup:.2f} / {s.measured.speedup.value:.2f} ({100 * error:+.0f} %)")
            worst = f"{100 * max(errors):.0f} %, {100 * median(errors):.0f} %" if errors else "-"
            lines.append([f"{draft.name}, t = {temperature:g}", *cells, worst])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--prompts", type=int, default=5, help="that the loop is run on")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    transformers.logging.disable_progress_bar()
    options = Options(
        max_prompts=asked.prompts,
        loop_prompts=asked.prompts,
        new_tokens=asked.new_tokens,
        repeats=asked.repeats,
        dtype=asked.dtype,
        compile=asked.compile,
    )
    counts = options.num_draft_tokens
    # Costs come from a sample of the numbers of draft tokens, as in every profile; the loop is run on all of them here.
    with tempfile.TemporaryDirectory() as out, mock.patch("specdec.profile.run.sampled_counts", list):
        profile = Profiling(options, pathlib.Path(out) / "profile").run()
    assert profile is not None
    header = [f"{asked.dtype}{', compiled' if asked.compile else ''}", *(f"k = {k}" for k in counts), "worst, median"]
    for line in (header, ["---"] * len(header), *table(profile)):
        print("| " + " | ".join(line) + " |")
    for note in profile.notes:
        print(note)


if __name__ == "__main__":
    main()
