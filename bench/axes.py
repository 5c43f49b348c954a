"""The axes of test_axes.py: one is varied at a time around a base point, since the full product would take days.

The base point is one prompt at a time, as long as it is, greedy. `strategy` is the base point with every strategy and
all that transformers has; `k` the base point with every number of draft tokens; the others leave the base point by one
setting, with a few sides each. Prompts of several kinds give every point's ratios by kind as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from specdec.errors import OptionError

AXES = ("strategy", "k", "batch", "context", "sampling")
COUNTS = (1, 2, 3, 4, 6, 8)
BATCHES = (1, 2, 4, 8)
CONTEXTS = (128, 1024)
TEMPERATURE = 0.8


@dataclass(frozen=True, slots=True)
class Point:
    """One comparison.

    Attributes:
        axis: that it belongs to.
        batch: prompts at a time.
        context: tokens of every prompt; None leaves them as they are.
        temperature: 0 is greedy.
    """

    axis: str
    batch: int = 1
    context: int | None = None
    temperature: float = 0.0

    @property
    def name(self) -> str:
        value = {"batch": str(self.batch), "context": str(self.context), "sampling": f"t{self.temperature:g}"}
        return f"{self.axis}-{value[self.axis]}" if self.axis in value else self.axis


def points(asked: str) -> list[Point]:
    """The points of the axes asked for.

    Args:
        asked: names of axes, comma-separated.

    Raises:
        OptionError: one is not an axis.

    Example:
        >>> [p.name for p in points("k,batch")]
        ['k', 'batch-1', 'batch-2', 'batch-4', 'batch-8']
    """
    names = asked.split(",")
    unknown = [name for name in names if name not in AXES]
    if unknown:
        raise OptionError(f"--axes {asked}: {', '.join(map(repr, unknown))} is no axis; there are {', '.join(AXES)}.")
    all_points = {
        "strategy": [Point("strategy")],
        "k": [Point("k")],
        "batch": [Point("batch", batch=size) for size in BATCHES],
        "context": [Point("context", context=length) for length in CONTEXTS],
        # Batch 1 is greedy sampling's point as well.
        "sampling": [Point("sampling", temperature=t) for t in (TEMPERATURE, 0.0) if t or "batch" not in names],
    }
    return [point for name in dict.fromkeys(names) for point in all_points[name]]
