"""Every strategy of ours, for one pair."""

from __future__ import annotations

from typing import Any

import specdec
from bench.sides import Sides

NODES = 16  # of the trees whose shape is chosen


def drafters_of(sides: Sides) -> dict[str, specdec.Drafter]:
    """By name. "other tokenizer" is there only if the draft of another tokenizer is."""
    tokenizer = sides.tokenizer
    shared: dict[str, Any] = {"tokenizer": tokenizer, "draft_tokenizer": tokenizer}
    draft, layers = sides.drafter.model, sides.target.config.get_text_config().num_hidden_layers
    drafters: dict[str, specdec.Drafter] = {
        "chain": sides.drafter,
        "tree dynamic": specdec.TreeDrafter(draft, num_nodes=NODES, children="best", **shared),
        "tree optimal": specdec.TreeDrafter(draft, num_nodes=NODES, acceptance="auto", **shared),
        "tree static": specdec.TreeDrafter(draft, widths=[2, 2, 1, 1], **shared),
        "n-gram": specdec.NgramDrafter(),
        "suffix": specdec.SuffixDrafter(),
        "lookahead": specdec.LookaheadDrafter(),
        "mixed": specdec.MixedDrafter([specdec.SuffixDrafter(), sides.drafter]),
        "early exit": specdec.EarlyExitDrafter(exit_layer=layers // 2),
        "layer skip": specdec.LayerSkipDrafter(skip=range(layers // 4, 3 * layers // 4)),
    }
    other = sides.other_draft()
    if other is not None:
        model, theirs = other
        drafters["other tokenizer"] = specdec.CrossTokenizerDrafter(
            model, target_tokenizer=tokenizer, draft_tokenizer=theirs
        )
    return drafters
