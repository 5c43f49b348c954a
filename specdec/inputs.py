"""The prepared call -> what the loop starts from: tokens, padding, memory of earlier calls, other model inputs.

Whatever way the user gave the prompt (ids, embeddings, only what follows a cache), here it becomes one table of
token ids per row, so that drafters and windows know one form only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import utils as hf

from specdec.checks import check_ids, check_padding
from specdec.errors import InputError, UnsupportedOptionError
from specdec.prompt import Encoded, PromptInputs, left_aligned
from specdec.target import ModelRunner, parameters

# Prepared by transformers for its own loop; ours makes its own of them.
_OWN = frozenset(
    "inputs_tensor attention_mask position_ids past_key_values inputs_embeds use_cache logits_to_keep "
    "output_hidden_states output_attentions cache_position input_ids cache_params".split()
)
_CHUNK = 16384  # vocabulary rows compared at once
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
# What a multimodal prompt brings to its first forward.
_ONCE = frozenset(getattr(hf, "MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL", ())) | frozenset(
    "pixel_values pixel_values_videos pixel_mask pixel_attention_mask image_sizes input_features input_features_mask "
    "input_values image_grid_thw video_grid_thw second_per_grid_ts audio_feature_lengths feature_attention_mask".split()
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the loop starts from."""

    shown: Tensor  # [B, P] int64, what processors and the returned sequences begin with
    ids: Tensor  # [B, T] int64, what the model reads, padding included
    mask: Tensor  # [B, T] bool, False on padding
    knows_ids: bool  # False where ids stand for embeddings or for a cache of unknown tokens
    extra: PromptInputs | None


def read_prompt(
    runner: ModelRunner,
    input_ids: Tensor,
    model_kwargs: dict[str, Any],
    config: GenerationConfig,
    past_columns: int,
    num_new_tokens: int,
    guess_ids: bool,
) -> Prompt:
    """Lays out the prompt of a prepared call.

    Args:
        input_ids: [B, P] as transformers prepared it; P = 0 where only embeddings were given.
        model_kwargs: the rest of what transformers prepared.
        past_columns: tokens a row, padding included, that `past_key_values` covers.
        num_new_tokens: at most this many will follow.
        guess_ids: look for token ids behind embeddings, since a drafter will read them.

    Raises:
        InputError: no token, a token outside the vocabulary, right padding, more tokens than the context holds.
        UnsupportedOptionError: a model input that cannot be continued.
    """
    device, encoded = runner.device, None
    if runner.is_encoder_decoder:
        encoded, model_kwargs = _decoder_inputs(runner, len(input_ids), model_kwargs)
    embeds: Tensor | None = model_kwargs.get("inputs_embeds")
    given: Tensor | None = model_kwargs.get("attention_mask")
    if embeds is not None:
        width = embeds.shape[1]
    elif given is not None:
        width = given.shape[1]
    else:  # transformers drops a mask without padding, and leaves its length behind
        width = max(input_ids.shape[1], getattr(config, "_mask_length", 0))
    batch_size = input_ids.shape[0]
    mask = torch.ones(batch_size, width, dtype=torch.bool, device=device) if given is None else given.to(device).bool()
    shown = input_ids.to(device)
    if shown.shape[1]:
        check_ids(shown, runner.vocab_size)
    if embeds is not None:
        knows = shown.shape[1] == width
        ids = shown if knows else torch.zeros(embeds.shape[:2], dtype=torch.int64, device=device)
        if guess_ids and not knows:
            ids = nearest_tokens(runner.model, embeds.to(device))
    else:
        missing = width - shown.shape[1]
        if missing > past_columns:
            raise InputError(
                f"attention_mask covers {width} tokens, input_ids has {shown.shape[1]} and past_key_values "
                f"{past_columns}: pass the whole sequence as input_ids."
            )
        knows = missing == 0
        ids = shown if knows else torch.nn.functional.pad(shown, (missing, 0))
    if given is not None:
        check_padding(ids.shape, mask)
    _check_length(runner, mask, num_new_tokens)
    return Prompt(shown, ids, mask, knows, _extra(runner, mask, embeds, model_kwargs, encoded))


def _decoder_inputs(
    runner: ModelRunner, batch_size: int, model_kwargs: dict[str, Any]
) -> tuple[Encoded, dict[str, Any]]:
    """What the encoder made, and the decoder's inputs under the names that a decoder-only model has for them."""
    outputs, mask = model_kwargs["encoder_outputs"], model_kwargs.get("attention_mask")
    inputs: Tensor | None = model_kwargs.get("inputs_tensor")
    if inputs is not None and len(inputs) < batch_size:  # transformers repeats the encoder's output, not its input
        inputs = inputs.repeat_interleave(batch_size // len(inputs), dim=0)
    if inputs is not None and not inputs.is_floating_point() and bool((inputs < 0).any()):
        inputs = None  # transformers' stand-in where the user gave encoder_outputs=
    encoded = Encoded(outputs[0], mask, inputs)
    model: Any = runner.model
    taken = {"encoder_outputs", "attention_mask", "inputs_tensor", *parameters(model.get_encoder().forward)}
    taken -= {"past_key_values", "use_cache"}
    rest = {n.removeprefix("decoder_"): v for n, v in model_kwargs.items() if n not in taken}
    for name in ("head_mask", "cross_attn_head_mask"):
        if rest.get(name) is not None:
            raise UnsupportedOptionError(
                f"{name} cannot be honoured by specdec: leave it out, or use model.generate()."
            )
    return encoded, rest


def nearest_tokens(model: PreTrainedModel, embeds: Tensor) -> Tensor:
    """[B, T] the tokens whose embeddings point where those of the prompt [B, T, H] do: for drafters to read.

    Exact for embeddings of tokens, a guess for others; the output does not depend on it.
    """
    weight: Tensor = cast(Any, model.get_input_embeddings()).weight
    best = torch.full(embeds.shape[:2], float("-inf"), device=embeds.device)
    found = torch.zeros(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
    if weight.dim() != 2 or weight.shape[1] != embeds.shape[2] or weight.device != embeds.device:
        return found  # packed or offloaded weights: a guess is not worth unpacking them
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    for start in range(0, vocab_size, _CHUNK):  # a copy of all embeddings might not fit
        directions = torch.nn.functional.normalize(weight[start : min(start + _CHUNK, vocab_size)].float(), dim=1)
        similarity, token = (embeds.float() @ directions.T).max(-1)
        found = torch.where(similarity > best, token + start, found)
        best = torch.maximum(best, similarity)
    return found


def _check_length(runner: ModelRunner, mask: Tensor, num_new_tokens: int) -> None:
    """Raises InputError if prompt and output do not fit the model's positions."""
    lengths = mask.sum(1)
    longest = int(lengths.max())
    wanted = longest + num_new_tokens
    if runner.max_positions is not None and wanted > runner.max_positions:
        raise InputError(
            f"prompt ({longest} tokens) and new tokens ({num_new_tokens}) need {wanted} positions, the target has "
            f"{runner.max_positions}: shorten the prompt or lower max_new_tokens."
        )
    switch = runner.rope_switch
    if switch is not None and int(lengths.min()) <= switch < wanted:
        raise InputError(
            f"the target's longrope changes all its frequencies at {switch} tokens, in the middle of this output "
            f"({wanted} tokens with the prompt): stay on one side of it, or use model.generate()."
        )


def _extra(
    runner: ModelRunner,
    mask: Tensor,
    embeds: Tensor | None,
    model_kwargs: dict[str, Any],
    encoded: Encoded | None,
) -> PromptInputs | None:
    """What the model takes beside token ids and positions of the ordinary kind."""
    device, lengths = runner.device, mask.sum(1)
    positions: Tensor | None = model_kwargs.get("position_ids")
    per_token: dict[str, Tensor] = {}
    once: dict[str, Any] = {}
    always: dict[str, Any] = {}
    for name, value in model_kwargs.items():
        if name in _OWN or value is None:
            continue
        if name in _TOKEN_TYPES and isinstance(value, Tensor) and value.shape == mask.shape:
            new = value[:, -1] if name == "token_type_ids" else torch.zeros_like(value[:, -1])
            table = torch.nn.functional.pad(left_aligned(value.to(device), mask), (0, 1))
            per_token[name] = table.scatter(1, lengths[:, None], new.to(device)[:, None])
        elif name in _ONCE:
            once[name] = value
        elif not isinstance(value, Tensor):
            always[name] = value
        else:
            raise UnsupportedOptionError(
                f"the model input {name} (shape {tuple(value.shape)}) cannot be continued over new tokens by specdec: "
                "leave it out, or use model.generate()."
            )
    out = PromptInputs(
        lengths,
        None if embeds is None else left_aligned(embeds.to(device), mask),
        None if positions is None else _own_positions(positions.to(device), mask),
        per_token,
        once,
        always,
        encoded,
    )
    return None if out.is_empty else out


def _own_positions(positions: Tensor, mask: Tensor) -> Tensor | None:
    """Position ids [.., B, T] that are not simply 0, 1, 2, ... along each row; else None."""
    if positions.shape[-1] != mask.shape[1]:
        raise InputError(
            f"position_ids has {positions.shape[-1]} columns, the sequence {mask.shape[1]}: give one for each token, "
            "cached ones included, or none."
        )
    if positions.dim() == 2:
        ordinary = (mask.long().cumsum(1) - 1).clamp(min=0)
        if positions.shape[0] == 1 and mask.all():
            ordinary = ordinary[:1]
        if torch.equal(positions, ordinary):
            return None
        positions = positions.expand(len(mask), -1)
        if torch.equal(positions[mask], ordinary[mask]):
            return None
    else:
        positions = positions.expand(*positions.shape[:-2], len(mask), -1)
    return left_aligned(positions, mask, dim=positions.dim() - 1)
