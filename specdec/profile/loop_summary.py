"""What the loop's records come to: one `Measured` a setting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from statistics import median, quantiles
from typing import Any

from specdec.profile.advice import flag
from specdec.profile.bootstrap import Floats, Sums
from specdec.profile.schema import PLAIN, Interval, Measured, Position, Times
from specdec.profile.tally import CONTEXT, ENTROPY, Bands, Tally
from specdec.profile.traced import RowRound, row_rounds

Key = tuple[str, float, int, int]  # draft, temperature, batch, num_draft_tokens
_CLOCK = 0.05  # what the best of clocks leaves between two measurements of the same thing


@dataclass(slots=True)
class _Sum:
    """Of one setting."""

    seed: int
    is_level: bool = False
    tokens: int = 0
    counts: Tally = field(init=False)
    positions: Tally = field(init=False)
    domains: Tally = field(init=False)
    context: Bands = field(init=False)
    entropy: Bands = field(init=False)
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    seconds: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))  # batch number -> its repeats
    work: dict[int, tuple[int, int]] = field(default_factory=dict)  # batch number -> first prompt, tokens
    rounds: list[list[float]] = field(default_factory=list)  # seconds of a round's parts, one list a run
    prefill: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    knows_alpha: bool = False
    verifying: float = 0.0  # seconds of all runs
    num_rounds: int = 0

    def __post_init__(self) -> None:
        self.counts, self.positions, self.domains = Tally(self.seed), Tally(self.seed), Tally(self.seed)
        self.context, self.entropy = Bands(self.seed, CONTEXT), Bands(self.seed, ENTROPY)

    def add(self, record: dict[str, Any]) -> None:
        number, parts = record["number"], record["parts"]
        self.seconds[number].append(record["seconds"])
        self.verifying += parts["verify"]
        self.num_rounds += record["rounds"]
        if record["rounds"]:  # else the text ended with its first token
            self.rounds.append([parts[name] / record["rounds"] for name in ("draft", "verify", "other")])
        self.prefill.append(parts["prefill"] / max(record["prompt_tokens"], 1))
        if record["peak"] is not None:
            self.peaks.append(record["peak"])
        if record["joules"] is not None:
            self.joules.append(record["joules"] / record["tokens"])
        if "rows" in record:
            self._add_counts(record)
            for row in record["rows"]:
                self._add_row(row)

    def _add_counts(self, record: dict[str, Any]) -> None:
        index = record["rows"][0]["index"]
        self.work[record["number"]] = index, record["tokens"]
        self.tokens += record["tokens"]
        # Not the call's own counts: those hold what was accepted behind a text's end as well.
        lengths = [r.accepted for row in record["rows"] for r in row_rounds(row["sources"])]
        self.counts.add("length", index, sum(lengths), record["row_rounds"])
        self.counts.add("rate", index, sum(lengths), record["drafted"])
        drafted = record["drafted_per_depth"]
        accepted = [sum(length >= position for length in lengths) for position in range(1, len(drafted) + 1)]
        for position, counts in enumerate(zip(accepted, drafted, strict=True), start=1):
            self.positions.add(("marginal", position), index, *counts)
        self.drafted = [a + b for a, b in zip_longest(self.drafted, drafted, fillvalue=0)]
        self.accepted = [a + b for a, b in zip_longest(self.accepted, accepted, fillvalue=0)]

    def _add_row(self, row: dict[str, Any]) -> None:
        index = row["index"]
        rounds = list(row_rounds(row["sources"]))
        accepted = sum(r.accepted for r in rounds)
        self.counts.add("rounds", index, len(rounds), 1)
        self.domains.add(row["domain"], index, len(rounds) + accepted, len(rounds))
        looked = [(i, letter == "a") for i, letter in enumerate(row["sources"]) if letter in "ar"]
        self.context.add(index, [row["context"] + i for i, _ in looked], [a for _, a in looked])
        self.entropy.add(index, [row["target_entropy"][i] for i, _ in looked], [a for _, a in looked])
        if self.is_level:  # a row that was cut back to the slowest one's tokens shows a rejection that was none
            return
        for position in range(1, len(self.drafted) + 1):
            reached = sum(r.reached(position) for r in rounds)
            self.positions.add(("conditional", position), index, sum(r.accepted >= position for r in rounds), reached)
        if "alpha" in row:
            self.knows_alpha = True
            self.counts.add("martingale", index, *_surprise(rounds, row["alpha"]))

    def times(self) -> Times:
        return times_of(self.rounds, self.prefill)

    def by_position(self) -> list[Position]:
        return [
            Position(
                drafted,
                accepted,
                self.positions.interval(("marginal", position)),
                self.positions.interval(("conditional", position)),
            )
            for position, (drafted, accepted) in enumerate(zip(self.drafted, self.accepted, strict=True), start=1)
        ]


def times_of(rounds: Sequence[Sequence[float]], prefill: Sequence[float]) -> Times:
    """Medians over runs, and how far the runs are apart.

    Args:
        rounds: of each run the seconds of a round: drafting, verifying, the rest.
        prefill: of each run the seconds of a prompt's token.
    """
    draft, verify, other = (median(parts) for parts in zip(*rounds, strict=True))
    totals = [sum(parts) for parts in rounds]
    spread = 0.0
    if len(totals) > 1:
        low, _, high = quantiles(totals, n=4, method="inclusive")
        spread = (high - low) / median(totals)
    return Times(draft, verify, other, draft + verify + other, spread, median(prefill))


def _surprise(rounds: list[RowRound], alpha: list[float]) -> tuple[float, int]:
    """Sum over the rounds that looked at a draft of (accepted - alpha there), and how many there were.

    Its expectation is zero, since alpha is the chance of acceptance given all that came before: a martingale.
    """
    looked = [r for r in rounds if r.reached(1)]
    return sum((r.accepted > 0) - alpha[r.start] for r in looked), len(looked)


def measured_of(records: Iterable[dict[str, Any]], seed: int, *, levels: bool = False) -> dict[Key, Measured]:
    """Every setting that was run.

    Args:
        levels: the rows of a batch commit equally many tokens a round.
    """
    sums: dict[Key, _Sum] = {}
    for record in records:
        key = (record["draft"], record["temperature"], record["batch"], record["num_draft_tokens"])
        sums.setdefault(key, _Sum(seed, levels and record["batch"] > 1)).add(record)
    return {
        key: _measured(s, plain, seed)
        for key, s in sums.items()
        if s.work
        and s.rounds
        and (plain := sums.get((PLAIN, key[1], key[2], 0))) is not None
        and plain.work
        and plain.rounds
    }


def _measured(s: _Sum, plain: _Sum, seed: int) -> Measured:
    times, length = s.times(), s.counts.interval("length")
    one_more = Interval(1 + length.value, 1 + length.low, 1 + length.high)
    speedup = _speedup(s, plain, seed)
    tolerance = max(_CLOCK, plain.times().spread, times.spread)
    # Means over all rounds, as the speed-up is one of all tokens: a median hides the dear ones.
    one, several = (side.verifying / side.num_rounds for side in (plain, s))
    ceiling, impossible = flag(speedup, one_more.value, one, several, tolerance)
    return Measured(
        tokens=s.tokens,
        rounds=s.counts.interval("rounds"),
        acceptance_rate=s.counts.interval("rate").value,
        acceptance_length=one_more,
        positions=s.by_position(),
        by_domain={str(d): s.domains.interval(d) for d in s.domains.groups()},
        by_context=s.context.bands(),
        by_entropy=s.entropy.bands(),
        tokens_per_second=sum(t for _, t in s.work.values()) / sum(median(s.seconds[n]) for n in s.work),
        speedup=speedup,
        times=times,
        peak_bytes=max(s.peaks, default=None),
        joules_per_token=median(s.joules) if s.joules else None,
        ceiling=ceiling,
        impossible=impossible,
        martingale=s.counts.interval("martingale") if s.knows_alpha else None,
    )


def _speedup(s: _Sum, plain: _Sum, seed: int) -> Interval:
    """Seconds a token of plain decoding over the setting's, on the batches that both decoded."""
    sums = Sums(seed)
    for number, (index, tokens) in s.work.items():
        if number in plain.work:
            ours, theirs = median(s.seconds[number]), median(plain.seconds[number])
            sums.add(index, [theirs, plain.work[number][1], ours, tokens])

    def ratio(t: Floats) -> Floats:
        return (t[:, 0] / t[:, 1]) / (t[:, 2] / t[:, 3])

    return sums.statistic(ratio, size=3)
