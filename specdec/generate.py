"""The drop-in edge: what `model.generate()` accepts goes in, what it returns comes out.

transformers itself prepares the call (generation config, processors, stopping criteria, padding mask)
and hands it to our loop through its public `custom_generate` hook. What the loop does not honour
is refused by name before any forward, never ignored (`options.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from os import PathLike
from typing import Any, Literal, Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from specdec.cache import RollbackCache
from specdec.checks import check_embeds, check_ids, check_padding
from specdec.controller import MAX_DRAFT_TOKENS
from specdec.decode import OnCommit, OnFinish, Output, Prepared, decode
from specdec.drafters import Drafter, ModelDrafter, TreeDrafter
from specdec.drafters.named import named
from specdec.errors import InputError, OptionError
from specdec.loop import Rule
from specdec.memory import check_past
from specdec.options import Call, check_config, check_sharding, read_call
from specdec.streaming import ended
from specdec.target import ModelRunner
from specdec.types import Compile
from specdec.wrapped import unwrap

NumDraftTokens = int | Literal["auto"]
MOST_NESTED = 4  # calls of one thread inside one another


class ProfileReader(Protocol):
    """Reads what a saved profile recommends, as arguments of `SpeculativeDecoder`."""

    def __call__(
        self,
        directory: str | PathLike[str],
        *,
        target: PreTrainedModel | None,
        batch: int,
        temperature: float | None,
        device: str | torch.device | None,
    ) -> dict[str, Any]: ...


_readers: list[ProfileReader] = []  # one at most


def read_profiles_with(reader: ProfileReader) -> None:
    """Sets what `SpeculativeDecoder.from_profile` calls.

    Profiles are a room above this one, which does not know them; `specdec/__init__.py` brings the two together.
    """
    _readers[:] = [reader]


class SpeculativeDecoder:
    """Reusable settings of speculative decoding.

    Args:
        drafter: a Drafter, a transformers model to draft with, or a name: "ngram", "suffix", "early-exit",
            "early-exit:4" (so many layers), "lookahead"; None decodes without drafts.
        num_draft_tokens: tokens to draft a round, or "auto": chosen each round from measured acceptance
            and costs, down to none while drafting does not pay.
        rule: "rejection" (Alg. 1, arXiv:2211.17192) or "block" (arXiv:2403.10444; chains, accepts a
            little more). Both are exact. Greedy calls use neither.
        compile: run target and draft as compiled graphs (docs/compile.md): True builds what is missing, once for a
            model and machine, which takes a minute or two; "auto" uses what is there, and builds once that is worth
            it. On a GPU steps are recorded as CUDA graphs, with True after making kernels for them. A model that
            cannot be compiled runs uncompiled, and `out.speculation.graphs` says why.

    Raises:
        OptionError: num_draft_tokens is not a positive integer up to 16 or "auto"; an unknown name, rule or compile.
        UnsupportedModelError: the draft model's memory cannot be rolled back.

    Example:
        >>> decoder = SpeculativeDecoder(draft_model, num_draft_tokens=5)  # doctest: +SKIP
        >>> decoder.generate(target, **inputs, max_new_tokens=64)  # doctest: +SKIP
        >>> target.generate(**inputs, custom_generate=decoder)  # within that hook's limits  # doctest: +SKIP
    """

    def __init__(
        self,
        drafter: Drafter | PreTrainedModel | str | None = None,
        num_draft_tokens: NumDraftTokens = "auto",
        rule: Rule = "rejection",
        compile: Compile = False,
    ) -> None:
        is_count = type(num_draft_tokens) is int and 1 <= num_draft_tokens <= MAX_DRAFT_TOKENS
        if num_draft_tokens != "auto" and not is_count:
            raise OptionError(
                f"num_draft_tokens must be an integer from 1 to {MAX_DRAFT_TOKENS} or 'auto', got "
                f"{num_draft_tokens!r}. To decode without drafts, leave out the drafter."
            )
        if rule not in ("rejection", "block"):
            raise OptionError(f"rule must be 'rejection' or 'block', got {rule!r}.")
        if not (isinstance(compile, bool) or compile == "auto"):
            raise OptionError(f"compile must be True, False or 'auto', got {compile!r}.")
        drafter = named(drafter) if isinstance(drafter, str) else unwrap(drafter)
        if isinstance(drafter, PreTrainedModel):
            drafter = ModelDrafter(drafter)
        if drafter is not None and not isinstance(drafter, Drafter):
            raise OptionError(
                f"drafter must be a specdec.Drafter, a transformers model or a name, got {type(drafter).__name__}. "
                "Instantiate the class, or load the model first."
            )
        self.drafter: Drafter | None = drafter
        self.num_draft_tokens: NumDraftTokens = num_draft_tokens
        self.rule: Rule = rule
        self.compile: Compile = compile
        # By target: what calls with drafts under "auto" leave to the next ones.
        self._debts: WeakKeyDictionary[PreTrainedModel, dict[Any, float]] = WeakKeyDictionary()

    @classmethod
    def from_profile(
        cls,
        directory: str | PathLike[str],
        *,
        target: PreTrainedModel | None = None,
        batch: int = 1,
        temperature: float | None = None,
        device: str | torch.device | None = None,
    ) -> SpeculativeDecoder:
        """The decoder that a saved profile recommends, its draft loaded; one without a draft where nothing pays.

        Args:
            directory: that `specdec profile --out` wrote.
            target: the draft goes where its input goes, and is compared with it.
            batch, temperature: what it is to be used for, as profiled; the lowest temperature if omitted.
            device: of the draft, if no target is given; the CPU if omitted.

        Raises:
            InputError: there is no profile, or it is none.
            OptionError: batch size or temperature was not profiled; the draft cannot be found or loaded.
            DraftMismatchError: the draft does not fit the target.

        Example:
            >>> decoder = SpeculativeDecoder.from_profile("profiles/mine", target=target)  # doctest: +SKIP
        """
        (read,) = _readers
        return cls(**read(directory, target=target, batch=batch, temperature=temperature, device=device))

    def generate(
        self,
        target: PreTrainedModel,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        generator: torch.Generator | None = None,
        on_commit: OnCommit | None = None,
        on_finish: OnFinish | None = None,
        **kwargs: Any,
    ) -> Tensor | Output:
        """`target.generate(inputs, **kwargs)`, sooner. See `specdec.generate`."""
        with rng_restored_on_error(generator), ended(kwargs.get("streamer")):
            return self.run(
                target,
                inputs,
                generation_config,
                generator=generator,
                on_commit=on_commit,
                on_finish=on_finish,
                **kwargs,
            )

    def run(
        self,
        target: PreTrainedModel,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        generator: torch.Generator | None = None,
        on_commit: OnCommit | None = None,
        on_finish: OnFinish | None = None,
        **kwargs: Any,
    ) -> Tensor | Output:
        """`generate`, but for what comes behind it: the streamer's end, and the generators after an error."""
        with _counted(), ExitStack() as together:
            runner = _runner(target)
            together.enter_context(_in_step(runner))
            if generation_config is None:  # PEFT's wrapper may have one of its own
                generation_config = vars(target).get("generation_config") if runner.model is not target else None
            if generation_config is not None:
                kwargs["generation_config"] = generation_config
            model: Any = runner.model
            call = read_call(model, kwargs, self.drafter, self.num_draft_tokens, self.rule)
            call.compile, call.debts = self.compile, self._debts.setdefault(model, {})
            home = _check_prompt(runner, inputs, call.kwargs)
            if call.drafter is not None:
                call.drafter.check(model)
            moved = {n: v.to(runner.device) if isinstance(v, Tensor) else v for n, v in call.kwargs.items()}
            # The user's own cache is updated in place, as transformers would.
            past = kwargs.get("past_key_values")
            if past is not None or kwargs.get("cache_params") is not None:
                check_past(runner)

            def hook(
                _: PreTrainedModel,
                input_ids: Tensor,
                logits_processor: LogitsProcessorList,
                stopping_criteria: StoppingCriteriaList,
                generation_config: GenerationConfig,
                inputs_tensor: Tensor | None = None,  # transformers hands an encoder's input over under this name
                **model_kwargs: Any,
            ) -> Tensor | Output:
                if runner.is_encoder_decoder:
                    model_kwargs["inputs_tensor"] = inputs_tensor
                    prepared = Prepared(input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs)
                    return decode(runner, call, prepared, past, generator, on_commit, on_finish)
                # transformers forgets an attention mask without padding, which may be longer than input_ids.
                model_kwargs["attention_mask"] = _longer(model_kwargs.get("attention_mask"), moved, input_ids)
                prepared = Prepared(input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs)
                return decode(runner, call, prepared, past, generator, on_commit, on_finish)

            positional = () if inputs is None else (inputs.to(runner.device),)
            output = _plain_generate(model)(*positional, custom_generate=hook, **moved)
            return _at_home(output, home)

    def __call__(
        self,
        target: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        inputs_tensor: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Tensor | Output:
        """The loop behind `target.generate(..., custom_generate=decoder)`.

        That hook passes on neither streamer nor stop strings, and drops the mapped names (`assistant_model=` and so
        on); `generate` has them all.
        """
        with rng_restored_on_error(None), _counted(), ExitStack() as together:
            check_config(generation_config)
            runner = _runner(target)
            together.enter_context(_in_step(runner))
            if self.drafter is not None:
                self.drafter.check(runner.model)
            if runner.is_encoder_decoder:
                model_kwargs["inputs_tensor"] = inputs_tensor
            given = model_kwargs.get("past_key_values")
            past = given if isinstance(given, RollbackCache) or getattr(given, "_is_user_defined", False) else None
            debts = self._debts.setdefault(runner.model, {})
            call = Call({}, self.drafter, self.num_draft_tokens, self.rule, compile=self.compile, debts=debts)
            prepared = Prepared(input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs)
            return decode(runner, call, prepared, past)


def generate(
    target: PreTrainedModel,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    drafter: Drafter | PreTrainedModel | str | None = None,
    num_draft_tokens: NumDraftTokens = "auto",
    rule: Rule = "rejection",
    compile: Compile = False,
    generator: torch.Generator | None = None,
    on_commit: OnCommit | None = None,
    on_finish: OnFinish | None = None,
    **kwargs: Any,
) -> Tensor | Output:
    """Generates what `target.generate(inputs, **kwargs)` would, with fewer target forwards.

    Greedy output is equal token for token (up to ties within the dtype's rounding, as between any two
    ways to batch the same forward); sampled output has the same distribution.

    Args:
        target: a Hugging Face model that generates: of attention (full, sliding window, mixture of experts), recurrent
            or hybrid, encoder-decoder; also wrapped by PEFT, torch.compile or accelerate.
        inputs: [B, T] int64 prompt, left-padded; also as `input_ids=` or `inputs_embeds=`. For an encoder-decoder what
            its encoder reads.
        generation_config: as in transformers.
        drafter: a Drafter, a draft model, or a name: "ngram", "suffix", "early-exit", "early-exit:4", "lookahead", or
            "tree" with `assistant_model=` beside it (docs/strategies.md). None decodes without drafts, unless
            `assistant_model=`, `assistant_early_exit=` or `prompt_lookup_num_tokens=` names one.
        num_draft_tokens: drafted tokens a round, or "auto".
        rule: "rejection" or "block"; both exact.
        compile: True, False or "auto": run compiled graphs of target and draft; see `SpeculativeDecoder`.
        generator: source of the call's seed when sampling; torch's global generator if omitted.
        on_commit: called with each row's new tokens as soon as they are final.
        on_finish: called with the call's statistics, which `return_dict_in_generate` returns as well.
        kwargs: arguments of `target.generate()`; docs/generate.md says what becomes of each.

    Returns:
        [B, T + new] int64, or a `SpeculativeOutput` under `return_dict_in_generate=True`.

    Raises:
        OptionError: an unknown or contradictory argument.
        UnsupportedOptionError: an option of transformers that specdec does not honour.
        InputError: an empty or right-padded prompt, ids out of range, more tokens than the context holds.
        DraftMismatchError: target and draft differ in vocabulary or device.
        UnsupportedModelError: a memory that cannot be rolled back.
        DrafterError, NumericalError: while decoding.

    Example:
        >>> out = specdec.generate(target, **inputs, drafter=draft, max_new_tokens=64)  # doctest: +SKIP
    """
    with rng_restored_on_error(generator), ended(kwargs.get("streamer")):
        if isinstance(drafter, str) and drafter == "tree":
            drafter = _tree(kwargs)
        decoder = SpeculativeDecoder(drafter, num_draft_tokens, rule, compile)
        return decoder.run(
            target,
            inputs,
            generation_config,
            generator=generator,
            on_commit=on_commit,
            on_finish=on_finish,
            **kwargs,
        )


def _tree(kwargs: dict[str, Any]) -> Drafter:
    """drafter="tree" drafts with assistant_model=, which is taken out of the arguments, as is its tokenizer."""
    model, other = kwargs.pop("assistant_model", None), kwargs.pop("assistant_tokenizer", None)
    if other is None:
        return named("tree", unwrap(model))
    if kwargs.get("tokenizer") is None:
        raise OptionError("assistant_tokenizer= needs the target's tokenizer beside it: pass tokenizer= as well.")
    return TreeDrafter(model, tokenizer=kwargs["tokenizer"], draft_tokenizer=other)


def _runner(target: Any) -> ModelRunner:
    """What runs the target; raises for what is no model, or one whose shards must stay in step."""
    target = unwrap(target)
    if not isinstance(target, PreTrainedModel) or not target.can_generate():
        raise OptionError(
            f"target must be a transformers model with a language modelling head, got {type(target).__name__}."
        )
    check_sharding(target)
    return ModelRunner(target)


def _in_step(runner: ModelRunner) -> AbstractContextManager[None]:
    """Where several processes share the target, one that raises tells the others."""
    return nullcontext() if runner.ranks is None else runner.ranks.in_step()


def _plain_generate(model: PreTrainedModel) -> Callable[..., Any]:
    """transformers' own generate, also while `attached` stands in its place."""
    generate: Any = model.generate
    while hasattr(generate, "specdec_replaces"):
        generate = generate.specdec_replaces
    return cast(Callable[..., Any], generate)


def _check_prompt(runner: ModelRunner, inputs: Tensor | None, kwargs: dict[str, Any]) -> torch.device:
    """Refuses bad prompts before transformers touches them; returns where the output belongs."""
    if runner.is_encoder_decoder:
        return _check_encoder_prompt(runner, inputs, kwargs)
    ids, embeds, mask = inputs, kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
    if ids is None:
        ids = kwargs.get("input_ids")
    if embeds is not None:
        check_embeds(embeds, cast(Any, runner.model.get_input_embeddings()).weight.shape[-1])
    elif ids is not None:
        check_ids(ids, runner.vocab_size)
    if mask is not None and kwargs.get("past_key_values") is None:  # else it covers cached tokens as well
        check_padding(tuple((embeds if embeds is not None else ids if ids is not None else mask).shape[:2]), mask)
    return next((t.device for t in (ids, embeds) if t is not None), runner.device)


def _check_encoder_prompt(runner: ModelRunner, inputs: Tensor | None, kwargs: dict[str, Any]) -> torch.device:
    """The same for an encoder's input, which may be ids, embeddings or features, and for the decoder's beginning."""
    name = runner.model.main_input_name
    given = inputs if inputs is not None else kwargs.get(name)
    ids = given if name == "input_ids" else None
    if ids is not None:
        check_ids(ids, cast(Any, runner.model.get_input_embeddings()).weight.shape[0])
    mask = kwargs.get("attention_mask")
    if ids is not None and mask is not None and tuple(mask.shape) != tuple(ids.shape):
        raise InputError(f"attention_mask has shape {tuple(mask.shape)}, the encoder's input {tuple(ids.shape)}.")
    start = kwargs.get("decoder_input_ids")
    if start is not None:
        check_ids(start, runner.vocab_size)
        if kwargs.get("decoder_attention_mask") is not None:
            check_padding(tuple(start.shape), kwargs["decoder_attention_mask"])
    return next((t.device for t in (given, start) if isinstance(t, Tensor)), runner.device)


def _longer(mask: Tensor | None, given: dict[str, Any], input_ids: Tensor) -> Tensor | None:
    """The mask that transformers prepared, or the user's where it dropped one that covers cached tokens."""
    own: Tensor | None = given.get("attention_mask")
    if mask is None and own is not None and own.shape[1] > input_ids.shape[1]:
        return own.repeat_interleave(len(input_ids) // len(own), dim=0)
    return mask


def _at_home(output: Any, home: torch.device) -> Any:
    """The sequences where the prompt came from."""
    if isinstance(output, Tensor):
        return output.to(home)
    if getattr(output, "sequences", None) is not None:  # Whisper may return segments instead
        output.sequences = output.sequences.to(home)
    return output


class _Nesting(threading.local):
    """Calls of this thread that are inside one another."""

    calls = 0


_NESTING = _Nesting()


@contextmanager
def _counted() -> Iterator[None]:
    """A drafter or a processor may decode in its turn, with the same model, too: a call keeps nothing on it.

    Raises:
        OptionError: it does so without end.
    """
    if _NESTING.calls >= MOST_NESTED:
        raise OptionError(
            f"generate() runs inside itself {MOST_NESTED} calls deep: a drafter or a callback decodes with a decoder "
            "that calls it again. Give the inner call another drafter, or none."
        )
    _NESTING.calls += 1
    try:
        yield
    finally:
        _NESTING.calls -= 1


@contextmanager
def rng_restored_on_error(generator: torch.Generator | None) -> Iterator[None]:
    """A failed call leaves torch's global generator, and the call's own, where they were."""
    before, own = torch.get_rng_state(), None if generator is None else generator.get_state()
    try:
        yield
    except BaseException:
        torch.set_rng_state(before)
        if generator is not None and own is not None:
            generator.set_state(own)
        raise
