"""llama.cpp, through xllamacpp: its own server in this process, asked over its HTTP interface.

The weights are converted to GGUF first. Seconds are the server's own (prompt and generation), so HTTP costs it nothing;
target calls are its counter of `llama_decode` calls of the target's context.
"""

from __future__ import annotations

import json
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf_file
import wire
import xllamacpp as llama

_KINDS = llama.common_speculative_type
_DRAFT, _NGRAM = _KINDS.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE, _KINDS.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE
_FLOAT = {"float32": llama.ggml_type.GGML_TYPE_F32, "bfloat16": llama.ggml_type.GGML_TYPE_BF16}


class LlamaCpp:
    def load(self, asked: wire.Load) -> wire.Loaded:
        target, draft = _converted(asked)
        self._server = llama.Server(_params(asked, target, draft))
        self._url = self._server.listening_address
        note = ""
        if asked.mode == "ngram":
            note = f"ngram-simple looks up {asked.min_ngram} tokens, not the longest of {asked.min_ngram} to "
            note += f"{asked.max_ngram}"
        dtype = f"{asked.dtype} weights and KV"
        return wire.Loaded(f"llama.cpp (xllamacpp {version('xllamacpp')})", dtype, note)

    def generate(self, asked: wire.Ask) -> wire.Text:
        before = self._calls()
        answer = self._post(
            "/completion",
            {
                "prompt": asked.ids,
                "n_predict": asked.new_tokens,
                "temperature": asked.temperature,
                "seed": asked.seed,
                "samplers": ["temperature"],  # no top-k, top-p or penalties
                "cache_prompt": False,
                "return_tokens": True,
            },
        )
        timings = answer["timings"]
        seconds = (timings["prompt_ms"] + timings["predicted_ms"]) / 1000
        calls = self._calls() - before
        return wire.Text(
            answer["tokens"], seconds, calls, timings.get("draft_n", 0), timings.get("draft_n_accepted", 0)
        )

    def _calls(self) -> int:
        with urllib.request.urlopen(f"{self._url}/metrics") as answer:
            return decodes(answer.read().decode())

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


def decodes(metrics: str) -> int:
    """Calls of `llama_decode` so far, from the text of /metrics."""
    return next(int(line.split()[1]) for line in metrics.splitlines() if line.startswith("llamacpp:n_decode_total "))


def _converted(asked: wire.Load) -> tuple[Path, Path]:
    folder = Path(asked.scratch) / f"gguf-{asked.dtype}"
    target, draft = folder / "target.gguf", folder / "draft.gguf"
    if not wire.finished(folder):
        folder.mkdir(exist_ok=True)
        gguf_file.write(Path(asked.target), Path(asked.target), target, asked.dtype)
        gguf_file.write(Path(asked.draft), Path(asked.target), draft, asked.dtype)
        wire.finish(folder)
    return target, draft


def _params(asked: wire.Load, target: Path, draft: Path) -> Any:
    params = llama.CommonParams()
    params.model.path = str(target)
    params.n_gpu_layers = 0
    params.n_ctx, params.n_parallel = asked.context, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked.threads
    params.cache_type_k = params.cache_type_v = _FLOAT[asked.dtype]
    params.cache_prompt, params.cache_ram_mib = False, 0  # every text starts from nothing
    params.endpoint_metrics = True
    speculative = params.speculative
    speculative.draft.n_max = asked.draft_tokens
    if asked.mode == "draft":
        speculative.types = [_DRAFT]
        speculative.draft.mparams.path = str(draft)
        speculative.draft.n_min, speculative.draft.p_min = 0, 0.0  # never fewer for being unsure
        speculative.draft.cpuparams.n_threads = speculative.draft.cpuparams_batch.n_threads = asked.threads
        speculative.draft.cache_type_k = speculative.draft.cache_type_v = _FLOAT[asked.dtype]
    elif asked.mode == "ngram":
        speculative.types = [_NGRAM]
        speculative.ngram_simple.size_n = asked.min_ngram
        speculative.ngram_simple.size_m = asked.draft_tokens
    params.speculative = speculative
    return params


if __name__ == "__main__":
    wire.serve(LlamaCpp())
