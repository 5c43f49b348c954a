"""One call of the loop, and all that a profile wants to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from specdec.decode import SpeculativeOutput
from specdec.generate import SpeculativeDecoder
from specdec.profile.contenders import Contender
from specdec.profile.meters import Energy, PeakMemory
from specdec.profile.timing import TimedDrafter
from specdec.stats import SpeculationStats
from specdec.target import input_device
from specdec.trace import Source

LETTERS = {Source.ACCEPTED: "a", Source.RECOVERED: "r", Source.BONUS: "b", Source.PLAIN: "p"}


@dataclass(frozen=True, slots=True)
class Call:
    """What one call took and gave.

    Attributes:
        tokens: new tokens of each row.
        sources: of the same lengths, letters of `LETTERS`.
        draft: seconds of each proposal.
        peak_bytes, joules: None where the device does not say.
    """

    tokens: list[list[int]]
    sources: list[str]
    stats: SpeculationStats
    draft: list[float]
    seconds: float
    peak_bytes: int | None
    joules: float | None

    def timings(self) -> dict[str, float]:
        """Seconds of all rounds together: drafting, verifying, the rest; and of the prompt, which drafts read, too.

        A draft reads the prompt in its first proposal: what that takes longer than the later ones is the prompt's.
        """
        drafting, later = sum(self.draft), self.draft[1:]
        first = max(0.0, self.draft[0] - sum(later) / len(later)) if later else 0.0
        known = self.stats.prefill_seconds + self.stats.verify_seconds + drafting
        return {
            "draft": drafting - first,
            "verify": self.stats.verify_seconds,
            "other": max(0.0, self.seconds - known),
            "prefill": self.stats.prefill_seconds + first,
        }


@dataclass(slots=True)
class Engine:
    """The target and how it is decoded.

    Args:
        compile: run target and drafts as compiled graphs.
    """

    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    compile: bool
    seed: int
    _drafters: dict[str, TimedDrafter] = field(default_factory=dict, init=False)

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        contender: Contender | None,
        num_draft_tokens: int,
        temperature: float,
        new_tokens: int,
        name: int,
        *,
        is_metered: bool = False,
    ) -> Call:
        """Decodes one batch.

        Args:
            contender: None decodes plainly.
            name: of the prompts: the same name has the same coins in every setting.
        """
        timed = None if contender is None else self._timed(contender)
        decoder = SpeculativeDecoder(timed, max(num_draft_tokens, 1), compile=self.compile)
        device = input_device(self.target)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + name) % 2**63)
        memory, energy = PeakMemory(device), Energy(device)
        inputs = self._inputs(prompts, device)
        config = self._config(temperature, new_tokens)
        if is_metered:
            memory.start()
            energy.start()
        begun = perf_counter()
        output = decoder.generate(
            self.target,
            generation_config=config,
            generator=generator if temperature > 0 else None,
            **inputs,
        )
        seconds = perf_counter() - begun
        assert isinstance(output, SpeculativeOutput)
        stats = output.speculation
        assert stats is not None
        assert stats.trace is not None
        return Call(
            tokens=stats.trace.tokens,
            sources=["".join(LETTERS[s] for s in row) for row in stats.trace.sources],
            stats=stats,
            draft=[] if timed is None else list(timed.seconds),
            seconds=seconds,
            peak_bytes=memory.stop() if is_metered else None,
            joules=energy.stop() if is_metered else None,
        )

    def _timed(self, contender: Contender) -> TimedDrafter:
        name = contender.info.name
        if name not in self._drafters:
            self._drafters[name] = TimedDrafter(contender.drafter)
        return self._drafters[name]

    def _inputs(self, prompts: Sequence[Sequence[int]], device: torch.device) -> dict[str, Any]:
        longest = max(map(len, prompts))
        filler = self.padding
        ids = [[filler] * (longest - len(p)) + list(p) for p in prompts]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        return {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": torch.tensor(mask, device=device),
        }

    @property
    def padding(self) -> int:
        """The id that stands where there is no token."""
        config = self.target.generation_config
        eos = config.eos_token_id
        known = (config.pad_token_id, self.tokenizer.pad_token_id, eos[0] if isinstance(eos, list) else eos, 0)
        return int(next(i for i in known if i is not None))

    def _config(self, temperature: float, new_tokens: int) -> GenerationConfig:
        """Temperature alone: what else the checkpoint's own generation config asks for is switched off."""
        own = self.target.generation_config
        sampling: dict[str, Any] = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        return GenerationConfig(
            do_sample=temperature > 0,
            return_dict_in_generate=True,
            max_new_tokens=new_tokens,
            bos_token_id=own.bos_token_id,
            eos_token_id=own.eos_token_id,
            pad_token_id=self.padding,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            **sampling,
        )
