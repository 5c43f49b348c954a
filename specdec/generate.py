"""The drop-in edge: what `model.generate()` accepts goes in, what it returns comes out.

transformers itself prepares the call (generation config, processors, stopping criteria, padding mask)
and hands it to our loop through its public `custom_generate` hook. What the loop does not honour yet
is refused by name before any forward, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from specdec.checks import check_call, checked_mask, read_limits
from specdec.controller import MAX_DRAFT_TOKENS, AutoLength, Controller, FixedLength
from specdec.drafters import Drafter, DraftSession, ModelDrafter
from specdec.errors import OptionError
from specdec.loop import Committed, Decoding, Rule
from specdec.probe import probe
from specdec.sampling import Sampler
from specdec.state import DecodeState
from specdec.stats import SpeculationStats

NumDraftTokens = int | Literal["auto"]


@dataclass
class SpeculativeOutput(GenerateDecoderOnlyOutput):
    """transformers' output class and the call's statistics."""

    speculation: SpeculationStats | None = None


class SpeculativeDecoder:
    """Reusable settings of speculative decoding.

    Args:
        drafter: a Drafter, or a transformers model to draft with; None decodes without drafts.
        num_draft_tokens: tokens to draft a round, or "auto": chosen each round from measured acceptance
            and costs, down to none while drafting does not pay.
        rule: "rejection" (Alg. 1, arXiv:2211.17192) or "block" (arXiv:2403.10444; chains, accepts a
            little more). Both are exact. Greedy calls use neither.

    Raises:
        OptionError: num_draft_tokens is not a positive integer up to 16 or "auto"; an unknown rule.
        UnsupportedModelError: the draft model's memory cannot be rolled back.

    Example:
        >>> decoder = SpeculativeDecoder(draft_model, num_draft_tokens=5)  # doctest: +SKIP
        >>> decoder.generate(target, **inputs, max_new_tokens=64)  # doctest: +SKIP
    """

    def __init__(
        self,
        drafter: Drafter | PreTrainedModel | None = None,
        num_draft_tokens: NumDraftTokens = "auto",
        rule: Rule = "rejection",
    ) -> None:
        is_count = type(num_draft_tokens) is int and 1 <= num_draft_tokens <= MAX_DRAFT_TOKENS
        if num_draft_tokens != "auto" and not is_count:
            raise OptionError(
                f"num_draft_tokens must be an integer from 1 to {MAX_DRAFT_TOKENS} or 'auto', got "
                f"{num_draft_tokens!r}. To decode without drafts, leave out the drafter."
            )
        if rule not in ("rejection", "block"):
            raise OptionError(f"rule must be 'rejection' or 'block', got {rule!r}.")
        if isinstance(drafter, PreTrainedModel):
            drafter = ModelDrafter(drafter)
        if drafter is not None and not isinstance(drafter, Drafter):
            raise OptionError(
                f"drafter must be a specdec.Drafter or a transformers model, got {type(drafter).__name__}. "
                "Instantiate the class, or load the model first."
            )
        self.drafter: Drafter | None = drafter
        self.num_draft_tokens: NumDraftTokens = num_draft_tokens
        self.rule: Rule = rule

    def generate(
        self,
        target: PreTrainedModel,
        inputs: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        on_commit: Callable[[Committed], None] | None = None,
        **kwargs: Any,
    ) -> Tensor | SpeculativeOutput:
        """`target.generate(inputs, **kwargs)`, sooner. See `specdec.generate`."""
        runner = check_call(target, inputs, kwargs)
        kwargs.pop("custom_generate", None)  # None, or check_call would have refused it
        # Processors are built where the prompt is and run where the logits are: one place for both.
        home = next((t.device for t in (inputs, kwargs.get("input_ids")) if t is not None), runner.device)
        inputs = None if inputs is None else inputs.to(runner.device)
        for name in ("input_ids", "attention_mask"):
            if kwargs.get(name) is not None:
                kwargs[name] = kwargs[name].to(runner.device)
        if self.drafter is not None:
            self.drafter.check(target)

        def decode(
            model: PreTrainedModel,
            input_ids: Tensor,
            logits_processor: LogitsProcessorList,
            stopping_criteria: StoppingCriteriaList,
            generation_config: GenerationConfig,
            **model_kwargs: Any,
        ) -> Tensor | SpeculativeOutput:
            limits = read_limits(generation_config, stopping_criteria, input_ids)
            sampler = Sampler(logits_processor, bool(generation_config.do_sample))
            mask = checked_mask(input_ids, model_kwargs, runner, generation_config)
            probe(runner)
            seed = _seed(generator) if sampler.do_sample else None
            most = input_ids.shape[1] + limits.max_new_tokens
            state = DecodeState(input_ids.to(runner.device), mask, most, runner.vocab_size, sampler, seed)
            decoding = Decoding(
                runner,
                state,
                self.drafter.start(state) if self.drafter is not None else DraftSession(),
                self._controller(),
                limits,
                self.rule,
                on_commit,
            )
            new = decoding.run()
            sequences = _sequences(input_ids, new, limits.pad_token_id).to(home)
            if not generation_config.return_dict_in_generate:
                return sequences
            return SpeculativeOutput(sequences=cast(torch.LongTensor, sequences), speculation=decoding.stats)

        with _global_rng_restored_on_error():
            output = cast(Any, target).generate(inputs, custom_generate=decode, **kwargs)
        return cast(Tensor | SpeculativeOutput, output)

    def _controller(self) -> Controller:
        if self.drafter is None:
            return FixedLength(0)
        if self.num_draft_tokens == "auto":
            return AutoLength()
        return FixedLength(self.num_draft_tokens)


def generate(
    target: PreTrainedModel,
    inputs: Tensor | None = None,
    *,
    drafter: Drafter | PreTrainedModel | None = None,
    num_draft_tokens: NumDraftTokens = "auto",
    rule: Rule = "rejection",
    generator: torch.Generator | None = None,
    on_commit: Callable[[Committed], None] | None = None,
    **kwargs: Any,
) -> Tensor | SpeculativeOutput:
    """Generates what `target.generate(inputs, **kwargs)` would, with fewer target forwards.

    Greedy output is equal token for token (up to ties within the dtype's rounding, as between any two
    ways to batch the same forward); sampled output has the same distribution.

    Args:
        target: a decoder-only Hugging Face model with full attention.
        inputs: [B, T] int64 prompt, left-padded; also as `input_ids=`.
        drafter: a Drafter or a draft model; None decodes without drafts.
        num_draft_tokens: drafted tokens a round, or "auto".
        rule: "rejection" or "block"; both exact.
        generator: source of the call's seed when sampling; torch's global generator if omitted.
        on_commit: called with each row's new tokens as soon as they are final.
        kwargs: arguments of `target.generate()`; what is not supported yet is refused by name.

    Returns:
        [B, T + new] int64, or a `SpeculativeOutput` under `return_dict_in_generate=True`.

    Raises:
        OptionError: an unknown or contradictory argument.
        UnsupportedOptionError: an option of transformers that specdec does not honour yet.
        InputError: an empty or right-padded prompt, ids out of range, more tokens than the context holds.
        DraftMismatchError: target and draft differ in vocabulary or device.
        UnsupportedModelError: a memory that cannot be rolled back.
        DrafterError, NumericalError: while decoding.

    Example:
        >>> out = specdec.generate(target, **inputs, drafter=draft, max_new_tokens=64)  # doctest: +SKIP
    """
    decoder = SpeculativeDecoder(drafter, num_draft_tokens, rule)
    return decoder.generate(target, inputs, generator=generator, on_commit=on_commit, **kwargs)


def _seed(generator: torch.Generator | None) -> int:
    """One draw seeds the call's coins, so that calls differ and a seeded program repeats."""
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(-(2**63), 2**63 - 1, (), generator=generator, device=device))


def _sequences(input_ids: Tensor, new: list[list[int]], pad: int) -> Tensor:
    """[B, T + longest]: the prompt as given, the new tokens, padding."""
    longest = max(map(len, new))
    rows = [tokens + [pad] * (longest - len(tokens)) for tokens in new]
    return torch.cat([input_ids, torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)], dim=1)


@contextmanager
def _global_rng_restored_on_error() -> Iterator[None]:
    """A failed call leaves torch's global generator where it was."""
    before = torch.get_rng_state()
    try:
        yield
    except BaseException:
        torch.set_rng_state(before)
        raise
