"""The cost model: seconds of a round's parts as sums of a few terms, one least-squares fit a draft and part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from specdec.profile.schema import PLAIN, CostModel

FEATURES = {
    "draft": ["1 a round", "drafted tokens", "drafted tokens x rows", "drafted tokens x rows x 1000 of context"],
    "verify": ["1 a round", "1 if more than one token a row", "tokens of the window", "rows x 1000 of context"],
    "other": ["1 a call", "1 a round"],
    "prefill": ["1 a call", "tokens of the prompts"],
}
Key = tuple[str, bool]  # draft, sampled


@dataclass(frozen=True, slots=True)
class Costs:
    """Fitted models of one draft, greedy or sampled.

    Attributes:
        models: by part.
    """

    models: dict[str, CostModel]

    def round_seconds(self, depth: float, batch: int, context: float) -> tuple[float, float]:
        """Seconds of drafting, and of verifying, in a round.

        Args:
            depth: drafted tokens a row; 0 decodes plainly.
            context: tokens of a row.
        """
        return tuple(  # type: ignore[return-value]
            max(0.0, float(np.dot(self.models[part].coefficients, _features(part, depth, batch, context, 1, 0))))
            for part in ("draft", "verify")
        )

    def call_seconds(self, depth: float, batch: int, context: float, rounds: float, prompt_tokens: int) -> float:
        """Seconds of a whole call."""
        draft, verify = self.round_seconds(depth, batch, context)
        rest = [
            float(np.dot(self.models[part].coefficients, _features(part, depth, batch, context, rounds, prompt_tokens)))
            for part in ("other", "prefill")
        ]
        return rounds * (draft + verify) + sum(max(0.0, r) for r in rest)


def fit_costs(records: Iterable[dict[str, Any]]) -> dict[Key, Costs]:
    """One model a draft and kind of call; a draft's verification is fitted together with plain decoding's.

    Args:
        records: of `measure_costs`.
    """
    points: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        points[tuple(record["point"])].append(record)
    by_key: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for (draft, _, _, _, sampled), repeats in points.items():
        by_key[draft, sampled].append(_typical(repeats))
    return {
        (draft, sampled): Costs(
            {
                part: _fit(
                    draft,
                    sampled,
                    part,
                    [*mine, *(by_key.get((PLAIN, sampled), []) if draft != PLAIN and part == "verify" else [])],
                )
                for part in FEATURES
            }
        )
        for (draft, sampled), mine in by_key.items()
    }


def _typical(repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the repeats; a point whose first run was slow is not slow."""
    names = ("draft", "verify", "other", "prefill", "rounds", "depth", "batch", "context", "prompt_tokens")
    return {name: median(r[name] for r in repeats) for name in names}


def _features(
    part: str, depth: float, batch: float, context: float, rounds: float, prompt_tokens: float
) -> list[float]:
    kilo = context / 1000
    return {
        "draft": [float(depth > 0), depth, depth * batch, depth * batch * kilo],
        "verify": [1.0, float(depth > 0), (1 + depth) * batch, batch * kilo],
        "other": [1.0, rounds],
        "prefill": [1.0, prompt_tokens],
    }[part]


def _fit(draft: str, sampled: bool, part: str, points: Sequence[dict[str, Any]]) -> CostModel:
    """Least squares of relative errors, so that small batches count as much as large ones.

    Terms that nothing tells apart (one batch size, one context) share what they explain (the smallest solution).
    """
    rows, values = [], []
    for p in points:
        rounds = max(p["rounds"], 1)
        per = rounds if part in ("draft", "verify") else 1
        rows.append(_features(part, p["depth"], p["batch"], p["context"], rounds, p["prompt_tokens"]))
        values.append(p[part] / per)
    matrix, wanted = np.array(rows), np.array(values)
    weight = 1 / np.maximum(wanted, max(1e-6, 0.02 * float(wanted.max(initial=0.0))))
    # Columns of very different size: scaled, so that the smallest solution spreads over all of them.
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-12)
    solution, *_ = np.linalg.lstsq(matrix / scale * weight[:, None], wanted * weight, rcond=1e-6)
    coefficients = solution / scale
    errors = np.abs(matrix @ coefficients - wanted) * weight
    return CostModel(draft, part, FEATURES[part], coefficients.tolist(), float(np.median(errors)), sampled)
