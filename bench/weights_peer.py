"""vLLM's plain decoding of test_weights' target, where `SPECDEC_PEER_VLLM` names its interpreter (bench/peers)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from bench.peers.catalogue import PEERS, interpreters
from bench.peers.client import Worker
from bench.peers.workers.wire import Ask, Load

DTYPES = ("float32", "bfloat16")


class Vllm:
    """One loaded engine.

    Args:
        worker: that has loaded the model.
        ids: [1, T] the prompt.
        new_tokens: of its text.
    """

    def __init__(self, worker: Worker, ids: Tensor, new_tokens: int) -> None:
        self._worker, self._ask = worker, Ask(ids[0].tolist(), new_tokens, 0.0, 0)

    def text(self) -> tuple[list[int], float]:
        """The new tokens, and the engine's own seconds."""
        text = self._worker.generate(self._ask)
        return text.tokens, text.seconds


@contextmanager
def vllm(model: PreTrainedModel, ids: Tensor, new_tokens: int, folder: Path) -> Iterator[dict[str, Vllm]]:
    """vLLM on the same weights, by dtype, loaded and warmed; nothing where no interpreter is named.

    Args:
        model: whose weights it gets; written to `folder`, with the bundled pair's tokenizer, which vLLM wants to see.
        ids: [1, T] the prompt.
        new_tokens: of its text.
        folder: empty, for the weights and the engine's logs.
    """
    python = interpreters([], os.environ)[0].get("vllm")
    if python is None:
        yield {}
        return
    target = folder / "target"
    model.save_pretrained(target)
    specdec.bundled_pair()[2].save_pretrained(target)
    threads = torch.get_num_threads()
    variables = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **PEERS["vllm"].environment(python)}
    with ExitStack() as stack:
        found = {}
        for dtype in DTYPES:
            worker = stack.enter_context(Worker(PEERS["vllm"].command(python), folder / f"{dtype}.log", variables))
            context = ids.shape[1] + new_tokens
            worker.load(Load("plain", str(target), "", dtype, threads, 0, 0, 0, context, str(folder)))
            found[dtype] = Vllm(worker, ids, new_tokens)
            found[dtype].text()
        yield found
