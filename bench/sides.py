"""The ways to generate that are compared: transformers' own, and ours. All take one batch of prompts."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import specdec
from bench.free import MOST_NEW_TOKENS, FreeDrafter
from bench.harness import Outcome
from bench.prompts import Batch, Tokens, batched, tokens_of
from bench.settings import BUNDLED, Models, pair, target_copy
from bench.static import reason_against, static_generate
from specdec.loading import placed
from specdec.profile.prompts import Prompt

__all__ = ["Batch", "Generated", "Side", "Sides", "pair"]

Side = Callable[[Batch], Outcome]
Engine = Literal["eager", "compiled"]


@dataclass(frozen=True, slots=True)
class Generated:
    """What one call generated, and with how many forwards of the target."""

    rows: list[list[int]]  # new tokens up to EOS
    target_forwards: int
    stats: specdec.SpeculationStats | None


@cache
def _loaded(folder: pathlib.Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


class Sides:
    """Builds sides for one pair and one way to sample.

    Args:
        dtype: of both models.
        temperature: 0 means greedy.
        new_tokens: at most so many a prompt.
        draft_tokens: the number k for every side that has a fixed one.
        models: the pair and its device.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        temperature: float,
        new_tokens: int,
        draft_tokens: int,
        models: Models = BUNDLED,
    ) -> None:
        self.target, draft, self.tokenizer = pair(dtype, models)
        self.models, self.draft_tokens, self.new_tokens = models, draft_tokens, new_tokens
        self.kwargs: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": temperature > 0}
        if temperature > 0:
            self.kwargs |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        self.drafter = specdec.ModelDrafter(draft, tokenizer=self.tokenizer, draft_tokenizer=self.tokenizer)
        # transformers reads these from the draft's generation_config; a copy keeps the draft as it is.
        self.assistant = copy.deepcopy(draft)
        config = self.assistant.generation_config
        config.num_assistant_tokens = draft_tokens
        config.num_assistant_tokens_schedule = "constant"
        config.assistant_confidence_threshold = 0.0
        self._generate: Callable[..., Any] = self.target.generate  # type: ignore[assignment]
        self._forwards = 0
        self._seed = 0
        eos = self.target.generation_config.eos_token_id
        self._eos = frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])

    def __enter__(self) -> Sides:
        # One counter for all sides; transformers reports no acceptance of its own.
        self._hook = self.target.register_forward_pre_hook(self._count)
        return self

    def __exit__(self, *exc: object) -> None:
        self._hook.remove()

    def plain(self) -> Side:
        """`target.generate()`."""
        return lambda batch: self._call(self._generate, batch)

    def assisted(self) -> Side:
        """transformers' assisted generation with the same draft and the same k; batch 1 only."""
        return lambda batch: self._call(self._generate, batch, assistant_model=self.assistant)

    def prompt_lookup(self) -> Side:
        """transformers' prompt lookup with the same k; batch 1 only."""
        return lambda batch: self._call(self._generate, batch, prompt_lookup_num_tokens=self.draft_tokens)

    def static(self, longest: int, batches: Sequence[Batch]) -> Side | str:
        """`target.generate()` with a static cache and torch.compile, compiled here; or why that cannot be done.

        Args:
            longest: tokens of the longest prompt; the cache has room for as many and the new ones.
            batches: one of each number of rows.
        """
        generate = static_generate(target_copy(self.target.dtype, self.models, "static"), longest + self.new_tokens)
        for batch in batches:
            reason = reason_against(generate, batch)
            if reason is not None:
                return reason

        def counted(**kwargs: Any) -> Any:
            output = generate(**kwargs)
            self._forwards = output.shape[1] - kwargs["input_ids"].shape[1]  # no hook: it would be compiled as well
            return output

        return lambda batch: self._call(counted, batch)

    def own_plain(self, engine: Engine) -> Side:
        """Ours without drafts: what speculation in the same engine is held against."""
        return self.compiled(None) if engine == "compiled" else self._specdec(None, auto=True)

    def free(self, engine: Engine, num_draft_tokens: int) -> Side:
        """Ours with drafts that cost nothing and are wrong; its work is rounds, its time theirs without the prefill."""
        drafter = FreeDrafter(num_draft_tokens)
        count, few = max(1, num_draft_tokens), {"max_new_tokens": drafter.new_tokens}
        side = (
            self.graphs(drafter, count, **few)
            if engine == "compiled"
            else self.decoder(specdec.SpeculativeDecoder(drafter, count), **few)
        )

        def timed(batch: Batch) -> Outcome:
            side(batch)
            rounds, seconds = drafter.rounds()
            return Outcome(rounds, None, seconds)

        return timed

    def model(self, auto: bool) -> Side:
        """Ours with the draft model."""
        return self._specdec(self.drafter, auto)

    def ngram(self, auto: bool) -> Side:
        """Ours without a draft model."""
        return self._specdec(specdec.NgramDrafter(), auto)

    def early_exit(self, exit_layer: int) -> Side:
        """transformers' own drafting with the target's first layers, with the same k; batch 1 only.

        It changes the model's config while it drafts, so that a copy of the target takes the call.
        """
        target: Any = target_copy(self.target.dtype, self.models, "early exit")
        config = copy.deepcopy(target.generation_config)
        config.num_assistant_tokens, config.num_assistant_tokens_schedule = self.draft_tokens, "constant"
        config.assistant_confidence_threshold = 0.0

        def generate(**kwargs: Any) -> Any:
            return target.generate(generation_config=config, assistant_early_exit=exit_layer, **kwargs)

        return lambda batch: self._call(generate, batch)

    def universal(self) -> Side | None:
        """transformers' assisted generation with a draft of another tokenizer; None if there is no such draft here."""
        other = self.other_draft()
        if other is None:
            return None
        draft, tokenizer = other
        assistant = copy.deepcopy(draft)
        config = assistant.generation_config
        config.num_assistant_tokens, config.num_assistant_tokens_schedule = self.draft_tokens, "constant"
        config.assistant_confidence_threshold = 0.0
        both = {"assistant_model": assistant, "tokenizer": self.tokenizer, "assistant_tokenizer": tokenizer}
        return lambda batch: self._call(self._generate, batch, **both)

    def other_draft(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
        """The draft of another tokenizer in drafts/other, which was made for the bundled target."""
        folder = pathlib.Path(__file__).parent.parent / "drafts" / "other"
        if self.models.target is not None or not folder.is_dir():
            return None
        draft, tokenizer = _loaded(folder, self.target.dtype)
        return placed(draft, self.models.device), tokenizer

    def strategy(self, drafter: specdec.Drafter, auto: bool) -> Side:
        """Ours with any drafter."""
        return self._specdec(drafter, auto)

    def compiled(self, drafts: Literal["model", "ngram"] | None, num_draft_tokens: int | None = None) -> Side:
        """Ours as compiled graphs; num_draft_tokens: None means "auto"."""
        drafters = {"model": self.drafter, "ngram": specdec.NgramDrafter(), None: None}
        return self.graphs(drafters[drafts], num_draft_tokens)

    def graphs(self, drafter: specdec.Drafter | None, num_draft_tokens: int | None, **more: Any) -> Side:
        """Ours with any drafter as compiled graphs.

        The counter's hook would not run in a graph: another copy of the target decodes, and says its own rounds.
        """
        count: Any = "auto" if num_draft_tokens is None else num_draft_tokens
        decoder = specdec.SpeculativeDecoder(drafter, count, compile=True)
        target = target_copy(self.target.dtype, self.models, "graphs")

        def generate(**kwargs: Any) -> Any:
            out: Any = decoder.generate(target, return_dict_in_generate=True, **kwargs)
            assert out.speculation.graphs.roles["target"] == "compiled", out.speculation.graphs.roles
            self._forwards = out.speculation.rounds + 1
            return out

        return lambda batch: self._call(generate, batch, **more)

    def tokens(self, prompts: Sequence[str | Prompt]) -> list[Tokens]:
        """The prompts' tokens; of those too long for the target's positions the end only."""
        longest = self.longest_prompt
        return [Tokens(t.kind, t.ids[-longest:]) for t in tokens_of(prompts, self.tokenizer)]

    @property
    def longest_prompt(self) -> int:
        """Tokens that leave room for the new ones, and for the timed rounds, in the target's positions."""
        positions = getattr(self.target.config.get_text_config(), "max_position_embeddings", None) or 1 << 20
        return max(1, int(positions) - max(self.new_tokens, MOST_NEW_TOKENS))

    def batches(self, prompts: Sequence[str | Prompt | Tokens], size: int) -> list[Batch]:
        """Prompts in batches of `size`, left-padded; the last one is filled up from the first prompts."""
        tokens = [p if isinstance(p, Tokens) else self.tokens([p])[0] for p in prompts]
        pad = self.tokenizer.pad_token_id
        return batched(tokens, size, 0 if pad is None else int(pad), self.models.device)

    def _specdec(self, drafter: specdec.Drafter | None, auto: bool) -> Side:
        return self.decoder(specdec.SpeculativeDecoder(drafter, "auto" if auto else self.draft_tokens))

    def decoder(self, decoder: specdec.SpeculativeDecoder, **more: Any) -> Side:
        """Ours, uncompiled, by any decoder."""

        def generate(**kwargs: Any) -> Any:
            return decoder.generate(self.target, return_dict_in_generate=True, **kwargs)

        return lambda batch: self._call(generate, batch, **more)

    def _call(self, generate: Callable[..., Any], batch: Batch, **kwargs: Any) -> Outcome:
        self._forwards = 0
        torch.manual_seed(self._seed)
        self._seed += 1
        output = generate(**batch, **(self.kwargs | kwargs))
        sequences = output if isinstance(output, Tensor) else output.sequences
        rows = [self._until_eos(row) for row in sequences[:, batch["input_ids"].shape[1] :].tolist()]
        stats = getattr(output, "speculation", None)
        return Outcome(sum(map(len, rows)), Generated(rows, self._forwards, stats))

    def _until_eos(self, row: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(row) if token in self._eos), len(row))
        return row[: end + 1]

    def _count(self, *args: object) -> None:
        self._forwards += 1
