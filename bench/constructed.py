"""Drafts of a given quality at a given cost, and a target whose weights dominate: nothing is trained.

A draft that knows the target's greedy text proposes each token rightly with a probability, by its place and a seed, so
that every side meets the same wrong places. Its cost is a product with a share of the target's bytes of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator

from specdec.drafters.base import Drafter, DraftSession
from specdec.state import DecodeState
from specdec.types import Proposal

SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 4},
    "170M": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16},
    # For GPUs, on which less is over before Python has asked for it.
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "7B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "300M": {"hidden_size": 1280, "intermediate_size": 3456, "num_hidden_layers": 14, "num_attention_heads": 20},
}
VOCAB = 16_384
_STRIDE = 7919  # an odd number: all tokens are one cycle
_READ_WIDTH = 1024  # inputs of the product that stands for a draft's forward


def heavy(size: str, dtype: torch.dtype, positions: int = 8192, device: str = "cpu") -> PreTrainedModel:
    """A Llama of random weights drawn wide, so that its greedy text neither repeats nor hangs on near-ties.

    Drawn on the device: other weights on another one. A GPU multiplies bfloat16 as it is, and random weights make a
    percent of the logits of each rounding, so that windows of each width would write texts of their own: there layers
    say little, and the head a successor to each token.
    """
    config = LlamaConfig(
        **SIZES[size],
        num_key_value_heads=SIZES[size]["num_attention_heads"] // 4,
        vocab_size=VOCAB,
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model: PreTrainedModel = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() == 2:
                    is_wide = "embed" in name or "lm_head" in name
                    weight.normal_(std=1.0 if is_wide else 1.5 * weight.shape[1] ** -0.5)
            if device != "cpu":
                head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
                head.weight += embedding.weight.roll(_STRIDE, 0)  # t + stride follows t, mod VOCAB
                for name, weight in model.named_parameters():
                    if "o_proj" in name or "down_proj" in name:
                        weight *= 0.1
    return model.to(dtype).eval()


def spoiled(texts: Sequence[Sequence[int]], acceptance: float, vocab_size: int) -> list[list[int]]:
    """Texts in which each token is right with probability `acceptance`."""
    random = torch.Generator().manual_seed(1)
    found = []
    for text in texts:
        tokens = torch.tensor(text)
        right = torch.rand(len(text), generator=random) < acceptance
        found.append(torch.where(right, tokens, (tokens + 1) % vocab_size).tolist())
    return found


class Reading:
    """What a drafted token costs: one product with so many bytes of weights.

    Args:
        num_bytes: of the weights.
        dtype: theirs.
        device: theirs.
    """

    def __init__(self, num_bytes: float, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        rows = int(num_bytes / (dtype.itemsize * _READ_WIDTH))
        self._weights = torch.ones(rows, _READ_WIDTH, dtype=dtype, device=device) if rows else None

    def pay(self, batch_size: int, tokens: int, wait: bool = False) -> None:
        """wait: until a GPU has read them."""
        if self._weights is not None:
            for _ in range(tokens):
                torch.nn.functional.linear(self._weights.new_ones(batch_size, _READ_WIDTH), self._weights)
            if wait and self._weights.is_cuda:
                torch.cuda.synchronize(self._weights.device)


FREE = Reading(0)


class TextDrafter(Drafter):
    """Proposes from texts known beforehand.

    Args:
        texts: by request: the prompt and what follows, or what is to be proposed for it.
        cost: of a drafted token of all rows.
    """

    def __init__(self, texts: Sequence[Sequence[int]], cost: Reading = FREE) -> None:
        self._texts, self._cost = texts, cost

    def start(self, state: DecodeState) -> DraftSession:
        return _TextSession(self._texts, self._cost)


class _TextSession(DraftSession):
    observes = "nothing"

    def __init__(self, texts: Sequence[Sequence[int]], cost: Reading) -> None:
        self._texts, self._cost = texts, cost

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        most, rows = max(limit), []
        for request, length in zip(state.host_requests, state.host_lengths, strict=True):
            part = list(self._texts[request][length : length + most])
            rows.append(part + [0] * (most - len(part)))
        self._cost.pay(len(rows), most)
        tokens = torch.tensor(rows).to(state.device, non_blocking=True)
        if min(limit) == most:
            return Proposal.chain(tokens)
        valid = torch.arange(most) < torch.tensor(limit)[:, None]
        return Proposal.chain(tokens, valid.to(state.device, non_blocking=True))


class TextCandidates(CandidateGenerator):
    """The same for transformers' own assisted generation: k tokens a round, batch 1."""

    requires_model_outputs = False

    def __init__(self, text: Sequence[int], k: int, cost: Reading) -> None:
        self._text, self._k, self._cost = text, k, cost

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Any, Any]:
        length = input_ids.shape[1]
        most = min(self._k, len(self._text) - length - 1)
        if most <= 0:
            return input_ids, None
        self._cost.pay(1, most)
        new = torch.tensor([self._text[length : length + most]]).to(input_ids.device, non_blocking=True)
        return torch.cat([input_ids, new], dim=1), None

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """k is constant."""


def assisted(model: PreTrainedModel, text: Sequence[int], k: int, cost: Reading, **kwargs: Any) -> Any:
    """transformers' assisted generation with a draft that proposes `text`."""
    made = TextCandidates(text, k, cost)
    generate: Any = model.generate
    with mock.patch.object(type(model), "_get_candidate_generator", return_value=made):
        return generate(prompt_lookup_num_tokens=k, **kwargs)  # any assisted mode: what it drafts with is replaced
