"""Counters of one call. Integers and seconds only; every ratio is a property."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from html import escape
from itertools import zip_longest
from typing import Any

from specdec.trace import Trace


@dataclass(slots=True)
class GraphUse:
    """What ran as a compiled graph in one call.

    Attributes:
        roles: "target", "draft" and (with a compiled target) "sampling", where compiling was asked for: "compiled", or
            why not.
        calls: of graphs.
        seconds: inside them, on the host.
    """

    roles: dict[str, str] = field(default_factory=dict)
    calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: GraphUse) -> GraphUse:
        return GraphUse({**self.roles, **other.roles}, self.calls + other.calls, self.seconds + other.seconds)


@dataclass(slots=True)
class SpeculationStats:
    """What speculation did during one `generate()`.

    A *row-round* is one row's part in one verification forward; prefill is counted apart, so that
    `acceptance_length` is what a decoding forward yields. Seconds are the host's: on CUDA a draft's kernels
    still run when drafting returns, and their time shows under verify.

    Calls are summed with `+`, several with `sum(calls, SpeculationStats())`: ratios of a sum are those of all
    its calls together. A sum has no trace.

    Example:
        >>> stats = SpeculationStats(row_rounds=10, drafted=40, accepted=20)
        >>> stats.acceptance_rate, stats.acceptance_length
        (0.5, 3.0)
    """

    prompt_tokens: int = 0
    new_tokens: int = 0  # returned to the caller, all rows
    rounds: int = 0  # target forwards after prefill
    row_rounds: int = 0
    drafted: int = 0
    accepted: int = 0  # by the rule, before truncation at EOS or the length limit
    draft_calls: int = 0  # forwards of the draft model
    host_syncs: int = 0  # times the host waited for a device tensor's value
    refed_tokens: int = 0  # fed again after a recurrent state went back to its snapshot, all rows
    snapshot_bytes: int = 0  # of recurrent states that were copied to go back to
    drafted_per_depth: list[int] = field(default_factory=list)
    accepted_per_depth: list[int] = field(default_factory=list)
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0  # target forwards and acceptance, until the result is on the host
    total_seconds: float = 0.0
    graphs: GraphUse = field(default_factory=GraphUse)  # what ran compiled, and why not the rest
    trace: Trace | None = field(default=None, compare=False, repr=False)  # where each returned token came from

    @property
    def acceptance_rate(self) -> float:
        """accepted / drafted; 0 when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def acceptance_length(self) -> float:
        """tau: tokens per row and target forward, the recovered or bonus token included."""
        return 1 + self.accepted / self.row_rounds if self.row_rounds else 0.0

    @property
    def other_seconds(self) -> float:
        """Everything that is neither prefill, draft nor verify."""
        return self.total_seconds - self.prefill_seconds - self.draft_seconds - self.verify_seconds

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.total_seconds if self.total_seconds else 0.0

    def record_round(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Adds one verification: draft depth and accepted length of each row."""
        self.rounds += 1
        self.row_rounds += len(drafted)
        self.drafted += sum(drafted)
        self.accepted += sum(accepted)
        for counts, depths in ((self.drafted_per_depth, drafted), (self.accepted_per_depth, accepted)):
            counts.extend([0] * (max(*drafted, 0) - len(counts)))
            for depth in depths:
                for i in range(depth):
                    counts[i] += 1

    def __add__(self, other: SpeculationStats) -> SpeculationStats:
        """The counters of both, added one by one."""
        if not isinstance(other, SpeculationStats):
            return NotImplemented
        sums: dict[str, Any] = {}
        for counter in fields(self):
            mine, others = getattr(self, counter.name), getattr(other, counter.name)
            if isinstance(mine, list):
                sums[counter.name] = [a + b for a, b in zip_longest(mine, others, fillvalue=0)]
            elif counter.name != "trace":
                sums[counter.name] = mine + others
        return SpeculationStats(**sums)

    def _repr_html_(self) -> str:
        counters = (
            f'<pre style="background:none;color:inherit;border:0;padding:0;margin:.8em 0 0">{escape(str(self))}</pre>'
        )
        return counters if self.trace is None else self.trace.to_html() + counters

    def __str__(self) -> str:
        by_depth = " ".join(
            f"{a / d:.2f}" if d else "-" for a, d in zip(self.accepted_per_depth, self.drafted_per_depth, strict=True)
        )
        syncs = self.host_syncs / (self.rounds + 1)
        rows = [
            ("new tokens", f"{self.new_tokens}  ({self.tokens_per_second:.1f} tokens/s)"),
            ("target forwards", f"1 prefill + {self.rounds}"),
            ("drafted / accepted", f"{self.drafted} / {self.accepted}"),
            ("acceptance rate", f"{self.acceptance_rate:.3f}"),
            ("acceptance length", f"{self.acceptance_length:.2f} tokens a forward"),
            ("accepted per depth", by_depth or "-"),
            (
                "seconds",
                f"prefill {self.prefill_seconds:.3f}  draft {self.draft_seconds:.3f}  "
                f"verify {self.verify_seconds:.3f}  other {self.other_seconds:.3f}",
            ),
            ("host syncs a forward", f"{syncs:.2f}"),
        ]
        rows += [(f"{role} runs", how) for role, how in self.graphs.roles.items()]
        return "\n".join(f"{name:<21} {value}" for name, value in rows)
