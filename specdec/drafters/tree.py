"""Drafting trees with a smaller model: several guesses at each place, for one forward of the draft a depth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec.drafters.model import ModelDrafter, ModelSession, prompt_of
from specdec.drafters.planning import DynamicPlanner, LearningPlanner, Planner, ShapePlanner
from specdec.drafters.shapes import Shape, check_acceptance, optimal_tree
from specdec.drafters.tree_session import TreeSession
from specdec.errors import OptionError
from specdec.state import DecodeState
from specdec.types import MAX_NODES, Law

Children = Literal["best", "iid", "without_replacement"]
_LAWS = {"best": Law.GIVEN, "iid": Law.IID, "without_replacement": Law.WITHOUT_REPLACEMENT}
NUM_NODES = 16
_BRANCH = 8


class TreeDrafter(ModelDrafter):
    """Drafts trees with any causal language model that shares the target's vocabulary.

    A depth at a time with tree attention on the draft's own cache: as many draft forwards as a chain of that depth
    takes, and one target forward over all nodes. Pays where a target forward over tens of tokens costs little more
    than one over a few, and the draft's second guess is often right.

    Which tree:

    - neither of the below: dynamic. The paths that the draft finds most probable, other ones in each row and round:
      `num_nodes` by best-first expansion (arXiv:2604.12989), which costs one host read a depth, or, with `expand`, by
      EAGLE-2's (arXiv:2406.16858), which costs none. In sampling calls as acceptance="auto", unless children="best".
    - `widths` or `parents`: a given shape.
    - `acceptance`: the best shape of `num_nodes` for these chances (arXiv:2402.12374), or for those that the call
      itself measures: "auto", one host read in eight rounds.

    Trees are as deep as `num_draft_tokens` says, and no deeper than a given shape. Where target or draft cannot take
    trees, chains are drafted as `ModelDrafter` does.

    Args:
        model: the draft, on the target's device.
        widths: every node at depth d has widths[d] children.
        parents: of each node, -1 = child of the root; of siblings the first is the likeliest.
        acceptance: [r] probability that the draft's r-th likeliest token (or r-th drawn child) is accepted, given that
            its parent was; "auto" measures it.
        num_nodes: of a tree whose shape is not given; 16 if omitted.
        expand: nodes of each depth that get children; None means all that may have a descendant in the tree.
        branch: most children of one node, of a tree whose shape is not given; 8 if omitted.
        children: "best" are the draft's likeliest tokens, as always in greedy calls. In sampling calls children can be
            drawn from the draft's distribution, in shapes that are fixed before the round: "iid", or
            "without_replacement", the default. A drawn token is accepted where draft and target agree, however many
            tokens are possible; the likeliest ones only as often as the target happens to draw them.
        min_confidence: no node is proposed whose path's probability by the draft is below this; for drawn children
            the largest one that a child could have had counts, and not its own. Drafting ends at the first depth
            without any node. 0 is off. Costs a host read a depth.
        tokenizer, draft_tokenizer: see `ModelDrafter`.

    Raises:
        OptionError: no tree, one that is wider than the draft's vocabulary, or settings that exclude each other.
        UnsupportedModelError: the draft's memory cannot be rolled back.

    Example:
        >>> specdec.generate(target, **inputs, drafter=TreeDrafter(draft), num_draft_tokens=4)  # doctest: +SKIP
        >>> specdec.generate(target, **inputs, drafter=TreeDrafter(draft, widths=[4, 2, 1]))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        widths: Sequence[int] | None = None,
        parents: Sequence[int] | None = None,
        acceptance: Sequence[float] | Literal["auto"] | None = None,
        num_nodes: int | None = None,
        expand: int | None = None,
        branch: int | None = None,
        children: Children | None = None,
        min_confidence: float = 0.0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        draft_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__(model, tokenizer=tokenizer, draft_tokenizer=draft_tokenizer, min_confidence=min_confidence)
        given = [n for n, v in (("widths", widths), ("parents", parents), ("acceptance", acceptance)) if v is not None]
        if len(given) > 1:
            raise OptionError(f"{' and '.join(given)} each decide the tree's shape: give one of them.")
        if children is not None and children not in _LAWS:
            raise OptionError(f"children={children!r}: one of {', '.join(map(repr, _LAWS))}.")
        if children not in (None, "best") and not given:
            raise OptionError(
                f"children={children!r} needs a shape that is fixed before anything is drawn: give widths, parents or "
                "acceptance. A dynamic tree keeps the likeliest nodes, and dropping drawn ones would bias the output."
            )
        self._law = _LAWS[children or "without_replacement"]
        self._shape: Shape | None = None
        if widths is not None:
            self._shape = Shape.of_widths(widths)
        elif parents is not None:
            self._shape = Shape.of(parents)
        self._acceptance: tuple[float, ...] | Literal["auto"] | None = None
        if acceptance is not None:
            self._acceptance = "auto" if isinstance(acceptance, str) and acceptance == "auto" else _vector(acceptance)
        self._check_sizes(num_nodes, expand, branch)
        self._num_nodes = NUM_NODES if num_nodes is None else num_nodes
        self._expand = expand
        self._branch = min(_BRANCH if branch is None else branch, self._num_nodes, self._runner.vocab_size)
        if self._width > self._runner.vocab_size:
            raise OptionError(
                f"a tree with {self._width} children of one node: the draft knows {self._runner.vocab_size} tokens."
            )

    @property
    def _width(self) -> int:
        if self._shape is not None:
            return self._shape.width
        return len(self._acceptance) if isinstance(self._acceptance, tuple) else self._branch

    def _check_sizes(self, num_nodes: int | None, expand: int | None, branch: int | None) -> None:
        sizes = {"num_nodes": num_nodes, "expand": expand, "branch": branch}
        if self._shape is not None:
            useless = list(sizes)
        elif self._acceptance == "auto":
            useless = ["expand"]
        elif self._acceptance is not None:
            useless = ["expand", "branch"]  # the vector's length says how many children there may be
        else:
            useless = []
        for name, size in sizes.items():
            if size is None:
                continue
            if name in useless:
                raise OptionError(f"{name}={size} has no meaning for this kind of tree, which decides it otherwise.")
            if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_NODES:
                raise OptionError(f"{name}={size!r}: a number from 1 to {MAX_NODES}.")

    def start(self, state: DecodeState) -> ModelSession:
        runner = self._start_runner(state)
        takes_trees = runner.layout.trees and (state.target is None or state.target.layout.trees)
        if not takes_trees:
            return self._start_chains(runner, state)
        return TreeSession(runner, state, prompt_of(runner, state), self._planner(state), self.min_confidence)

    def _planner(self, state: DecodeState) -> Planner:
        if self._shape is not None:
            return ShapePlanner(self._shape.cut, self._law)
        is_learned = self._acceptance == "auto"
        if self._acceptance is None:  # what was drawn must not be chosen from afterwards
            is_learned = state.sampler.do_sample and self._law is not Law.GIVEN
        if is_learned:
            return LearningPlanner(self._num_nodes, self._branch, self._law, state.device)
        if isinstance(self._acceptance, tuple):
            return ShapePlanner(partial(optimal_tree, self._acceptance, self._num_nodes), self._law)
        return DynamicPlanner(self._num_nodes, self._expand, self._branch)


def _vector(acceptance: Sequence[float]) -> tuple[float, ...]:
    if isinstance(acceptance, str):
        raise OptionError(f"acceptance={acceptance!r}: a list of probabilities by rank, or 'auto'.")
    return check_acceptance(acceptance)
