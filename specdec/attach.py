"""Speculation for code that one does not own and that calls `target.generate()`: pipelines, evaluation harnesses."""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedModel

from specdec.decode import OnFinish
from specdec.drafters import Drafter
from specdec.errors import REFUSALS, OptionError
from specdec.generate import NumDraftTokens, SpeculativeDecoder, rng_restored_on_error
from specdec.loop import Rule
from specdec.stats import SpeculationStats
from specdec.streaming import ended
from specdec.types import Compile

logger = logging.getLogger("specdec")
_LOCK = threading.Lock()


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

    def add_plain(self) -> None:
        """Counts one call that transformers decodes."""
        with self._lock:
            self.plain_calls += 1


@contextmanager
def attached(
    target: PreTrainedModel,
    drafter: Drafter | PreTrainedModel | str | None = None,
    num_draft_tokens: NumDraftTokens = "auto",
    rule: Rule = "rejection",
    compile: Compile = False,
    *,
    unsupported: Literal["raise", "plain"] = "raise",
) -> Iterator[Attachment]:
    """While the block runs, `target.generate()` decodes speculatively.

    The method is replaced on this one object, and put back when the block ends, also by an exception. Other
    threads that call the same object's `generate` inside the block speculate as well.

    Args:
        target: the model whose `generate` other code calls.
        drafter, num_draft_tokens, rule, compile: as for `specdec.generate`.
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
    decoder = SpeculativeDecoder(drafter, num_draft_tokens, rule, compile)
    before: Any = target.generate
    attachment, warned = Attachment(), set[str]()

    def refused(error: BaseException) -> bool:
        """Is this a call that transformers shall decode?"""
        return unsupported == "plain" and isinstance(error, REFUSALS) and not error.while_decoding

    @functools.wraps(before)
    def generate(*args: Any, **kwargs: Any) -> Any:
        if not generate.specdec_active:  # type: ignore[attr-defined]
            return before(*args, **kwargs)
        named = _by_name(before, args, kwargs)
        on_finish = _both(attachment.add, named.pop("on_finish", None))
        try:
            with rng_restored_on_error(named.get("generator")), ended(named.get("streamer"), unless=refused):
                return decoder.run(target, on_finish=on_finish, **named)
        except REFUSALS as error:
            if not refused(error):
                raise
            if str(error) not in warned:
                warned.add(str(error))
                logger.warning("decoded without speculation: %s", error)
            attachment.add_plain()
            return before(*args, **kwargs)

    attributes: Any = vars(target)
    state: Any = generate
    state.specdec_replaces, state.specdec_active, state.specdec_own = before, True, attributes.get("generate")
    with _LOCK:
        attributes["generate"] = generate
    try:
        yield attachment
    finally:
        state.specdec_active = False
        _take_away(attributes)


def _take_away(attributes: dict[str, Any]) -> None:
    """Puts back what stood under the blocks that have ended, once no later block (of another thread) is above them."""
    with _LOCK:
        while getattr(attributes.get("generate"), "specdec_active", None) is False:
            own = attributes.pop("generate").specdec_own
            if own is not None:
                attributes["generate"] = own


def _both(first: OnFinish, second: OnFinish | None) -> OnFinish:
    """Tells two receivers."""

    def tell(stats: SpeculationStats) -> None:
        first(stats)
        if second is not None:
            second(stats)

    return tell


def _by_name(generate: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name; transformers takes them by position as well, Whisper in another order."""
    names = [n for n in inspect.signature(generate).parameters if n not in ("self", "kwargs")]
    if len(args) > len(names):
        raise OptionError(f"generate() takes at most {len(names)} positional arguments, got {len(args)}.")
    given = dict(zip(names, args, strict=False))
    twice = given.keys() & kwargs.keys()
    if twice:
        raise OptionError(f"generate() got {sorted(twice)[0]}= twice, by position and by name.")
    return given | kwargs
