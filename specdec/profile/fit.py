"""The cost model: seconds of a round's parts as sums of a few terms, one least-squares fit a draft and part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.profile.schema import PLAIN, CostModel

FEATURES = {
    "draft": ["1 a round", "drafted tokens", "drafted tokens x rows", "drafted tokens x rows x 1000 of context"],
    "verify": ["1 a round", "1 a round with a draft", "tokens of the window", "rows x 1000 of context"],
    "other": ["1 a call", "1 a round"],
    "prefill": ["1 a call", "tokens of the prompts"],
}
Key = tuple[str, bool]  # draft, sampled
_OFTEN = 0.9  # of the rounds
_CHAINS = ("model", "early-exit")  # whose windows are as wide as they are deep


@dataclass(frozen=True, slots=True)
class Load:
    """What the rounds of a call are like on average.

    Attributes:
        context: tokens of a row.
        depth: drafted tokens a row; 0 decodes plainly.
        share: of the rounds, those with a draft.
    """

    batch: float
    context: float
    depth: float = 0.0
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Costs:
    """Fitted models of one draft, greedy or sampled, by part."""

    models: Mapping[str, CostModel]

    def round_seconds(self, load: Load) -> tuple[float, float]:
        """Seconds of drafting, and of verifying, in a round."""
        return self._part("draft", load, 1, 0), self._part("verify", load, 1, 0)

    def call_seconds(self, load: Load, rounds: float, prompt_tokens: float) -> float:
        """Seconds of a whole call."""
        rest = self._part("other", load, rounds, prompt_tokens) + self._part("prefill", load, rounds, prompt_tokens)
        return rounds * sum(self.round_seconds(load)) + rest

    def _part(self, part: str, load: Load, rounds: float, prompt_tokens: float) -> float:
        return float(np.dot(self.models[part].coefficients, _features(part, load, rounds, prompt_tokens)))


def fit_costs(records: Iterable[dict[str, Any]]) -> dict[Key, Costs]:
    """One model a draft and kind of call; a draft's verification is fitted together with plain decoding's.

    Args:
        records: of `Costing`; also `plain_points`.
    """
    points: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if record["rounds"]:  # else the text ended with its first token
            points[tuple(record["point"])].append(record)
    by_key: dict[Key, list[dict[str, float]]] = defaultdict(list)
    for (draft, _, _, _, sampled), repeats in points.items():
        by_key[draft, sampled].append(_typical(repeats))
    found: dict[Key, Costs] = {}
    for (draft, sampled), mine in by_key.items():
        shared = _shared(draft, sampled, by_key)
        models = {part: _fit(part, mine + shared * (part == "verify")) for part in FEATURES}
        found[draft, sampled] = Costs(
            {part: CostModel(draft, part, FEATURES[part], *fitted, sampled) for part, fitted in models.items()}
        )
    return found


def plain_points(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What the loop's records say of plain decoding, as records of costs.

    It is no speculation, so that nothing that is predicted is looked at; and every speed-up is divided by it: it
    should be known from as many runs as there are.

    Args:
        records: of `run_loop`.
    """
    for r in records:
        if r["draft"] == PLAIN and r["rounds"]:
            context = r["prompt_tokens"] / r["batch"] + r["longest"] / 2
            size = {"batch": r["batch"], "context": context, "depth": 0.0, "share": 0.0}
            counts = {"rounds": r["rounds"], "prompt_tokens": r["prompt_tokens"]}
            yield r["parts"] | size | counts | {"point": [PLAIN, 0, r["batch"], int(context), r["temperature"] > 0]}


def _shared(draft: str, sampled: bool, by_key: Mapping[Key, list[dict[str, float]]]) -> list[dict[str, float]]:
    """Points of others that say what this draft's verification costs.

    Plain decoding's; and where a draft has little to say (n-grams in a new text), those of drafts that always do: from
    a draft in one round of twenty its cost cannot be told.
    """
    if draft == PLAIN:
        return []
    found = list(by_key.get((PLAIN, sampled), []))
    if min(p["share"] for p in by_key[draft, sampled]) < _OFTEN:
        for (other, kind), points in by_key.items():
            if kind == sampled and other != draft and other.partition(":")[0] in _CHAINS:
                found += [p for p in points if p["share"] >= _OFTEN]
    return found


def _typical(repeats: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians of the repeats; a point whose first run was slow is not slow."""
    names = ("draft", "verify", "other", "prefill", "rounds", "depth", "share", "batch", "context", "prompt_tokens")
    return {name: median(r[name] for r in repeats) for name in names}


def _features(part: str, load: Load, rounds: float, prompt_tokens: float) -> list[float]:
    kilo, rows = load.context / 1000, load.batch
    return {
        "draft": [1.0, load.depth, load.depth * rows, load.depth * rows * kilo],
        "verify": [1.0, load.share, (1 + load.depth) * rows, rows * kilo],
        "other": [1.0, rounds],
        "prefill": [1.0, prompt_tokens],
    }[part]


def _fit(part: str, points: Sequence[Mapping[str, float]]) -> tuple[list[float], float]:
    """Coefficients, and the median relative error.

    Relative errors are minimised, so that small batches count as much as large ones.
    """
    rows, values = [], []
    for p in points:
        rounds = max(p["rounds"], 1)
        load = Load(p["batch"], p["context"], p["depth"], p["share"])
        rows.append(_features(part, load, rounds, p["prompt_tokens"]))
        values.append(p[part] / (rounds if part in ("draft", "verify") else 1))
    matrix, wanted = np.array(rows), np.array(values)
    weight = 1 / np.maximum(wanted, max(1e-6, 0.02 * float(wanted.max(initial=0.0))))
    coefficients = non_negative(matrix * weight[:, None], wanted * weight)
    errors = np.abs(matrix @ coefficients - wanted) * weight
    return coefficients.tolist(), float(np.median(errors))


def non_negative(matrix: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares with no coefficient below zero: nothing gets faster by more work, and extrapolation must not.

    Terms that would become negative are left out, the most negative first. Terms that nothing tells apart (one batch
    size, one context) share what they explain: of all best solutions it is the smallest, in units of the columns.

    Example:
        >>> non_negative(np.array([[1.0, 1.0], [1.0, 2.0]]), np.array([2.0, 1.0])).round(2).tolist()
        [1.5, 0.0]
    """
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-12)
    kept = list(range(matrix.shape[1]))
    out = np.zeros(matrix.shape[1])
    while kept:
        solution, *_ = np.linalg.lstsq(matrix[:, kept] / scale[kept], wanted, rcond=1e-6)
        if solution.min() >= 0:
            out[kept] = solution / scale[kept]
            break
        del kept[int(solution.argmin())]
    return out
