"""Which layers a model can spare: a search over sets, by how often the rest agrees with the whole (SWIFT)."""

from __future__ import annotations

import json
import os
import pathlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.drafters.layers import choices_along, decoder_layers, with_layers
from specdec.errors import OptionError
from specdec.target import input_device
from specdec.wrapped import unwrap

_FORMAT = 1
_DRAWS = 200  # to find a set that has not been tried before the search ends


@dataclass(frozen=True, slots=True)
class SkipSet:
    """The best set of layers to skip that a search has found so far, and all that it needs to go on.

    Args:
        model: the class of the model that it was found for.
        num_layers: of that model.
        seed: of the search.
        skip: the layers, ascending.
        score: how often the other layers' argmax was the whole model's, over the texts of the last search.
        tried: every set that was scored, in order.
    """

    model: str
    num_layers: int
    seed: int
    skip: tuple[int, ...]
    score: float
    tried: tuple[tuple[int, ...], ...]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a small JSON file."""
        pathlib.Path(path).write_text(json.dumps({"format": _FORMAT, **asdict(self)}) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], target: PreTrainedModel) -> SkipSet:
        """Reads what `save` wrote.

        Raises:
            OptionError: the file is not one of `save`, or its set was found for another model.
        """
        try:
            values: dict[str, Any] = json.loads(pathlib.Path(path).read_text())
            if values.pop("format") != _FORMAT:
                raise ValueError("another format")
            values["skip"] = _indices(values["skip"])
            values["tried"] = tuple(_indices(each) for each in values["tried"])
            found = cls(**values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise OptionError(
                f"{os.fspath(path)} holds no set of layers that SkipSet.save() wrote ({error})."
            ) from error
        check_fits(found, unwrap(target))
        return found


def search_skip(
    target: PreTrainedModel,
    texts: Iterable[Sequence[int] | Tensor],
    *,
    num_skipped: int | None = None,
    budget: int = 32,
    seed: int = 0,
    start: SkipSet | None = None,
) -> SkipSet:
    """Looks for layers of a model that drafting can do without, on texts that the model has written.

    A set's score is its "matchness" (SWIFT, arXiv:2410.06916): the part of the texts' tokens after which what layers
    stay say the same next token as the whole model. The first set is spread evenly; then every other
    one is drawn anew and every other one changes the best so far in one or two layers. As in SWIFT the first and the
    last layer always stay. Costs a forward of the target over each text and `budget` forwards of the layers that stay.
    Nothing is drawn from the global generators: the same arguments find the same set, and a search that goes on
    from an earlier one over the same texts finds what one of both budgets would have found.

    Args:
        texts: token ids, [T] each, at least two tokens; some outputs of the target, prompts included, are best.
        num_skipped: layers to skip; a little over two fifths of them if omitted, as in SWIFT.
        budget: sets to score.
        seed: of the sets that are drawn; that of `start` counts where it is given.
        start: what an earlier search found: it is scored anew, beyond the budget, since the texts may be others.

    Raises:
        OptionError: no text, a budget below 1, a number of layers that cannot be skipped, or a start of another model.
        UnsupportedModelError: the target's layers are not one list of modules.

    Example:
        >>> found = search_skip(target, outputs, num_skipped=5, budget=64)  # doctest: +SKIP
        >>> found.save("skip.json")  # doctest: +SKIP
        >>> drafter = LayerSkipDrafter(SkipSet.load("skip.json", target))  # doctest: +SKIP
    """
    target = unwrap(target)
    if not isinstance(target, PreTrainedModel):
        raise OptionError(f"target must be a transformers model, got {type(target).__name__}.")
    depth = len(decoder_layers(target))
    if start is not None and not isinstance(start, SkipSet):
        raise OptionError(f"start must be a SkipSet, got {type(start).__name__}: SkipSet.load(path, target) reads one.")
    if start is not None:
        check_fits(start, target)
        num_skipped = len(start.skip) if num_skipped is None else num_skipped
        if num_skipped != len(start.skip):
            raise OptionError(f"start skips {len(start.skip)} layers and num_skipped is {num_skipped}: leave one out.")
    num_skipped = round(0.45 * depth) if num_skipped is None else num_skipped
    if type(num_skipped) is not int or not 1 <= num_skipped <= depth - 2:
        raise OptionError(
            f"num_skipped must be from 1 to {max(depth - 2, 0)} of {type(target).__name__}'s {depth} layers (the first "
            f"and the last stay), got {num_skipped!r}."
        )
    if type(budget) is not int or budget < 1:
        raise OptionError(f"budget must be a positive number of sets to score, got {budget!r}.")
    rows = _rows(texts, target)
    wanted = [choices_along(target, row) for row in rows]

    def score(skip: tuple[int, ...]) -> float:
        clone = with_layers(target, [i for i in range(depth) if i not in skip], keep=False)
        same = [(choices_along(clone, row) == choice).double() for row, choice in zip(rows, wanted, strict=True)]
        return float(torch.cat(same, dim=1).mean())

    if start is None:
        found = SkipSet(type(target).__name__, depth, seed, (), -1.0, ())
    else:
        found = replace(start, score=score(start.skip))
    for _ in range(budget):
        skip = _next_set(found, num_skipped)
        if skip is None:
            break
        reached, found = score(skip), replace(found, tried=(*found.tried, skip))
        if reached > found.score:
            found = replace(found, skip=skip, score=reached)
    return found


def check_fits(found: SkipSet, target: PreTrainedModel) -> None:
    """Raises OptionError unless the set was found for a model like this one."""
    name, depth = type(target).__name__, len(decoder_layers(target))
    if (found.model, found.num_layers) != (name, depth):
        raise OptionError(
            f"these layers were found for a {found.model} of {found.num_layers} layers, and the target is a {name} of "
            f"{depth}: search again, with search_skip(target, texts)."
        )
    if not found.skip or not 0 <= min(found.skip) <= max(found.skip) < depth:
        raise OptionError(f"{found.skip} are no layers of a {name} of {depth}: search again.")


def _next_set(found: SkipSet, size: int) -> tuple[int, ...] | None:
    """The next set to score, a function of the search so far; None if there seem to be no others."""
    count, middle = len(found.tried), range(1, found.num_layers - 1)
    if count == 0:
        return tuple(middle[(2 * i + 1) * len(middle) // (2 * size)] for i in range(size))
    draws, tried = random.Random(f"{found.seed} {count}"), set(found.tried)
    for _ in range(_DRAWS):
        others = [i for i in middle if i not in found.skip]
        skip = set(draws.sample(middle, size))
        if count % 2 and others:
            changes = draws.randint(1, min(2, size, len(others)))
            stays = draws.sample(found.skip, size - changes)
            skip = {*stays, *draws.sample(others, changes)}
        if (chosen := tuple(sorted(skip))) not in tried:
            return chosen
    return None


def _rows(texts: Iterable[Sequence[int] | Tensor], target: PreTrainedModel) -> list[Tensor]:
    """[1, T] int64 each, on the target's device."""
    device = input_device(target)
    try:
        rows = [torch.as_tensor(text, dtype=torch.int64, device=device).reshape(1, -1) for text in texts]
    except (TypeError, ValueError, RuntimeError):
        raise OptionError("texts must hold lists of token ids: tokenize them first.") from None
    size = target.config.get_text_config(decoder=True).vocab_size
    if any(row.numel() and not 0 <= int(row.min()) <= int(row.max()) < size for row in rows):
        raise OptionError(f"texts hold ids outside 0..{size - 1}: they are another tokenizer's.")
    if not rows or min(row.shape[1] for row in rows) < 2:
        raise OptionError("texts must hold at least one list of at least two token ids: outputs of the target, say.")
    return rows


def _indices(values: Any) -> tuple[int, ...]:
    if any(type(i) is not int for i in values):
        raise ValueError(f"{values!r} are no layers")
    return tuple(values)
