"""What a drafter is. Two small classes: settings that calls share, and one call's session.

A drafter of one's own needs `start` and `propose`; everything else has a default. docs/drafters.md has an
example of twenty lines. The output is exactly the target's whatever a drafter says; only the speed
depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from specdec.ranks import Ranks
from specdec.types import Acceptance, Proposal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from specdec.state import DecodeState


class DraftSession:
    """One call's drafting state.

    Attributes:
        observes: what it wants to know of a verified proposal: the "acceptance" (`observe`), the "counts" of accepted
            tokens only (`observe_counts`), which spares a compiled round some operations, the target's "choices" as
            well as the acceptance (`observe_choices`), or "nothing". May change from round to round.
    """

    observes: Literal["acceptance", "counts", "choices", "nothing"] = "acceptance"

    def propose(self, state: DecodeState, limit: Sequence[int]) -> Proposal:
        """Proposes at most limit[b] >= 0 tokens of depth for row b of `state`; at least one limit is > 0.

        Returns:
            A Proposal on state.device. Exactness demands what its docstring says about q, nothing else.
        """
        raise NotImplementedError

    def observe(self, proposal: Proposal, acceptance: Acceptance, num_accepted: Sequence[int]) -> None:
        """What became of the last proposal, before `state` grows; num_accepted is the acceptance's, on the host."""

    def observe_counts(self, proposal: Proposal, num_accepted: Sequence[int]) -> None:
        """The same as `observe`, for sessions that look at the host's counts only."""

    def observe_choices(
        self, proposal: Proposal, acceptance: Acceptance, num_accepted: Sequence[int], choices: Tensor
    ) -> None:
        """As `observe`, with the target's likeliest token after the root and after each node.

        Args:
            choices: [B, N + 1] int64, by the call's processors; -1 behind nodes that were not verified.
        """

    def select_rows(self, rows: Sequence[int], index: Tensor) -> None:
        """The given rows stay, in that order; index is the same as a device tensor."""

    def close(self) -> None:
        """The call is over, also after an exception."""

    @property
    def levels(self) -> bool:
        """The rows of a batch must commit equally many tokens a round, since the draft's memory cannot differ."""
        return False

    @property
    def forwards(self) -> int:
        """Forwards of a draft model so far."""
        return 0


class Drafter:
    """Settings of a drafting method; shared between calls and threads, so never changed by one.

    Attributes:
        depth: all that num_draft_tokens="auto" may ask of it beside nothing, for proposals most of which are not there
            to be accepted; None: any depth.
    """

    depth: int | None = None

    def check(self, target: PreTrainedModel) -> None:
        """Raises a SpecdecError if this drafter cannot serve the target. Called before any forward."""

    def ranks(self, target: PreTrainedModel) -> Ranks | None:
        """The processes that must draft together, since they share a model that drafts; None: rank 0 drafts alone."""
        return None

    def start(self, state: DecodeState) -> DraftSession:
        """Opens the session of one call, before the prompt is prefilled."""
        raise NotImplementedError
