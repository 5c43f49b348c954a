"""What a model's memory allows, found by asking it: which drafts, which batches, and why not more."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedModel

from specdec.errors import UnsupportedModelError
from specdec.probe import agrees, attempt, choose, floor, tolerance
from specdec.target import Layout, ModelRunner
from specdec.wrapped import unwrap

Drafts = Literal["trees", "chains", "none", "refused"]
Batches = Literal["free", "level", "level, equal lengths", "refused"]

_EVEN = Layout(level=True, padded=False, trees=False)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Every error is the mean difference of logits to a plain forward over the text, in standard deviations of the
    logits; or, where the model raised something, what it said; or None where the question has no meaning.

    Attributes:
        model: its class.
        memory: how many layers remember what.
        one_token: a cached forward of one token.
        several_tokens: of several tokens, of which some are rejected and the text goes on.
        left_padding: the same in a batch whose shorter rows begin with padding, as transformers lays them out.
        masks_4d: the same with an attention mask [batch, 1, query, key].
        per_row_positions: the same with rows at different positions.
        tree_masks: the same with a tree of drafts.
        ragged_windows: rows of one forward may hold different numbers of tokens.
        state_outside_cache: two texts decoded in turn disturb each other.
        limit: errors up to this are rounding.
        layout: how specdec lays out its windows; None if it refuses the model.
        reason: why it is refused.
    """

    model: str
    dtype: torch.dtype
    attention: str
    memory: dict[str, int]
    one_token: float | str | None = None
    several_tokens: float | str | None = None
    left_padding: float | str | None = None
    masks_4d: float | str | None = None
    per_row_positions: float | str | None = None
    tree_masks: float | str | None = None
    ragged_windows: bool = False
    state_outside_cache: bool = False
    limit: float = 0.0
    layout: Layout | None = None
    reason: str | None = None

    @property
    def drafts(self) -> Drafts:
        """What can be verified: trees, chains (of a tree its first), or nothing, which is plain decoding."""
        if self.layout is None:
            return "refused"
        return "none" if self.layout.stepwise else "trees" if self.layout.trees else "chains"

    @property
    def batches(self) -> Batches:
        """How the rows of a batch hang together.

        "free": each row keeps what it accepts. "level": a round commits what the row that accepted least has; rows of
        "equal lengths" need prompts without padding.
        """
        if self.layout is None:
            return "refused"
        if not self.layout.level:
            return "free"
        return "level" if self.layout.padded else "level, equal lengths"


def capabilities(model: PreTrainedModel) -> Capabilities:
    """Asks a model with small forwards what it can do; nothing of it is changed.

    Args:
        model: any Hugging Face model that generates, also wrapped by PEFT or torch.compile.

    Example:
        >>> target, _, _ = specdec.bundled_pair()
        >>> found = specdec.capabilities(target)
        >>> found.drafts, found.batches
        ('trees', 'free')
    """
    model = unwrap(model)
    config: Any = model.config.get_text_config(decoder=True)
    name, attention = type(model).__name__, cast(str, getattr(config, "_attn_implementation", "eager"))
    try:
        runner = ModelRunner(model)
    except UnsupportedModelError as error:
        return Capabilities(name, model.dtype, attention, {}, reason=str(error))
    memory = dict(Counter(kind.name for kind in runner.kinds))
    rows, alone = Layout(trees=False), floor(runner)
    limit, together = tolerance(model.dtype, alone), attempt(runner, replace(_EVEN, stepwise=True))
    try:
        layout, reason = choose(runner), None
    except UnsupportedModelError as error:
        layout, reason = None, str(error)
    return Capabilities(
        name,
        model.dtype,
        attention,
        memory,
        one_token=alone,
        several_tokens=attempt(runner, _EVEN),
        left_padding=attempt(runner, Layout(level=True, trees=False)),
        masks_4d=attempt(runner, rows, is_even=True) if any(k.attention for k in runner.kinds) else None,
        per_row_positions=attempt(runner, rows, in_step=True),
        tree_masks=None if runner.replays else attempt(runner, Layout()),
        ragged_windows=layout is not None and not layout.level and not runner.replays,
        state_outside_cache=agrees(alone, limit) and not agrees(together, limit),
        limit=limit,
        layout=layout,
        reason=reason,
    )
