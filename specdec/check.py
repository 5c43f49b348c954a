"""`specdec check`: what a model's memory allows, in a table for people."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from specdec.capabilities import Capabilities
from specdec.probe import agrees

_DRAFTS = {
    "trees": "trees of drafts are verified",
    "chains": "chains of drafts are verified; of a tree its first branch",
    "none": "no drafts can be verified: plain decoding, with a warning",
    "refused": "specdec refuses this model",
}
_BATCHES = {
    "free": "each row keeps what it accepts",
    "level": "a round commits what its slowest row accepts",
    "level, equal lengths": "a round commits what its slowest row accepts; prompts must be of one length",
    "refused": "none",
}


def load(path: str, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    """The model at a path or hub id, in the class that its config names; code from a hub is never run."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    names = getattr(config, "architectures", None) or []
    kind: Any = next((k for n in names if (k := getattr(transformers, n, None)) is not None), AutoModelForCausalLM)
    options = {} if attention is None else {"attn_implementation": attention}
    model: PreTrainedModel = kind.from_pretrained(path, dtype=dtype, trust_remote_code=False, **options).eval()
    return model


def table(found: Capabilities) -> Table:
    """Each question, its answer, and the error that it was read from."""
    out = Table(box=None, pad_edge=False)
    for column in ("", "", "relative error"):
        out.add_column(column, justify="right" if column else "left", overflow="fold")
    questions = (
        ("cached forward of one token", found.one_token),
        ("of several tokens, some rejected", found.several_tokens),
        ("left padding", found.left_padding),
        ("4D masks", found.masks_4d),
        ("positions per row", found.per_row_positions),
        ("tree masks", found.tree_masks),
    )
    for question, error in questions:
        fits = agrees(error, found.limit)
        answer = "not asked" if error is None else "yes" if fits else "no"
        shown = "" if error is None else f"{error:.1e}" if isinstance(error, float) else error.partition(":")[0]
        out.add_row(
            question, Text(answer, "green" if fits else "dim" if error is None else "yellow"), Text(shown, "dim")
        )
    for question, is_so, good in (
        ("rows of different widths in a forward", found.ragged_windows, True),
        ("state outside the cache", found.state_outside_cache, False),
    ):
        out.add_row(question, Text("yes" if is_so else "no", "green" if is_so == good else "yellow"), "")
    return out


def summary(found: Capabilities) -> Text:
    """What it comes to."""
    memory = ", ".join(f"{count} x {kind}" for kind, count in found.memory.items()) or "unknown"
    lines = [
        f"memory   {memory}",
        f"drafts   {_DRAFTS[found.drafts]}",
        f"batches  {_BATCHES[found.batches]}",
    ]
    if found.reason is not None:
        lines.append(f"why      {found.reason}")
    style = {"refused": "red", "none": "yellow"}.get(found.drafts, "green")
    return Text("\n".join(lines), style)
