"""vLLM's plain decoding of test_weights' target, where `SPECDEC_PEER_VLLM` names its interpreter (bench/peers)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from bench.peers.catalogue import PEERS, interpreters
from bench.peers.client import worker_of
from bench.peers.workers.wire import Batch, Load, Texts

DTYPES = ("float32", "bfloat16")


@contextmanager
def vllm(
    model: PreTrainedModel, ids: Tensor, new_tokens: int, folder: Path
) -> Iterator[dict[str, Callable[[], Texts]]]:
    """vLLM on the same weights, by dtype, loaded and warmed; nothing where no interpreter is named.

    Args:
        model: whose weights it gets; written to `folder`, with the bundled pair's tokenizer, which vLLM wants to see.
        ids: [B, T] the prompts, decoded together.
        new_tokens: of each text.
        folder: empty, for the weights and the engine's logs.
    """
    python = interpreters([], os.environ)[0].get("vllm")
    if python is None:
        yield {}
        return
    target = folder / "target"
    model.save_pretrained(target)
    specdec.bundled_pair()[2].save_pretrained(target)
    threads, context = torch.get_num_threads(), ids.shape[1] + new_tokens
    ask = Batch(ids.tolist(), new_tokens)
    found: dict[str, Callable[[], Texts]] = {}
    with ExitStack() as stack:
        for dtype in DTYPES:
            worker = stack.enter_context(worker_of(PEERS["vllm"], python, threads, folder / f"{dtype}.log"))
            worker.load(Load("plain", str(target), "", dtype, threads, 0, 0, 0, context, str(folder), len(ids)))
            found[dtype] = partial(worker.batch, ask)
            found[dtype]()
        yield found
