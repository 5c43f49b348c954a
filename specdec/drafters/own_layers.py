"""Drafting with some of the target's own layers, on the target's own cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel

from specdec.cache import LayerKind, RollbackCache
from specdec.compiled import CompiledRunner, compiled
from specdec.drafters.base import Drafter, DraftSession
from specdec.drafters.confidence import check_confidence
from specdec.drafters.layers import with_layers
from specdec.drafters.model import GraphChoices, ModelSession, chance_of
from specdec.prompt import PromptInputs
from specdec.ranks import Ranks, ranks_of
from specdec.state import DecodeState
from specdec.target import ModelRunner
from specdec.types import Proposal, int_tensor
from specdec.window import Window


class LayersRunner(ModelRunner):
    """Runs some layers of a model that a runner runs whole, over a cache with an entry for each of all layers.

    Args:
        whole: runs all of them, and has been probed: what is right for its windows is right for these.
        kept: their indices, ascending.

    Raises:
        UnsupportedModelError: the model's layers cannot be told from the rest.
    """

    def __init__(self, whole: ModelRunner, kept: Sequence[int]) -> None:
        vars(self).update(vars(whole))
        self.longest_window = None
        self.model = with_layers(whole.model, kept)
        # A hybrid's model asks a cache of its own for the length of an attention layer, kept or not.
        left_out = [LayerKind(whole.replays and kind.attention) for kind in whole.kinds]
        self.kinds = tuple(kind if i in kept else left_out[i] for i, kind in enumerate(whole.kinds))
        self._follow([kind for i, kind in enumerate(whole.kinds) if i in kept])


class LayersSession(ModelSession):
    """Drafts on the target's cache: what it writes lies behind the committed tokens, where the target writes next."""

    observes = "nothing"

    def __init__(
        self,
        runner: ModelRunner,
        state: DecodeState,
        prompt: PromptInputs | None = None,
        min_confidence: float = 0.0,
    ) -> None:
        # No cache of its own, and none of what the base class knows about that one.
        self._runner = runner
        self._min_confidence = min_confidence
        self._prompt = prompt
        self._pending = state.lengths
        self._forwards = 0
        self._is_narrow = False

    def close(self) -> None:
        """Its modules are the target's, which the loop releases."""

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        assert state.cache is not None
        self._cache, self._seen = state.cache, list(state.seen)
        try:
            return super().propose(state, limit)
        finally:
            self._cache.abandon()

    def select_rows(self, rows: Sequence[int], index: Tensor) -> None:
        if self._prompt is not None:
            self._prompt = self._prompt.select_rows(index)

    def _commit(self, drafted: Sequence[int], num_drafted: Tensor) -> None:
        """Nothing: only the target commits to its cache."""

    def _forward(self, state: DecodeState, window: Window, keep: int | Sequence[int]) -> Tensor:
        # The target feeds the committed token again. Until then a ring must hold all that its attention looks at, as
        # if that token were drafted, too.
        return super()._forward(state, replace(window, num_nodes=window.tokens.shape[1]), keep)


@dataclass(frozen=True, slots=True)
class _Buffers:
    """Some layers' keys and values in a cache."""

    cache: RollbackCache
    places: Sequence[int]  # among the layers that attend

    def buffers(self) -> list[Tensor]:
        every = self.cache.buffers()
        return [b for place in self.places for b in every[2 * place : 2 * place + 2]]


class CompiledLayersSession(GraphChoices, LayersSession):
    """The same through a graph: a call a token, and the token chosen in it where the call is greedy."""

    def __init__(
        self, runner: CompiledRunner, state: DecodeState, whole: ModelRunner, min_confidence: float = 0.0
    ) -> None:
        super().__init__(runner, state, min_confidence=min_confidence)
        self._graph = runner
        attending = [i for i, kind in enumerate(whole.kinds) if kind.attention]
        self._places = [place for place, i in enumerate(attending) if runner.kinds[i].attention]
        self._is_greedy = not (state.sampler.do_sample or state.sampler.processors or min_confidence)
        self._chance = None if min_confidence else chance_of(state, runner)
        self._starts = self._pending  # [B] the slot of the next token to feed

    def _num_pending(self, state: DecodeState) -> Tensor:
        return self._pending  # only the host's lengths count here

    def _catch_up(self, state: DecodeState, lengths: list[int]) -> Tensor:
        # One token a row: a round commits one more than the target's cache has seen. None of the others is written
        # again, as the target itself will not.
        assert all(n - s == 1 for n, s in zip(lengths, self._seen, strict=True))
        last = int_tensor([row[-1:] for row in state.host_tokens], state.device)
        self._starts = int_tensor([n - 1 for n in lengths], state.device)
        return self._run(state, last, max(lengths))

    def _feed(self, state: DecodeState, token: Tensor, lengths: list[int], step: int) -> Tensor:
        return self._run(state, token[:, None], max(lengths) + step)

    def _run(self, state: DecodeState, tokens: Tensor, extent: int) -> Tensor:
        """Logits after the tokens [B, 1]; [B, V], or with a middle axis where the graph chooses."""
        self._forwards += 1
        self._cache.reserve(extent)
        if not self._is_greedy:
            tokens = tokens.clamp(0, self._runner.vocab_size - 1)
        outcome, self._starts, logits = self._graph.run(tokens, self._starts, _Buffers(self._cache, self._places))
        if self._is_greedy:
            self._choice = outcome[:, 3].clamp(min=0)  # NaN is a guess as any other
            return logits
        return self._as_wide_as_target(state, logits[:, 0])


class OwnLayersDrafter(Drafter):
    """Drafts with some of the target's decoder layers; which ones is for subclasses to say.

    Args:
        min_confidence: see `ModelDrafter`.
    """

    def __init__(self, min_confidence: float = 0.0) -> None:
        self.min_confidence = check_confidence(min_confidence)

    def layers(self, state: DecodeState) -> Sequence[int]:
        """The layers to draft with in this call, ascending; never depends on a coin."""
        raise NotImplementedError

    def ranks(self, target: PreTrainedModel) -> Ranks | None:
        return ranks_of(target)

    def start(self, state: DecodeState) -> DraftSession:
        whole = state.target
        assert whole is not None
        runner = LayersRunner(whole, self.layers(state))
        prompt = None
        if runner.attends_to_encoder and state.encoded is not None:
            prompt = PromptInputs(state.lengths, encoded=state.encoded)
        if whole.replays:  # states cannot be written without being committed: a cache of its own
            return ModelSession(runner, state, prompt, self.min_confidence)
        if isinstance(whole, CompiledRunner):
            graph = compiled(runner, state.compile, state.max_new_tokens, state.graphs, "draft")
            if isinstance(graph, CompiledRunner):
                return CompiledLayersSession(graph, state, whole, self.min_confidence)
        elif state.compile is not False:
            state.graphs.roles["draft"] = "it drafts on the target's cache, and the target is decoded uncompiled"
        return LayersSession(runner, state, prompt, self.min_confidence)
