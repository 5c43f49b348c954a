"""Speculation for code that one does not own and that calls `target.generate()`: pipelines, evaluation harnesses."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedModel

from specdec.drafters import Drafter
from specdec.errors import REFUSALS, OptionError
from specdec.generate import NumDraftTokens, SpeculativeDecoder
from specdec.loop import Rule
from specdec.stats import SpeculationStats
from specdec.streaming import ended

logger = logging.getLogger("specdec")


@dataclass(slots=True)
class Attachment:
    """What has been decoded since `attached` began."""

    calls: int = 0  # by specdec
    plain_calls: int = 0  # by transformers, after a refusal
    speculation: SpeculationStats = field(default_factory=SpeculationStats)  # summed over the calls
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, stats: SpeculationStats) -> None:
        """Counts one finished call."""
        with self._lock:
            self.calls += 1
            self.speculation = self.speculation + stats


@contextmanager
def attached(
    target: PreTrainedModel,
    drafter: Drafter | PreTrainedModel | None = None,
    num_draft_tokens: NumDraftTokens = "auto",
    rule: Rule = "rejection",
    *,
    unsupported: Literal["raise", "plain"] = "raise",
) -> Iterator[Attachment]:
    """While the block runs, `target.generate()` decodes speculatively.

    The method is replaced on this one object, and put back when the block ends, also by an exception. Other
    threads that call the same object's `generate` inside the block speculate as well.

    Args:
        target: the model whose `generate` other code calls.
        drafter, num_draft_tokens, rule: as for `specdec.generate`.
        unsupported: what to do with a call that specdec refuses before any forward (beams, for example): "raise" its
            error, or decode it "plain", with one warning per reason.

    Yields:
        An Attachment: how many calls, and their statistics in sum.

    Raises:
        OptionError, UnsupportedModelError: bad settings.

    Example:
        >>> with specdec.attached(target, drafter=draft) as speculation:  # doctest: +SKIP
        ...     transformers.pipeline("text-generation", model=target, tokenizer=tokenizer)("def f(")
        >>> print(speculation.speculation)  # doctest: +SKIP
    """
    if unsupported not in ("raise", "plain"):
        raise OptionError(f"unsupported must be 'raise' or 'plain', got {unsupported!r}.")
    decoder = SpeculativeDecoder(drafter, num_draft_tokens, rule)
    before: Any = target.generate
    refusals = REFUSALS if unsupported == "plain" else ()
    attachment, warned = Attachment(), set[str]()

    @functools.wraps(before)
    def generate(*args: Any, **kwargs: Any) -> Any:
        try:
            with ended(kwargs.get("streamer"), unless=refusals):
                return decoder.run(target, *args, on_finish=attachment.add, **kwargs)
        except refusals as error:
            if str(error) not in warned:
                warned.add(str(error))
                logger.warning("decoded without speculation: %s", error)
            attachment.plain_calls += 1
            return before(*args, **kwargs)

    generate.specdec_replaces = before  # type: ignore[attr-defined]
    attributes: Any = vars(target)
    own = attributes.get("generate")
    attributes["generate"] = generate
    try:
        yield attachment
    finally:
        if own is None:
            del attributes["generate"]
        else:
            attributes["generate"] = own
