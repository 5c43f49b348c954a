"""Drafting with a model that has another tokenizer than the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from specdec.compiled import CompiledRunner, compiled
from specdec.drafters.base import Drafter, DraftSession
from specdec.drafters.confidence import check_confidence
from specdec.drafters.model import CompiledSession, ModelSession, check_model, check_tokenizers
from specdec.drafters.retokenise import Retokeniser
from specdec.drafters.shared_vocabulary import SharedVocabulary, special_pairs
from specdec.drafters.spelling import Spelling
from specdec.errors import DraftMismatchError, OptionError, UnsupportedModelError
from specdec.probe import probe
from specdec.ranks import Ranks
from specdec.sampling import Sampler
from specdec.state import DecodeState
from specdec.target import ModelRunner, input_device
from specdec.types import Proposal, int_tensor
from specdec.wrapped import unwrap

Method = Literal["text", "intersection", "auto"]
_MAX_PADDING = 1024  # ids that an embedding matrix has beyond its tokenizer's
# Shared tokens among the prompt's, from which on "auto" takes the intersection. At one that is not shared every chain
# ends, where text goes on. In sampled calls text is accepted less often: measured on four prompts with the draft in
# drafts/other, of whose target tokens 0.79 are shared, 0.19 of what was drafted against 0.26. So fewer shared tokens
# are enough there. In greedy calls neither was clearly better.
_ENOUGH_GREEDY, _ENOUGH_SAMPLED = 0.95, 0.5
_RING_SLACK = 16  # tokens behind its end that a sliding window's ring can be cut back by


class DraftText(DecodeState):
    """The rows' texts in the draft's tokens. Unlike the target's, their ends may be written anew.

    Args:
        rows: tokens of each row, one at least.
        vocab_size: the draft's.
    """

    def __init__(self, rows: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> None:
        longest = max(map(len, rows))
        ids = int_tensor([[*row, *[0] * (longest - len(row))] for row in rows], device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(longest, device=device) < lengths[:, None]
        sampler = Sampler(LogitsProcessorList(), False, len(rows))  # the call's processors know the target's ids only
        super().__init__(ids, ids, mask, 2 * longest, vocab_size, sampler, None)

    def rewrite(self, kept: Sequence[int], new: Sequence[Sequence[int]]) -> None:
        """Row b keeps kept[b] tokens, and new[b] stand behind them."""
        self._write()
        for row, keep in zip(self.host_tokens, kept, strict=True):
            del row[keep:]
        needed = max(k + len(n) for k, n in zip(kept, new, strict=True)) + 1
        if needed > self._tokens.shape[1]:
            self._tokens = F.pad(self._tokens, (0, 2 * needed - self._tokens.shape[1]))
        self._lengths = int_tensor(kept, self.device)
        width = max(map(len, new))
        padded = int_tensor([[*n, *[0] * (width - len(n))] for n in new], self.device).view(len(new), width)
        self.extend(padded, int_tensor([len(n) for n in new], self.device), new)


class TextSession(DraftSession):
    """Drafts text: greedily, in the draft's tokens, then tokenised for the target (SLEM, arXiv:2502.05202)."""

    observes = "nothing"  # the next round compares texts

    def __init__(
        self, runner: ModelRunner, state: DecodeState, target: Spelling, draft: Spelling, min_confidence: float = 0.0
    ) -> None:
        special = special_pairs(target, draft)
        self._texts = [Retokeniser(target, draft, special) for _ in state.host_tokens]
        self._filler = [draft.end or 0]  # stands where there is no text yet
        self._fed = [self._read(t, tokens) for t, tokens in zip(self._texts, state.host_tokens, strict=True)]
        self._own = DraftText(self._fed, runner.vocab_size, state.device)
        kind = CompiledSession if isinstance(runner, CompiledRunner) else ModelSession
        self._inner: ModelSession = kind(runner, self._own, min_confidence=min_confidence)  # type: ignore[arg-type]
        self._has_rings = not isinstance(runner, CompiledRunner) and any(k.window is not None for k in runner.kinds)
        self._written = [0] * state.batch_size  # slots of each row that the cache has ever written
        self._runner = runner

    @property
    def forwards(self) -> int:
        return self._inner.forwards

    def close(self) -> None:
        self._inner.close()

    def select_rows(self, rows: Sequence[int], index: Tensor) -> None:
        self._inner.select_rows(rows, index)
        self._own.select_rows(rows, index)
        self._texts = [self._texts[r] for r in rows]
        self._fed = [self._fed[r] for r in rows]
        self._written = [self._written[r] for r in rows]

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        read = [self._read(text, tokens) for text, tokens in zip(self._texts, state.host_tokens, strict=True)]
        self._follow(read)
        # So many of the draft's tokens make that many of the target's, and one ends the last word.
        ratio = sum(map(len, read)) / max(1, sum(map(len, state.host_tokens)))
        depth = math.ceil(max(limit) * min(max(ratio, 0.25), 4.0)) + 1
        drafted = self._inner.propose(self._own, [depth] * state.batch_size)
        if drafted.num_nodes == 0:
            if self._inner._seen == self._own.host_lengths:  # it read the text, and was not sure of any token
                self._fed = [list(row) for row in read]
                self._written = [max(w, len(row)) for w, row in zip(self._written, read, strict=True)]
            return Proposal.empty(state.batch_size, state.device)
        rows = drafted.tokens.tolist()
        state.sampler.host_reads += 1
        self._keep(read, rows)
        if not drafted.is_whole:
            rows = [row[:n] for row, n in zip(rows, drafted.valid.sum(1).tolist(), strict=True)]
        found = [text.continuation(row)[:most] for text, row, most in zip(self._texts, rows, limit, strict=True)]
        width = max(map(len, found))
        if width == 0:
            return Proposal.empty(state.batch_size, state.device)
        tokens = int_tensor([f + [0] * (width - len(f)) for f in found], state.device)
        lengths = torch.tensor([len(f) for f in found], device=state.device)
        return Proposal.chain(tokens, torch.arange(width, device=state.device) < lengths[:, None])

    def _read(self, text: Retokeniser, tokens: list[int]) -> list[int]:
        """A row in the draft's tokens; a row that cannot be written in them will propose nothing."""
        return list(text.read(tokens) or self._filler)

    def _follow(self, read: Sequence[list[int]]) -> None:
        """The draft's cache forgets what is no longer the text."""
        # The logits behind a row's last token are wanted, so that one is fed again.
        kept = [min(_common(fed, row), len(row) - 1) for fed, row in zip(self._fed, read, strict=True)]
        kept = [min(k, seen) for k, seen in zip(kept, self._inner._seen, strict=True)]
        changed = [_common(old, row) for old, row in zip(self._own.host_tokens, read, strict=True)]
        self._own.rewrite(changed, [row[c:] for row, c in zip(read, changed, strict=True)])
        if kept == self._inner._seen:
            return
        if self._has_rings and any(w - k > _RING_SLACK for w, k in zip(self._written, kept, strict=True)):
            kept = [0] * len(kept)  # what the ring has lost is read again
            self._inner._cache = self._runner.new_cache(len(kept), max(map(len, read)) + 1)
        self._inner._cache.cut(kept)
        self._inner._seen = kept

    def _keep(self, read: Sequence[list[int]], rows: Sequence[list[int]]) -> None:
        """All that was fed stays in the cache until the next round knows the text."""
        fed = self._inner._fed
        pending = max(len(row) - seen for row, seen in zip(read, self._inner._seen, strict=True))
        self._written = [max(w, seen + pending + fed) for w, seen in zip(self._written, self._inner._seen, strict=True)]
        self._inner._commit([fed] * len(rows), torch.full_like(self._own.lengths, fed))
        self._fed = [[*row, *more[:fed]] for row, more in zip(read, rows, strict=True)]


class IntersectionSession(ModelSession):
    """Drafts the target's tokens: the draft's distribution over those that it has, too (TLI, arXiv:2502.05202, Alg. 4).

    The draft reads each of the target's tokens as its own of the same content, or as the pieces that spell it, so that
    what it has read never changes.
    """

    def __init__(
        self,
        runner: ModelRunner,
        state: DecodeState,
        shared: SharedVocabulary,
        draft: Spelling,
        min_confidence: float = 0.0,
    ) -> None:
        self._shared, self._filler = shared, draft.end or 0
        self._read = [0] * state.batch_size  # committed target tokens of each row that stand in its own text
        prefix = draft.prefix
        pairs = shared.special_to_draft
        starts = [
            # A text that begins with a BOS of both needs no other.
            [] if len(prefix) == 1 and tokens and pairs.get(tokens[0]) == prefix[0] else prefix
            for tokens in state.host_tokens
        ]
        rows = [[*start, *new] for start, new in zip(starts, self._new(state), strict=True)]
        self._own = DraftText([row or [self._filler] for row in rows], runner.vocab_size, state.device)
        super().__init__(runner, self._own, min_confidence=min_confidence)
        self._target = state
        self._drafted: list[Tensor] = []  # this round's tokens [B], in the target's ids
        self._target_ids = torch.tensor(list(shared.to_draft.keys()), device=state.device)
        self._draft_ids = torch.tensor(list(shared.to_draft.values()), device=state.device)
        self._to_draft = torch.zeros(state.vocab_size, dtype=torch.int64, device=state.device)
        self._to_draft[self._target_ids] = self._draft_ids

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        new = self._new(state)
        for more, tokens, seen in zip(new, self._own.host_tokens, self._seen, strict=True):
            if len(tokens) + len(more) == seen:
                more.append(self._filler)  # a token must be fed to have logits behind it
        self._own.rewrite(self._own.host_lengths, new)
        self._drafted = []
        own = super().propose(self._own, limit)
        if own.num_nodes == 0:
            return Proposal.empty(state.batch_size, state.device)
        return Proposal.chain(torch.stack(self._drafted, 1), None if own.is_whole else own.valid, own.q)

    def select_rows(self, rows: Sequence[int], index: Tensor) -> None:
        super().select_rows(rows, index)
        self._own.select_rows(rows, index)
        self._read = [self._read[r] for r in rows]

    def _new(self, state: DecodeState) -> list[list[int]]:
        """What was committed since the last call, in draft tokens."""
        news = [tokens[read:] for tokens, read in zip(state.host_tokens, self._read, strict=True)]
        self._read = state.host_lengths
        return [[piece for token in new for piece in self._shared.pieces(token)] for new in news]

    def _next_scores(self, state: DecodeState, logits: Tensor, drafted: list[Tensor]) -> Tensor | None:
        """As for a draft of the target's vocabulary, [B, V] over the target's ids."""
        target = self._target
        over_target = logits.new_full((len(logits), target.vocab_size), float("-inf"))
        over_target[:, self._target_ids] = logits[:, self._draft_ids]
        scores = self._scores(target, over_target, self._drafted)
        if target.sampler.processors and not bool((scores > float("-inf")).any(-1).all()):
            return None  # what the processors allow is not shared
        return scores

    def _choose(self, state: DecodeState, scores: Tensor, q: list[Tensor], node: int) -> Tensor:
        """The token [B] in the draft's ids."""
        token = super()._choose(self._target, scores, q, node)
        self._drafted.append(token)
        return self._to_draft[token.clamp(min=0)]


class CrossTokenizerDrafter(Drafter):
    """Drafts with any causal language model whose tokenizer is not the target's.

    Args:
        draft: the draft, on the target's device.
        target_tokenizer, draft_tokenizer: the two models' own.
        method: "text" drafts greedily in the draft's tokens, and tokenises the text for the target (SLEM,
            arXiv:2502.05202; transformers' universal assisted decoding). Any two tokenizers will do, and the draft may
            propose whatever the target can say; sampled calls accept a token with the probability that the target
            gives it. "intersection" drafts tokens that both vocabularies have, sampled in sampled calls and verified
            with their distribution (TLI, Alg. 4 there); a token that the draft lacks is never proposed. "auto" asks
            how many of a call's prompt tokens are shared: from 0.95 on (0.5 in sampled calls, where text is accepted
            far less often) the intersection, else text; always the intersection where the draft is recurrent.
        min_confidence: see `ModelDrafter`.

    Attributes:
        coverage: the part of the target's ordinary tokens that the draft has, too.

    Raises:
        OptionError: an unknown method, or something that is no tokenizer.
        DraftMismatchError: the tokenizers are one; one does not belong to its model; nothing is shared where the
            intersection is asked for.
        UnsupportedModelError: the draft's memory cannot be rolled back to any token, which text needs; it has an
            encoder; or it cannot hold rows of different lengths.

    Example:
        >>> drafter = CrossTokenizerDrafter(
        ...     draft, target_tokenizer=tokenizer, draft_tokenizer=other
        ... )  # doctest: +SKIP
        >>> specdec.generate(target, **inputs, drafter=drafter)  # doctest: +SKIP
    """

    def __init__(
        self,
        draft: PreTrainedModel,
        *,
        target_tokenizer: PreTrainedTokenizerBase,
        draft_tokenizer: PreTrainedTokenizerBase,
        method: Method = "auto",
        min_confidence: float = 0.0,
    ) -> None:
        self.min_confidence = check_confidence(min_confidence)
        if method not in ("text", "intersection", "auto"):
            raise OptionError(f"method must be 'text', 'intersection' or 'auto', got {method!r}.")
        check_tokenizers(target_tokenizer=target_tokenizer, draft_tokenizer=draft_tokenizer)
        check_model(unwrap(draft))
        self.model: PreTrainedModel = unwrap(draft)
        self._runner = ModelRunner(self.model)
        if self._runner.attends_to_encoder:
            raise UnsupportedModelError(
                f"the draft {type(self.model).__name__} attends to an encoder, which reads another tokenizer's "
                "tokens: use a decoder-only draft."
            )
        self._target, self._draft = Spelling(target_tokenizer), Spelling(draft_tokenizer)
        if self._target.vocabulary == self._draft.vocabulary:
            raise DraftMismatchError(
                "both tokenizers have the same tokens under the same ids: use specdec.ModelDrafter(draft), which "
                "needs no translation."
            )
        _check_size("draft", self._draft, self._runner.vocab_size)
        self._shared = SharedVocabulary(self._target, self._draft)
        self.coverage = self._shared.coverage
        self.method = method
        self._check_method()

    def check(self, target: PreTrainedModel) -> None:
        """Raises DraftMismatchError unless tokenizer and device fit the target."""
        device = input_device(target)
        if self._runner.device != device:
            raise DraftMismatchError(
                f"the draft is on {self._runner.device}, the target takes its input on {device}: "
                f"move the draft with draft.to({str(device)!r})."
            )
        _check_size("target", self._target, target.config.get_text_config(decoder=True).vocab_size)

    def ranks(self, target: PreTrainedModel) -> Ranks | None:
        return self._runner.ranks

    def start(self, state: DecodeState) -> DraftSession:
        probe(self._runner)
        if self._runner.layout.level and state.batch_size > 1:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} places all rows of a batch at one position, and rows in another "
                "tokenizer's tokens have lengths of their own: decode one row at a time, or use another draft."
            )
        runner = compiled(self._runner, state.compile, state.max_new_tokens, state.graphs, "draft")
        if self._drafts_text(state):
            return TextSession(runner, state, self._target, self._draft, self.min_confidence)
        return IntersectionSession(runner, state, self._shared, self._draft, self.min_confidence)

    def _check_method(self) -> None:
        """Raises an error for a method that these models or tokenizers do not allow."""
        if self.method == "intersection" and not self.coverage:
            raise DraftMismatchError(
                "the two vocabularies have no token in common, so there is no intersection to draft from: use "
                "method='text'."
            )
        if self._runner.replays and (self.method == "text" or not self.coverage):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has recurrent states, which cannot go back to any token of a text that "
                "is tokenised anew: use method='intersection', or a draft of attention layers."
            )

    def _drafts_text(self, state: DecodeState) -> bool:
        """Whether a call is served by text."""
        if self.method != "auto" or self._runner.replays:
            return self.method == "text"
        tokens = [t for row in state.host_tokens for t in row if t in self._target.ordinary]
        shared = sum(t in self._shared.to_draft for t in tokens) / len(tokens) if tokens else self.coverage
        return shared < (_ENOUGH_SAMPLED if state.sampler.do_sample else _ENOUGH_GREEDY) or not self.coverage


def _check_size(whose: str, spelling: Spelling, vocab_size: int) -> None:
    """Raises DraftMismatchError unless a tokenizer can be that of a model with so many ids."""
    if spelling.size > vocab_size:
        raise DraftMismatchError(
            f"{whose}_tokenizer has ids up to {spelling.size - 1}, and the {whose} only {vocab_size}: it is another "
            "model's tokenizer. (Were the two exchanged?)"
        )
    if vocab_size - spelling.size > _MAX_PADDING:
        raise DraftMismatchError(
            f"{whose}_tokenizer has {spelling.size} ids, and the {whose} {vocab_size}: it is another model's "
            "tokenizer. (Were the two exchanged?)"
        )


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences begin with alike."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:  # much faster than a look at each
        return length
    return next(i for i in range(length) if one[i] != other[i])
