"""Drafting from texts: what followed when prompt, output, earlier outputs or a corpus looked like this."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec.compiled import CompiledRunner
from specdec.drafters.base import Drafter, DraftSession
from specdec.drafters.suffix_array import MAX_MATCH, Corpus
from specdec.drafters.suffix_automaton import SuffixAutomaton
from specdec.drafters.suffix_index import SuffixIndex, fingerprint
from specdec.drafters.suffix_tree import Bounds, Branches, grow, to_proposal
from specdec.errors import OptionError
from specdec.state import DecodeState
from specdec.types import MAX_NODES, Proposal

Tree = bool | Literal["auto"]


class SuffixDrafter(Drafter):
    """Proposes what followed the longest suffix match, the more often the likelier: a chain, or a tree of branches.

    Each row has a suffix automaton of its prompt and output (SAM-Decoding, arXiv:2411.10666), which costs an
    amortised constant time a token; beside it an index of other texts may be searched (REST, arXiv:2311.08252). The
    longer match drafts, the row's own text where they are equally long (a corpus' matches count up to 64 tokens).
    Trees are grown and scored as in SuffixDecoding (arXiv:2411.04975): a node's score is its parent's times its share
    of what followed; at most `alpha` times the match's length is drafted. Nothing is sampled: q is None.

    Nothing runs on the device. Pays as `NgramDrafter` does, where the output repeats the prompt, itself or the index:
    code, extraction, rewriting, agents; and it is seldom wrong where little matches, since it then drafts little.

    Args:
        index: texts to draft from beside the row's own; a `SuffixIndex`, or the path of a saved one.
        remember: outputs go into the index when they are finished, each with the last 64 tokens of its prompt in front
            and whatever the last round wrote behind a stop token; calls that began later see them. Without `index=`
            a new one of at most 256 MB. Where it is full the oldest texts leave. A seed then no longer repeats a
            sampled text, though its distribution stays the target's.
        tokenizer: the target's, to be compared with the one that the index was built with.
        tree: several branches where the counts say so; False: only the likeliest child of each node; "auto": trees
            where that costs no short cut: not in greedy calls of a compiled target, which verifies chains in one graph.
            Targets that cannot hold a tree get chains in any case.
        max_nodes: most drafted tokens a row; num_draft_tokens bounds the length of a chain and the depth of a tree.
        alpha: drafted tokens per matched token, rounded up.
        min_match: shortest match to draft from.
        min_score: lowest score of a node.

    Raises:
        OptionError: a setting out of range; the index cannot be read.
        DraftMismatchError: the index was built with another tokenizer than `tokenizer`.

    Example:
        >>> drafter = SuffixDrafter(remember=True)
        >>> specdec.generate(target, **inputs, drafter=drafter, max_new_tokens=64)  # doctest: +SKIP
        >>> drafter.index.save("outputs.npz")  # doctest: +SKIP
    """

    def __init__(
        self,
        index: SuffixIndex | str | os.PathLike[str] | None = None,
        *,
        remember: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
        tree: Tree = "auto",
        max_nodes: int = 16,
        alpha: float = 4.0,
        min_match: int = 1,
        min_score: float = 0.1,
    ) -> None:
        _check_settings(tree, max_nodes, alpha, min_match, min_score)
        if isinstance(index, str | os.PathLike):
            index = SuffixIndex.load(index)
        if index is not None and not isinstance(index, SuffixIndex):
            raise OptionError(
                f"index must be a SuffixIndex or the path of a saved one, got {type(index).__name__}: "
                "SuffixIndex.build(texts of token ids) makes one."
            )
        self._fingerprint = None if tokenizer is None else fingerprint(tokenizer)
        if index is None and remember:
            index = SuffixIndex(fingerprint=self._fingerprint)
        if index is not None and tokenizer is not None:
            index.check(len(tokenizer), self._fingerprint)
        self.index = index
        self.remember = remember
        self.tree = tree
        self.max_nodes = max_nodes
        self.alpha = alpha
        self.min_match = min_match
        self.min_score = min_score

    def check(self, target: PreTrainedModel) -> None:
        """Raises DraftMismatchError if the index holds another vocabulary than the target's."""
        if self.index is not None:
            self.index.check(target.config.get_text_config(decoder=True).vocab_size, self._fingerprint)

    def start(self, state: DecodeState) -> SuffixSession:
        return SuffixSession(self, state)


class Row:
    """One row's text; the list is the call's own and grows by itself."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.prompt_length = len(tokens)
        self.automaton = SuffixAutomaton()


class SuffixSession(DraftSession):
    observes = "nothing"

    def __init__(self, drafter: SuffixDrafter, state: DecodeState) -> None:
        self._settings = drafter
        self._state = state
        self._corpus = Corpus(() if drafter.index is None else drafter.index.arrays)
        self._rows = [Row(tokens) for tokens in state.host_tokens]

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        is_chain = not self._takes_trees(state)
        found = [self._draft(row, most, is_chain) for row, most in zip(self._rows, limit, strict=True)]
        return to_proposal(found, state.device)

    def select_rows(self, rows: Sequence[int], index: Tensor) -> None:
        for number, row in enumerate(self._rows):
            if number not in rows:
                self._remember(row)
        self._rows = [self._rows[r] for r in rows]

    def close(self) -> None:
        if self._state.batch_size == 0:  # else an exception has ended the call, and outputs are not whole
            for row in self._rows:
                self._remember(row)
        self._rows = []

    def _takes_trees(self, state: DecodeState) -> bool:
        target, tree = state.target, self._settings.tree
        if target is None or not target.layout.trees:
            return False
        if tree == "auto":
            return state.sampler.do_sample or not isinstance(target, CompiledRunner)
        return tree

    def _draft(self, row: Row, limit: int, is_chain: bool) -> Branches:
        """The continuations of the longer match, of the row's own where they are equally long."""
        text = row.automaton
        text.extend(row.tokens[text.size :])
        if limit <= 0:
            return Branches()
        length, places = self._corpus.find(row.tokens, text.match_length)
        if length > text.match_length:
            return grow(self._corpus.followers, places, self._bounds(length, limit), is_chain)
        return grow(text.followers, text.match, self._bounds(text.match_length, limit), is_chain)

    def _bounds(self, match_length: int, limit: int) -> Bounds:
        settings = self._settings
        longest = math.ceil(settings.alpha * match_length) if match_length >= settings.min_match else 0
        return Bounds(limit, min(settings.max_nodes, longest), settings.min_score)

    def _remember(self, row: Row) -> None:
        settings = self._settings
        if settings.remember and settings.index is not None and len(row.tokens) > row.prompt_length:
            settings.index.add(row.tokens[max(0, row.prompt_length - MAX_MATCH) :])


def _check_settings(tree: Tree, max_nodes: int, alpha: float, min_match: int, min_score: float) -> None:
    if tree not in (True, False, "auto"):
        raise OptionError(f"tree must be True, False or 'auto', got {tree!r}.")
    for name, count in (("max_nodes", max_nodes), ("min_match", min_match)):
        if type(count) is not int or count < 1:
            raise OptionError(f"SuffixDrafter needs a positive integer as {name}, got {count!r}.")
    if max_nodes > MAX_NODES:
        raise OptionError(f"max_nodes={max_nodes}: at most {MAX_NODES} drafted tokens a row can be verified together.")
    if not 0 < alpha < math.inf:
        raise OptionError(f"alpha, drafted tokens per matched token, must be positive, got {alpha!r}.")
    if not 0 <= min_score <= 1:
        raise OptionError(f"min_score is a share of what followed, from 0 to 1, got {min_score!r}.")
