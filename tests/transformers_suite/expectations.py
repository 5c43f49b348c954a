"""What transformers' generation tests expect of an output, whoever made it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, PreTrainedConfig
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers_suite.sides import standard

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def check_output(
    output: Any, config: PreTrainedConfig, batch_size: int, prompt_length: int, use_cache: bool = True
) -> None:
    """`_check_generate_outputs`: one entry a new token in everything that is returned, in the right shapes."""
    assert isinstance(output, GenerateDecoderOnlyOutput)
    total = output.sequences.shape[1]
    assert output.sequences.shape[0] == batch_size
    for values in (output.scores, output.logits):
        assert isinstance(values, tuple)
        assert [tuple(v.shape) for v in values] == [(batch_size, config.vocab_size)] * (total - prompt_length)
        assert {v.dtype for v in values} == {torch.float32}  # whatever the model's dtype is
    _check_hidden_states(output.hidden_states, config, batch_size, prompt_length, total, use_cache)
    if use_cache:
        check_cache(output.past_key_values, config, batch_size, total - 1)  # the last token was never fed
    else:
        assert output.past_key_values is None


def _check_hidden_states(
    states: Any, config: PreTrainedConfig, batch_size: int, prompt_length: int, total: int, use_cache: bool
) -> None:
    assert isinstance(states, tuple)
    assert len(states) == total - prompt_length
    for step, layers in enumerate(states):
        assert isinstance(layers, tuple)
        assert len(layers) == config.num_hidden_layers + 1
        fed = 1 if use_cache and step else prompt_length + step
        assert {tuple(layer.shape) for layer in layers} == {(batch_size, fed, config.hidden_size)}


def check_cache(cache: Any, config: PreTrainedConfig, batch_size: int, length: int) -> None:
    """`_check_past_key_values_for_generate`: keys and values of every layer, [B, KV heads, length, head size]."""
    assert isinstance(cache, Cache)
    layers = standard(cache).layers
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert len(layers) == config.num_hidden_layers
    for layer in layers:
        assert tuple(layer.keys.shape) == tuple(layer.values.shape) == (batch_size, heads, length, size)


def assert_same_caches(one: Cache, other: Cache, mask: torch.Tensor | None = None) -> None:
    """`_check_caches_are_equal`; with a mask [B, T], at the slots of real tokens only (padding holds anything)."""
    ones, others = standard(one).layers, standard(other).layers
    assert len(ones) == len(others)
    for a, b in zip(ones, others, strict=True):
        for x, y in ((a.keys, b.keys), (a.values, b.values)):
            keep = slice(None) if mask is None else mask[:, : x.shape[2]].bool()
            torch.testing.assert_close(x.transpose(1, 2)[keep], y.transpose(1, 2)[keep], **TOLERANCE)


def assert_same_outputs(one: Any, other: Any) -> None:
    """`assert_similar_generate_outputs`, without its loophole: tokens are equal, and so are the scores.

    transformers lets tokens differ from the first near-tie on. Tiny models in float64 have none.
    """
    assert one.sequences.tolist() == other.sequences.tolist()
    assert len(one.scores) == len(other.scores)
    for a, b in zip(one.scores, other.scores, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


def assert_sampled_from_scores(output: Any, prompt_length: int) -> None:
    """Every new token has a positive probability under the scores that are returned for its position."""
    new = output.sequences[:, prompt_length:]
    for step, scores in enumerate(output.scores):
        assert scores.gather(1, new[:, step, None]).isfinite().all()
