"""What the records of the teacher-forced pass come to: one `Agreement` a draft and temperature."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from specdec.profile.schema import PLAIN, Agreement
from specdec.profile.tally import CONTEXT, ENTROPY, Bands, Tally

NUM_RANKS = 8
_MEANS = ("alpha", "greedy", "kl", "target_entropy", "draft_entropy")


@dataclass(slots=True)
class _Sum:
    """Of one draft at one temperature."""

    seed: int
    means: Tally = field(init=False)
    domains: Tally = field(init=False)
    entropy: Bands = field(init=False)
    context: Bands = field(init=False)
    ranks: list[int] = field(default_factory=lambda: [0] * NUM_RANKS)
    tokens: int = 0
    infinite: int = 0

    def __post_init__(self) -> None:
        self.means, self.domains = Tally(self.seed), Tally(self.seed)
        self.entropy, self.context = Bands(self.seed, ENTROPY), Bands(self.seed, CONTEXT)

    def add(self, record: dict[str, Any]) -> None:
        index, alpha = record["index"], record["alpha"]
        self.tokens += len(alpha)
        for name in _MEANS:
            values = [v for v in record[name] if v is not None]
            self.means.add(name, index, sum(values), len(values))
        self.infinite += sum(v is None for v in record["kl"])
        for rank in record["rank"]:
            if rank < NUM_RANKS:
                self.ranks[rank] += 1
        self.domains.add(record["domain"], index, sum(alpha), len(alpha))
        self.entropy.add(index, record["target_entropy"], alpha)
        self.context.add(index, [record["context"] + i for i in range(len(alpha))], alpha)


def agreements_of(records: Iterable[dict[str, Any]], seed: int) -> tuple[list[Agreement], list[str]]:
    """Sums over all processes' records, and what a reader must know."""
    sums: dict[tuple[str, float], _Sum] = {}
    for record in records:
        if record["draft"] != PLAIN and "alpha" in record:
            sums.setdefault((record["draft"], record["temperature"]), _Sum(seed)).add(record)
    notes = [
        f"KL of {draft} at temperature {temperature:g} leaves out {s.infinite} tokens where it is infinite"
        for (draft, temperature), s in sums.items()
        if s.infinite
    ]
    found = [
        Agreement(
            draft=draft,
            temperature=temperature,
            tokens=s.tokens,
            alpha=s.means.interval("alpha"),
            greedy=s.means.interval("greedy"),
            kl=s.means.interval("kl"),
            target_entropy=s.means.interval("target_entropy"),
            draft_entropy=s.means.interval("draft_entropy"),
            ranks=[count / s.tokens for count in s.ranks],
            by_domain={str(d): s.domains.interval(d) for d in s.domains.groups()},
            by_entropy=s.entropy.bands(),
            by_context=s.context.bands(),
        )
        for (draft, temperature), s in sums.items()
    ]
    return found, notes
