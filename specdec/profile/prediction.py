"""Speed-ups from acceptance on the text and fitted costs: what the loop should reach, before it is run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from specdec.profile.fit import Costs, Key, Load
from specdec.profile.schema import PLAIN, Predicted
from specdec.profile.tally import Tally


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What a text says of one draft; `rounds` holds the fields of `Rounds` by number of draft tokens."""

    index: int
    context: int
    tokens: int
    rounds: Mapping[str, list[float]]


@dataclass(slots=True)
class _Sum:
    """Predicted times of one setting, batch by batch."""

    seed: int
    rounds: Tally = field(init=False)
    row_rounds: float = 0.0
    accepted: float = 0.0
    plain_seconds: float = 0.0
    seconds: float = 0.0
    call_rounds: float = 0.0
    round_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.rounds = Tally(self.seed)

    def add(self, prompts: list[_Prompt], k: str, plain: Costs, costs: Costs) -> None:
        """A batch; its rounds are those of the row that takes most of them."""
        rows = [p.rounds[k] for p in prompts]
        batch = len(prompts)
        context = sum(p.context + p.tokens / 2 for p in prompts) / batch
        prompt_tokens = sum(p.context for p in prompts)
        rounds, drafted, accepted, drafting = (sum(column) for column in zip(*rows, strict=True))
        load = Load(batch, context, drafted / rounds, drafting / rounds) if rounds else Load(batch, context)
        longest = max(row[0] for row in rows)
        plain_rounds = max(p.tokens for p in prompts) - 1
        self.plain_seconds += plain.call_seconds(Load(batch, context), plain_rounds, prompt_tokens)
        self.seconds += costs.call_seconds(load, longest, prompt_tokens)
        self.call_rounds += longest
        self.round_seconds += longest * sum(costs.round_seconds(load))
        self.row_rounds, self.accepted = self.row_rounds + rounds, self.accepted + accepted
        for prompt, row in zip(prompts, rows, strict=True):
            self.rounds.add("rounds", prompt.index, row[0], 1)

    def predicted(self) -> Predicted:
        return Predicted(
            rounds=self.rounds.interval("rounds"),
            acceptance_length=1 + self.accepted / self.row_rounds if self.row_rounds else 1.0,
            round_seconds=self.round_seconds / self.call_rounds if self.call_rounds else 0.0,
            speedup=self.plain_seconds / self.seconds if self.seconds else 1.0,
        )


Setting = tuple[str, float, int, int]  # draft, temperature, batch, num_draft_tokens


def predicted_of(
    records: Iterable[dict[str, Any]],
    costs: Mapping[Key, Costs],
    batches: Collection[int],
    seed: int,
    only: Collection[int] | None = None,
) -> dict[Setting, Predicted]:
    """A prediction for every setting whose rounds follow from the text.

    Args:
        records: of the teacher-forced pass.
        batches: prompts are taken so many at a time, in their order; what is left over at the end is left out, unless
            that is all there is.
        only: the prompts that the loop ran on, few enough to be held; then batches are those of `batches_of`.
    """
    lengths: dict[tuple[int, float], int] = {}
    waiting: dict[tuple[str, float, int], list[_Prompt]] = defaultdict(list)
    sums: dict[Setting, _Sum] = {}
    for record in records:
        index, temperature, draft = record["index"], record["temperature"], record["draft"]
        if only is not None and index not in only:
            continue
        if draft == PLAIN:
            lengths.clear()  # a text's records stand together, the target's own first
            lengths[index, temperature] = len(record["tokens"])
            continue
        key = draft, temperature > 0
        if not record["rounds"] or key not in costs or (PLAIN, temperature > 0) not in costs:
            continue
        prompt = _Prompt(index, record["context"], lengths[index, temperature], record["rounds"])
        for batch in batches:
            group = waiting[draft, temperature, batch]
            group.append(prompt)
            if only is None and len(group) == batch:
                _add(sums, group, (draft, temperature, batch), costs, seed)
                group.clear()
    for place, group in waiting.items():
        if only is None and any(key[:3] == place for key in sums):
            continue
        for start in range(0, len(group), place[2]):  # as `batches_of` fills up the loop's last batch
            _add(sums, [group[i % len(group)] for i in range(start, start + place[2])], place, costs, seed)
    return {setting: total.predicted() for setting, total in sums.items()}


def _add(
    sums: dict[Setting, _Sum],
    prompts: list[_Prompt],
    place: tuple[str, float, int],
    costs: Mapping[Key, Costs],
    seed: int,
) -> None:
    """Adds a batch to every number of draft tokens."""
    draft, temperature, batch = place
    plain, own = costs[PLAIN, temperature > 0], costs[draft, temperature > 0]
    for k in prompts[0].rounds:
        sums.setdefault((draft, temperature, batch, int(k)), _Sum(seed)).add(prompts, k, plain, own)
