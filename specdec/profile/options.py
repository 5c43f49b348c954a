"""What `specdec profile` was asked to do, checked before anything is loaded."""

from __future__ import annotations

import math
import pathlib
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from specdec.controller import MAX_DRAFT_TOKENS
from specdec.errors import OptionError

MAX_BATCH = 256


@dataclass(frozen=True, slots=True)
class Options:
    """One profile's settings.

    Attributes:
        target: directory or hub id; None is the bundled pair.
        drafts: draft models.
        strategies: names of other ways to draft.
        prompts: a file; None are the bundled prompts.
        max_prompts: of the file.
        loop_prompts: how many of them the loop itself is run on.
        new_tokens: most new tokens a prompt.
        repeats: runs of each setting on each prompt, for its times.
        compile: run compiled graphs.
        trees: node budgets to give advice for.
    """

    target: str | None = None
    drafts: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    prompts: pathlib.Path | None = None
    max_prompts: int | None = None
    loop_prompts: int = 5
    new_tokens: int = 48
    temperatures: tuple[float, ...] = (0.0, 1.0)
    num_draft_tokens: tuple[int, ...] = tuple(range(1, 9))
    batches: tuple[int, ...] = (1,)
    repeats: int = 1
    seed: int = 0
    dtype: str = "auto"
    device: str = "cpu"
    compile: bool = False
    chat: bool | Literal["auto"] = "auto"
    price_per_hour: float | None = None
    trees: tuple[int, ...] = (8, 16)

    def __post_init__(self) -> None:
        for name in ("temperatures", "num_draft_tokens", "batches"):
            if not getattr(self, name):
                raise OptionError(f"{name} is empty: give at least one value.")
        for temperature in self.temperatures:
            if not (math.isfinite(temperature) and temperature >= 0):
                raise OptionError(f"temperature={temperature!r}: 0 (greedy) or a positive number.")
        counts = {
            "num_draft_tokens": (self.num_draft_tokens, MAX_DRAFT_TOKENS),
            "batch": (self.batches, MAX_BATCH),
            "new_tokens": ((self.new_tokens,), 2**20),
            "max_prompts": ((self.max_prompts or 1,), 2**40),
            "loop_prompts": ((self.loop_prompts,), 10_000),
            "repeats": ((self.repeats,), 1000),
        }
        for name, (values, most) in counts.items():
            for value in values:
                if not 1 <= value <= most:
                    raise OptionError(f"{name}={value!r}: a number from 1 to {most}.")
        if self.new_tokens < 2:
            raise OptionError("new_tokens=1 leaves nothing to draft: the prompt's own forward gives the first token.")
        if self.price_per_hour is not None and not (math.isfinite(self.price_per_hour) and self.price_per_hour >= 0):
            raise OptionError(f"price_per_hour={self.price_per_hour!r}: dollars (or any currency) an hour, 0 or more.")

    def to_json(self) -> dict[str, Any]:
        """What `--resume` compares: the same settings measure the same."""
        values = asdict(self) | {"prompts": None if self.prompts is None else str(self.prompts.resolve())}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if k != "price_per_hour"}


def parse_counts(text: str, name: str) -> tuple[int, ...]:
    """ "1-8", "1,2,4" or a mixture.

    Raises:
        OptionError: anything else.

    Example:
        >>> parse_counts("1-3,8", "num_draft_tokens")
        (1, 2, 3, 8)
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,6})\s*(?:-\s*([0-9]{1,6})\s*)?", part)
        if match is None:
            raise OptionError(f"{name}={text!r}: numbers and ranges, as in 1-8 or 1,2,4.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first > 1000:
            raise OptionError(f"{name}={text!r}: the range {part.strip()} is empty or too long.")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def parse_temperatures(text: str) -> tuple[float, ...]:
    """ "0,0.7,1".

    Raises:
        OptionError: anything else.
    """
    try:
        return tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise OptionError(f"temperature={text!r}: numbers, as in 0,0.7,1.") from None
