"""Drafting with a smaller model of the same vocabulary."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec.compiled import Chance, CompiledRunner, compiled
from specdec.drafters.base import Drafter, DraftSession
from specdec.drafters.confidence import Confidence, check_confidence
from specdec.errors import DraftMismatchError, OptionError
from specdec.feeding import feed_ahead, window_of
from specdec.probe import probe
from specdec.prompt import Encoded, PromptInputs
from specdec.ranks import Ranks
from specdec.sampling import Prefixes
from specdec.state import DecodeState
from specdec.target import ModelRunner, at_nodes, input_device, kept_logits, parameters
from specdec.types import Acceptance, Proposal, int_tensor
from specdec.window import Window
from specdec.wrapped import unwrap

logger = logging.getLogger("specdec")

# Embedding matrices of one tokenizer are padded to different multiples; more than this is another tokenizer.
_MAX_PADDING = 1024
_WARNED: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()  # drafts whose vocabulary was taken on trust: say it once


class ModelSession(DraftSession):
    """Keeps the draft's cache in step with the committed tokens, however far it has fallen behind.

    Args:
        runner: runs the draft.
        prompt: what its decoder attends to besides tokens.
        min_confidence: see `ModelDrafter`.
    """

    def __init__(
        self,
        runner: ModelRunner,
        state: DecodeState,
        prompt: PromptInputs | None = None,
        min_confidence: float = 0.0,
    ) -> None:
        self._runner = runner
        self._min_confidence = min_confidence
        self._prompt = prompt
        self._cache = runner.new_cache(state.batch_size, max(state.host_lengths) + 1)
        self._seen = [0] * state.batch_size  # the cache's lengths, known on the host
        self._lengths = list(self._seen)  # committed tokens at the last proposal
        self._pending = self._cache.lengths  # [B] committed tokens that the last proposal fed first
        self._fed = 0  # drafted tokens that it fed behind them
        self._forwards = 0
        self._is_narrow = runner.vocab_size < state.vocab_size

    def close(self) -> None:
        self._runner.release()

    @property
    def forwards(self) -> int:
        return self._forwards

    @property
    def levels(self) -> bool:
        return self._runner.layout.level

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        depth = self._depth(state, limit)
        if depth <= 0:
            return Proposal.empty(state.batch_size, state.device)
        logits = self._begin(state)
        confidence = Confidence(self._min_confidence, limit, state.device) if self._min_confidence else None
        tokens: list[Tensor] = []
        q: list[Tensor] = []
        valid: list[Tensor] = []
        for step in range(depth):
            if step:
                logits = self._feed(state, tokens[-1], self._lengths, step)
                self._fed = step
            scores = self._next_scores(state, logits, tokens)
            if scores is None:
                break
            if confidence is not None:
                valid.append(confidence.drafts_from(scores.softmax(-1)))
                if not bool(valid[-1].any()):  # a host read
                    break
            tokens.append(self._choose(state, scores, q, node=step))
        if not tokens:
            self._commit([0] * state.batch_size, torch.zeros_like(self._pending))
            return Proposal.empty(state.batch_size, state.device)
        depth = len(tokens)
        usable = None
        if valid:
            usable = torch.stack(valid[:depth], 1)
        elif min(limit) < depth:
            # Rows near their length limit use a part of the chain; which part does not depend on the tokens.
            steps = torch.arange(depth, device=state.device)
            usable = steps < torch.tensor(limit, device=state.device)[:, None]
        return Proposal.chain(torch.stack(tokens, 1), usable, torch.stack(q, 1) if q else None)

    def _depth(self, state: DecodeState, limit: Sequence[int]) -> int:
        """How deep a proposal may be: the draft's context may be shorter than the target's."""
        if self._runner.max_positions is None:
            return max(limit)
        return min(max(limit), self._runner.max_positions - max(state.host_ends(self._runner.layout.level)))

    def _begin(self, state: DecodeState) -> Tensor:
        """Feeds all committed tokens that the cache lacks; logits [B, V] after the last one."""
        feed = partial(self._forward, state, keep=1)
        self._seen = feed_ahead(self._runner, self._cache, state, self._seen, feed)
        self._lengths = state.host_ends(self._runner.layout.level)
        self._pending = self._num_pending(state)
        self._fed = 0
        return self._catch_up(state, self._lengths)

    def observe(self, proposal: Proposal, acceptance: Acceptance, num_accepted: Sequence[int]) -> None:
        if proposal.num_nodes == 0:
            return
        # The last drafted token was not fed, unless the draft looked behind it and stopped.
        self._commit([min(a, self._fed) for a in num_accepted], torch.clamp(acceptance.num_accepted, max=self._fed))

    def _commit(self, drafted: Sequence[int], num_drafted: Tensor) -> None:
        """Keeps what the last proposal fed: all committed tokens, and so many of the drafted ones."""
        self._cache.commit(self._pending + num_drafted)
        kept = [n - s + d for n, s, d in zip(self._lengths, self._seen, drafted, strict=True)]
        self._seen = [s + k for s, k in zip(self._seen, self._cache.retained(kept), strict=True)]

    def select_rows(self, rows: Sequence[int], index: Tensor) -> None:
        self._cache.select_rows(index)
        if self._prompt is not None:
            self._prompt = self._prompt.select_rows(index)
        self._seen = [self._seen[r] for r in rows]

    def _num_pending(self, state: DecodeState) -> Tensor:
        """[B] int64, committed tokens that the cache lacks."""
        return state.ends(self._runner.layout.level) - self._cache.lengths

    def _catch_up(self, state: DecodeState, lengths: list[int]) -> Tensor:
        """Feeds every committed token that the cache lacks; logits [B, V] after the last one."""
        nothing = Proposal.empty(state.batch_size, state.device)
        window = window_of(self._runner, self._cache, state, self._seen, nothing)
        roots = [n - s - 1 for n, s in zip(lengths, self._seen, strict=True)]
        keep = kept_logits(roots, window.tokens.shape[1], num_nodes=0)
        return at_nodes(self._forward(state, window, keep), keep, roots, num_nodes=0)[:, 0]

    def _feed(self, state: DecodeState, token: Tensor, lengths: list[int], step: int) -> Tensor:
        """Feeds the step-th drafted token [B]; logits [B, V] after it."""
        position = slot = (state.lengths + step - 1)[:, None]
        extent, level = max(lengths) + step, min(lengths) == max(lengths)
        mask = columns = None
        offsets = state.offsets(self._runner.layout.level)
        if offsets is not None:
            slot = position + offsets[:, None]
            columns = torch.arange(extent, device=state.device) >= offsets[:, None]
        elif not level:
            mask = torch.arange(extent, device=state.device) <= position[:, :, None]
        ones = torch.ones_like(state.lengths)
        window = Window(token[:, None], position, slot, ones, mask, extent, level, columns=columns)
        return self._forward(state, window, keep=1)[:, 0]

    def _forward(self, state: DecodeState, window: Window, keep: int | Sequence[int]) -> Tensor:
        self._forwards += 1
        # Ids that only the target's padding has, or -1 from a broken draft: read as another token, guessed worse.
        window = replace(window, tokens=window.tokens.clamp(0, self._runner.vocab_size - 1))
        logits = self._runner.forward(window, self._cache, keep, self._prompt).logits
        if self._runner.ranks is not None:  # else each would go on with what it would choose
            logits = self._runner.ranks.lead(logits)
        return self._as_wide_as_target(state, logits)

    def _as_wide_as_target(self, state: DecodeState, logits: Tensor) -> Tensor:
        """[..., V] logits over the target's vocabulary."""
        # A draft padded to more tokens than the target has must not propose the padding.
        logits = logits[..., : state.vocab_size]
        # One padded to fewer gets the target's width, since processors fix theirs at the first call.
        missing = state.vocab_size - logits.shape[-1]
        return F.pad(logits, (0, missing), value=float("-inf")) if missing else logits

    def _next_scores(self, state: DecodeState, logits: Tensor, drafted: list[Tensor]) -> Tensor | None:
        """The scores [B, V] behind the drafted tokens from the draft's logits; None if there is nothing to draft."""
        scores = self._scores(state, logits, drafted)
        if self._is_narrow and state.sampler.processors and not bool((scores > float("-inf")).any(-1).all()):
            return None  # what the processors allow is not in the draft's vocabulary
        return scores

    def _scores(self, state: DecodeState, logits: Tensor, drafted: list[Tensor]) -> Tensor:
        """The draft's scores [B, V] after the drafted tokens, under the call's processors."""
        leaf = None
        if state.sampler.needs_prefix:
            nothing = Proposal.empty(state.batch_size, state.device)
            prefixes = state.prefixes(Proposal.chain(torch.stack(drafted, 1)) if drafted else nothing)
            assert prefixes is not None
            leaf = Prefixes([paths[-1:] for paths in prefixes.paths], prefixes.requests)
        return state.sampler.scores(logits[:, None], leaf)[:, 0]

    def _choose(self, state: DecodeState, scores: Tensor, q: list[Tensor], node: int) -> Tensor:
        """The next token [B]; appends its distribution to q when sampling."""
        if not state.sampler.do_sample:
            return scores.argmax(-1)
        probs = scores.softmax(-1)
        q.append(probs)
        # -1 (a broken draft) is caught by the loop's range check.
        return state.coins().draft(probs, node=node)


class GraphChoices(ModelSession):
    """A session whose tokens are chosen in a graph: by the draft's own in greedy calls, else by that of chance."""

    _choice: Tensor | None = None  # [B] the graph's argmax, where that is what to draft
    _chance: Chance | None = None

    def _next_scores(self, state: DecodeState, logits: Tensor, drafted: list[Tensor]) -> Tensor | None:
        is_chosen = self._choice is not None or self._chance is not None
        return logits if is_chosen else super()._next_scores(state, logits, drafted)

    def _choose(self, state: DecodeState, scores: Tensor, q: list[Tensor], node: int) -> Tensor:
        if self._choice is not None:
            return self._choice
        if self._chance is None:
            return super()._choose(state, scores, q, node)
        token, probs = self._chance.draw(scores, state.coin_names(), node)
        q.append(probs)
        return token


class CompiledSession(GraphChoices):
    """Drafts with a compiled graph: a call a token, and the token chosen in it where the call is greedy.

    A chain begins with a row's last two tokens, whether the cache lacks one of them or both: writing a token again
    changes nothing, and rows that accepted everything are like the others.
    """

    observes = "counts"

    def __init__(self, runner: CompiledRunner, state: DecodeState, min_confidence: float = 0.0) -> None:
        super().__init__(runner, state, min_confidence=min_confidence)
        self._graph = runner
        asks = min_confidence or state.sampler.do_sample or state.sampler.processors  # for more than the argmax
        self._is_greedy = runner.vocab_size == state.vocab_size and not asks
        self._second = torch.ones(1, dtype=torch.int64, device=state.device)
        self._starts = self._cache.lengths  # [B] the slot of the next token to feed
        self._chance = None if min_confidence else chance_of(state, runner)

    def _num_pending(self, state: DecodeState) -> Tensor:
        return self._pending  # only the host's lengths count here

    def observe_counts(self, proposal: Proposal, num_accepted: Sequence[int]) -> None:
        self._seen = [n + min(a, self._fed) for n, a in zip(self._lengths, num_accepted, strict=True)]

    def _commit(self, drafted: Sequence[int], num_drafted: Tensor) -> None:
        self._seen = [n + d for n, d in zip(self._lengths, drafted, strict=True)]

    def _catch_up(self, state: DecodeState, lengths: list[int]) -> Tensor:
        if any(n - s > 2 or n < 2 for n, s in zip(lengths, self._seen, strict=True)):
            self._choice = None
            self._starts = int_tensor(lengths, state.device)
            self._cache.cut(self._seen)
            return super()._catch_up(state, lengths)
        starts = int_tensor([n - 2 for n in lengths], state.device)
        tokens = int_tensor([row[-2:] for row in state.host_tokens], state.device)
        return self._run(state, tokens, starts, max(lengths), self._second)

    def _feed(self, state: DecodeState, token: Tensor, lengths: list[int], step: int) -> Tensor:
        return self._run(state, token[:, None], self._starts, max(lengths) + step)

    def _run(
        self, state: DecodeState, tokens: Tensor, starts: Tensor, extent: int, keep: Tensor | None = None
    ) -> Tensor:
        """Logits [B, V] after the last of the tokens [B, W]."""
        self._forwards += 1
        self._cache.reserve(extent)
        if not self._is_greedy:
            tokens = tokens.clamp(0, self._runner.vocab_size - 1)
        outcome, self._starts, logits = self._graph.run(tokens, starts, self._cache, keep=keep)
        if self._is_greedy:
            self._choice = outcome[:, 3].clamp(min=0)  # NaN is a guess as any other
            return logits
        return self._as_wide_as_target(state, logits[:, 0])


class ModelDrafter(Drafter):
    """Drafts chains with any causal language model that shares the target's vocabulary.

    Greedy drafts when the call is greedy, else sampled from the draft's own distribution under the
    call's processors, and verified with it (speculative sampling, arXiv:2211.17192, arXiv:2302.01318).

    Args:
        model: the draft, on the target's device.
        tokenizer, draft_tokenizer: compared token by token where both are given. Without them only
            vocabulary sizes are compared, which two different tokenizers may share.
        min_confidence: a row's chain ends before the token at which the product of the draft's largest probabilities
            falls below this (`confidence.Confidence` says why the product), and drafting when all rows have ended.
            0 is off. Costs a softmax and one host read a drafted token, and pays where acceptance varies from text to
            text more than `num_draft_tokens="auto"` can follow.

    Raises:
        OptionError: min_confidence is no probability below 1; no model, or no tokenizer.
        UnsupportedModelError: the draft's memory cannot be rolled back.

    Example:
        >>> specdec.generate(target, **inputs, drafter=ModelDrafter(draft))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        draft_tokenizer: PreTrainedTokenizerBase | None = None,
        min_confidence: float = 0.0,
    ) -> None:
        self.min_confidence = check_confidence(min_confidence)
        check_model(unwrap(model))
        if (tokenizer is None) != (draft_tokenizer is None):
            raise DraftMismatchError("give both tokenizer= (the target's) and draft_tokenizer=, or neither.")
        if tokenizer is not None and draft_tokenizer is not None:
            check_tokenizers(tokenizer=tokenizer, draft_tokenizer=draft_tokenizer)
            compare_vocabularies(tokenizer.get_vocab(), draft_tokenizer.get_vocab())
        self.model: PreTrainedModel = unwrap(model)
        self._compared = tokenizer is not None
        self._runner = ModelRunner(self.model)

    def check(self, target: PreTrainedModel) -> None:
        """Raises DraftMismatchError unless vocabulary sizes and devices fit."""
        target_size = target.config.get_text_config(decoder=True).vocab_size
        size = self._runner.vocab_size
        device = input_device(target)
        if self._runner.device != device:
            raise DraftMismatchError(
                f"the draft is on {self._runner.device}, the target takes its input on {device}: "
                f"move the draft with draft.to({str(device)!r})."
            )
        if self._runner.is_encoder_decoder and not target.config.is_encoder_decoder:
            raise DraftMismatchError(
                f"the draft {type(self.model).__name__} has an encoder, and {type(target).__name__} has none whose "
                "input it could read: use a decoder-only draft."
            )
        name, other = self.model.main_input_name, target.main_input_name
        if self._runner.is_encoder_decoder and name != other:
            raise DraftMismatchError(
                f"the draft's encoder reads {name} and the target's {other}: use a draft of the target's family."
            )
        if self.model is target or self._compared:
            return
        if abs(size - target_size) > _MAX_PADDING:
            raise DraftMismatchError(
                f"the target has {target_size} token ids and the draft {size}: not the same tokenizer. Use a draft of "
                "the target's family; or prove that the vocabularies agree by giving ModelDrafter both tokenizers; or "
                "draft across tokenizers with CrossTokenizerDrafter(draft, target_tokenizer=..., draft_tokenizer=...)."
            )
        if self.model in _WARNED:
            return
        logger.warning(
            "target and draft have %d and %d token ids; their contents were not compared. "
            "ModelDrafter(draft, tokenizer=..., draft_tokenizer=...) compares them.",
            target_size,
            size,
        )
        _WARNED.add(self.model)

    def ranks(self, target: PreTrainedModel) -> Ranks | None:
        return self._runner.ranks

    def start(self, state: DecodeState) -> ModelSession:
        return self._start_chains(self._start_runner(state), state)

    def _start_runner(self, state: DecodeState) -> ModelRunner:
        """Runs the draft in one call, compiled if that is wanted and possible."""
        probe(self._runner)
        return compiled(self._runner, state.compile, state.max_new_tokens, state.graphs, "draft")

    def _start_chains(self, runner: ModelRunner, state: DecodeState) -> ModelSession:
        if isinstance(runner, CompiledRunner):
            return CompiledSession(runner, state, self.min_confidence)
        return ModelSession(runner, state, prompt_of(runner, state), self.min_confidence)


def check_model(model: Any) -> None:
    """Raises OptionError for what is no model."""
    if not isinstance(model, PreTrainedModel):
        raise OptionError(
            f"the draft must be a transformers model, got {type(model).__name__}: load it first, with "
            "AutoModelForCausalLM.from_pretrained(...)."
        )


def check_tokenizers(**given: Any) -> None:
    """Raises OptionError for what is no tokenizer, by the argument's name."""
    for name, tokenizer in given.items():
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise OptionError(
                f"{name} must be a transformers tokenizer, got {type(tokenizer).__name__}: load it first, with "
                "AutoTokenizer.from_pretrained(...)."
            )


def chance_of(state: DecodeState, runner: ModelRunner) -> Chance | None:
    """What draws a drafted token in a graph, if anything does: the target's own, as both have the same processors."""
    target = state.target
    return target.chance if isinstance(target, CompiledRunner) and runner.vocab_size >= state.vocab_size else None


def prompt_of(runner: ModelRunner, state: DecodeState) -> PromptInputs | None:
    """What the draft's decoder attends to: its own encoder's output, or the target's where it has no encoder."""
    if not runner.attends_to_encoder or state.encoded is None:
        return None
    encoded = state.encoded
    model: Any = runner.model
    width = getattr(model.config, "d_model", None) or model.config.hidden_size
    if not runner.is_encoder_decoder and encoded.hidden.shape[-1] != width:
        raise DraftMismatchError(
            f"the draft attends to encoder states of width {width}, and the target's have {encoded.hidden.shape[-1]}: "
            "use a draft that was made for this encoder, or one with an encoder of its own."
        )
    if runner.is_encoder_decoder:
        if encoded.inputs is None or encoded.inputs.is_floating_point() != (model.main_input_name != "input_ids"):
            raise DraftMismatchError(
                f"the draft has an encoder of its own, which reads {model.main_input_name}, and this call has none: "
                "give them in place of encoder_outputs or inputs_embeds, or use a decoder-only draft."
            )
        encoder = model.get_encoder()
        names = parameters(encoder.forward)
        kwargs = {"attention_mask": encoded.mask} if "attention_mask" in names else {}
        name = model.main_input_name
        inputs = encoded.inputs.to(runner.dtype) if encoded.inputs.is_floating_point() else encoded.inputs
        hidden = encoder(**{name: inputs}, **kwargs, return_dict=True).last_hidden_state
        encoded = Encoded(hidden, encoded.mask)
    return PromptInputs(state.lengths, encoded=encoded)


def compare_vocabularies(target: dict[str, int], draft: dict[str, int]) -> None:
    """Raises DraftMismatchError unless both map the same tokens to the same ids."""
    if target == draft:
        return
    differing = sorted(t for t in target.keys() | draft.keys() if target.get(t) != draft.get(t))
    example: Any = differing[0]
    raise DraftMismatchError(
        f"{len(differing)} of {len(target.keys() | draft.keys())} tokens differ between the tokenizers, for example "
        f"{example!r}: id {target.get(example)} in the target's, {draft.get(example)} in the draft's. "
        "Use a draft that was trained with the target's tokenizer, or draft across tokenizers with "
        "CrossTokenizerDrafter(draft, target_tokenizer=..., draft_tokenizer=...)."
    )
