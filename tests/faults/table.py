"""The table of fault points: what goes wrong, at which call of what, in which kind of generate() call.

`python -m tests.faults.table` prints it, and says how many points there are at each change and in the long run.
"""

from __future__ import annotations

import pathlib
import sys
from collections import Counter
from dataclasses import dataclass

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from faults.broken import BREACHES, EITHER, ODD

MEMORIES = ("attention", "sliding", "recurrent", "encoder-decoder", "given DynamicCache", "given RollbackCache")
CALLS = ((1, False), (3, True), (3, False), (1, True))  # rows, sampled
WHENS = ("0", "1", "2", "last")  # which call of the callback, or which round

CALLBACKS = {  # who is called, and when it may fail
    "check": ("0",),
    "start": ("0",),
    "propose": WHENS,
    "observe": WHENS,
    "select_rows": ("0",),
    "close": ("0",),
    "processor": WHENS,
    "criterion": WHENS,
    "streamer's put": WHENS,
    "streamer's end": ("0",),
    "on_commit": WHENS,
    "on_finish": ("0",),
}
LOGITS = ("all NaN", "one NaN", "one inf", "all -inf", "all inf")
MEMORY = {  # where memory runs out
    "in the target's forward": WHENS,
    "in the draft's forward": WHENS,
    "as the cache grows": ("0", "1", "2", "last"),
    "as rows leave": ("0", "1", "2", "last"),
}
ADVERSARIES = ("always wrong", "always right", "only EOS", "random lengths", "random trees", "a poisoned token")


@dataclass(frozen=True)
class Point:
    """One fault in one call.

    Args:
        group, fault: what goes wrong.
        when: at which call of the callback (counted from 0, "last": of a call without a fault).
    """

    group: str
    fault: str
    when: str
    memory: str
    batch_size: int
    do_sample: bool

    @property
    def name(self) -> str:
        rows = f"{self.batch_size} row{'s' * (self.batch_size > 1)}"
        how = "sampled" if self.do_sample else "greedy"
        return f"{self.group}: {self.fault}, at {self.when}, {self.memory}, {rows}, {how}"


def faults() -> dict[tuple[str, str], tuple[str, ...]]:
    """(group, fault) -> when."""
    table: dict[tuple[str, str], tuple[str, ...]] = {}
    for callback, whens in CALLBACKS.items():
        table["raises", callback] = whens
        table["interrupted", callback] = whens
    for group, cases in (("breach", BREACHES), ("odd", ODD), ("either", EITHER)):
        table.update({(group, case): WHENS for case in cases})
    table.update({("logits from a processor", kind): WHENS for kind in LOGITS})
    table["logits from the model", "all NaN"] = WHENS
    table["logits from the model", "a head with inf"] = ("0",)
    table["logits from the model", "a head with NaN"] = ("0",)
    table["criterion", "another number of answers"] = WHENS
    table.update({("out of memory", where): whens for where, whens in MEMORY.items()})
    table["tokenizers", "same size, other tokens"] = ("0",)
    table.update({("adversary", kind): ("0",) for kind in ADVERSARIES})
    return table


def is_possible(point: Point) -> bool:
    """Are there such calls at all?"""
    if point.fault == "select_rows":
        return point.batch_size > 1
    if point.fault == "as rows leave":  # which layers' rows move depends on the memory; a state's are few
        return point.batch_size > 1 and point.when in ("0", "last")
    return True


def points(long: bool) -> list[Point]:
    """Those of each change; or of the long run, which has the others."""
    chosen = {p for number in range(len(faults())) for p in _of_fault(number, everything=False)}
    everything = {p for number in range(len(faults())) for p in _of_fault(number, everything=True)}
    order = [p for number in range(len(faults())) for p in _of_fault(number, True)]
    return [p for p in dict.fromkeys(order) if (p in chosen) != long and p in everything]


def _of_fault(number: int, everything: bool) -> list[Point]:
    """Each fault at each `when` in turn through memories and calls; in the long run in each memory."""
    (group, fault), whens = list(faults().items())[number]
    found = []
    for turn, when in enumerate(whens):
        if not everything and group == "breach" and turn % 2 != number % 2:
            continue  # they are many, and told at the same place
        for place, memory in enumerate(MEMORIES):
            calls = [CALLS[(number + turn + place + extra) % 4] for extra in ((0, 1, 2, 3) if everything else (0,))]
            if not everything and (place - number - turn) % len(MEMORIES) not in _taken(len(whens)):
                continue
            possible = [p for c in calls if is_possible(p := Point(group, fault, when, memory, *c))]
            found += possible[:1] if everything else possible
            if not everything and not possible:  # this call has no such event: another one
                found += [p for c in CALLS if is_possible(p := Point(group, fault, when, memory, *c))][:1]
    return found


def _taken(num_whens: int) -> tuple[int, ...]:
    """How many memories a fault meets at each `when`: four points or so for each fault."""
    return (0,) if num_whens == 4 else (0, 2, 4)


def main() -> None:
    daily, rest = points(long=False), points(long=True)
    for point in daily:
        print(point.name)
    groups = Counter(point.group for point in daily)
    print(f"{len(daily)} fault points at each change ({', '.join(f'{g} {n}' for g, n in groups.items())});")
    print(f"{len(rest)} more with -m long: {len(daily) + len(rest)} in all")


if __name__ == "__main__":
    main()
