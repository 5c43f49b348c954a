"""Drafting with the target less some of its middle layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index

from transformers import PreTrainedModel

from specdec.drafters.layers import check_moved, decoder_layers
from specdec.drafters.own_layers import OwnLayersDrafter
from specdec.drafters.skip_search import SkipSet, check_fits
from specdec.errors import OptionError
from specdec.state import DecodeState


class LayerSkipDrafter(OwnLayersDrafter):
    """Drafts chains with the target's own layers, all but some (Draft & Verify, arXiv:2309.08168).

    Like `EarlyExitDrafter` it costs no memory and no second prefill: the layers that stay read the committed text in
    the target's own cache, as the whole target left it there. Which layers can be spared depends on the model:
    `search_skip` looks for them. Whole layers are skipped, attention and MLP together.

    Args:
        skip: indices of the layers to leave out, from 0; or what `search_skip` found.
        min_confidence: see `ModelDrafter`.

    Raises:
        OptionError: no layer, a layer twice, or no index; at the call: an index that the target does not have, nothing
            left to draft with, or a set that was found for another model.
        UnsupportedModelError: at the call: the target's layers are not one list of modules, or are told their place at
            each call (Zamba2).

    Example:
        >>> specdec.generate(target, **inputs, drafter=LayerSkipDrafter(skip=[5, 6, 7, 8]))  # doctest: +SKIP
    """

    def __init__(self, skip: Iterable[int] | SkipSet, *, min_confidence: float = 0.0) -> None:
        super().__init__(min_confidence)
        self._found = skip if isinstance(skip, SkipSet) else None
        try:
            asked = list(skip.skip if isinstance(skip, SkipSet) else skip)
            given = [-1 if isinstance(i, bool) else index(i) for i in asked]
        except TypeError:
            raise OptionError(f"skip must hold indices of layers, integers as in [3, 4, 5], got {skip!r}.") from None
        if any(i < 0 for i in given):
            raise OptionError(f"skip must hold indices of layers, integers from 0, got {asked!r}.")
        if not given:
            raise OptionError("skip is empty, so that drafting would cost as much as the target: name some layers.")
        if len(set(given)) < len(given):
            raise OptionError(f"skip names a layer twice: {given!r}.")
        self.skip = tuple(sorted(given))

    def check(self, target: PreTrainedModel) -> None:
        if self._found is not None:
            check_fits(self._found, target)
        layers = decoder_layers(target)
        depth = len(layers)
        if self.skip[-1] >= depth:
            raise OptionError(
                f"skip names layer {self.skip[-1]}, and {type(target).__name__} has {depth}: indices go from 0 to "
                f"{depth - 1}."
            )
        if len(self.skip) == depth:
            raise OptionError(f"skip names all {depth} layers of {type(target).__name__}: leave some to draft with.")
        check_moved(layers, [i for i in range(depth) if i not in self.skip])

    def layers(self, state: DecodeState) -> Sequence[int]:
        assert state.target is not None
        depth = len(decoder_layers(state.target.model))
        return [i for i in range(depth) if i not in self.skip]
