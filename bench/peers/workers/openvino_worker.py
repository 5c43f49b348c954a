"""OpenVINO GenAI: its LLMPipeline in this process.

Target calls are the lengths of its raw metrics: one duration a run of the target.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy
import openvino
import openvino_genai
import wire

_SHORT = {"float32": "f32", "bfloat16": "bf16"}


class OpenVino:
    def load(self, asked: wire.Load) -> wire.Loaded:
        target, draft = _converted(asked)
        dtype, why = _SHORT[asked.dtype], ""
        if dtype == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            dtype, why = "f32", ", as it has no bfloat16 products for this CPU"
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": dtype,
            "KV_CACHE_PRECISION": dtype,  # 8 bits by default
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # nor activations of 8 bits
            "INFERENCE_NUM_THREADS": asked.threads,
        }
        extra: dict[str, Any] = {}
        if asked.mode == "draft":
            extra["draft_model"] = openvino_genai.draft_model(str(draft), "CPU", **settings)
        elif asked.mode == "ngram":
            extra["prompt_lookup"] = True
        self._pipeline = openvino_genai.LLMPipeline(str(target), "CPU", **settings, **extra)
        self._asked = asked
        note = f"looks up {asked.max_ngram} tokens down to 1" if asked.mode == "ngram" else ""
        about = f"the checkpoint's weights, {dtype} products and KV{why}"
        return wire.Loaded(f"OpenVINO GenAI {version('openvino-genai')}", about, note)

    def generate(self, asked: wire.Ask) -> wire.Text:
        config = self._pipeline.get_generation_config()
        config.max_new_tokens = asked.new_tokens
        config.do_sample = asked.temperature > 0
        if asked.temperature > 0:
            config.temperature, config.top_p, config.rng_seed = asked.temperature, 1.0, asked.seed
            config.top_k = 2**31 - 1
        if self._asked.mode != "plain":
            config.num_assistant_tokens = self._asked.draft_tokens
        if self._asked.mode == "ngram":
            config.max_ngram_size = self._asked.max_ngram
        ids = openvino.Tensor(numpy.array([asked.ids], dtype=numpy.int64))
        begun = perf_counter()
        out = self._pipeline.generate(ids, config)
        seconds = perf_counter() - begun
        return wire.Text(list(map(int, out.tokens[0])), seconds, *_counts(out))


def _counts(out: Any) -> tuple[int | None, int | None, int | None]:
    """Target calls, drafted and accepted tokens."""
    told = out.extended_perf_metrics
    if told is None:  # neither a draft nor lookup
        return len(out.perf_metrics.raw_metrics.token_infer_durations), 0, 0
    calls = len(told.main_model_metrics.raw_metrics.m_durations)
    return calls, told.get_num_draft_tokens(), told.get_num_accepted_tokens()


def _converted(asked: wire.Load) -> tuple[Path, Path]:
    folder = Path(asked.scratch) / "openvino"
    target, draft = folder / "target", folder / "draft"
    if not wire.finished(folder):
        folder.mkdir(exist_ok=True)
        script = str(Path(__file__).with_name("openvino_export.py"))
        for model, out in ((asked.target, target), (asked.draft, draft)):
            # A process of its own: torch's threads and memory go with it.
            subprocess.run(
                [sys.executable, script, model, asked.target, str(out)], check=True, stdin=subprocess.DEVNULL
            )
        wire.finish(folder)
    return target, draft


if __name__ == "__main__":
    wire.serve(OpenVino())
