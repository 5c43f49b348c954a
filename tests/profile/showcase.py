"""Profiles for the tests of the reports: one with everything in it, one with nothing, one that means harm."""

from __future__ import annotations

import math
from dataclasses import replace

from specdec.profile.schema import (
    PLAIN,
    Band,
    Draft,
    Example,
    ExampleToken,
    Interval,
    Money,
    Profile,
    Recommendation,
    Setting,
)
from tests.profile import sample

TEXT = """def add(a, b):
    \"\"\"Adds two numbers; the draft knows such code by heart.\"\"\"
    return a + b


def mean(values):
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)
"""


def recommendations() -> list[Recommendation]:
    """Two temperatures at two batch sizes; at the last one nothing pays."""
    return [
        Recommendation(0.0, 1, "model:draft", 4, 1.73, True, ["Its ceiling is <b>2.9x</b>.", "alpha is high."],
                       Money(2.5, 7.1, 4.1)),
        Recommendation(0.0, 4, "model:draft", 2, 1.61, True, ["Verification grows."], Money(2.5, 2.2, 1.4)),
        Recommendation(1.0, 1, "ngram", 6, 1.02, False, ["Predicted only."], Money(2.5, 7.1, 6.9)),
        Recommendation(1.0, 4, PLAIN, 0, 1.0, True, ["Every draft is slower here."], Money(2.5, 2.2, 2.2)),
    ]  # fmt: skip


def examples() -> list[Example]:
    """Two texts of many tokens."""
    tokens = []
    for i, word in enumerate(TEXT.replace("\n", "\n ").split(" ")):
        source = ("accepted", "accepted", "recovered", "accepted", "accepted", "bonus", "plain")[i % 7]
        known = source != "plain"
        alpha = 0.5 + 0.5 * math.sin(i) ** 2
        tokens.append(ExampleToken((" " if i else "") + word, source, 0.9 if known else None, alpha if known else None,
                                   alpha if known else None))  # fmt: skip
    return [
        Example("Write an adder & a mean, please. Keep both of them short.", "coding", "model:draft", 0.0, 4, tokens),
        Example("The same", "coding", "ngram", 1.0, 6, tokens[:20]),
    ]


def flagged(setting: Setting) -> Setting:
    """The same setting, faster than its ceiling."""
    assert setting.measured is not None
    wrong = Interval(setting.measured.ceiling * 1.5, setting.measured.ceiling * 1.4, setting.measured.ceiling * 1.6)
    return replace(setting, measured=replace(setting.measured, speedup=wrong, impossible=True))


def full() -> Profile:
    """Every field filled; one setting is impossible, the run was interrupted."""
    base = sample.profile()
    settings = list(base.settings)
    at = next(i for i, s in enumerate(settings) if (s.draft, s.temperature, s.batch, s.num_draft_tokens)
              == ("ngram", 1.0, 4, 8))  # fmt: skip
    settings[at] = flagged(settings[at])
    return replace(
        base,
        complete=False,
        settings=settings,
        recommendations=recommendations(),
        examples=examples(),
    )


def many() -> Profile:
    """A long one: 16 draft tokens at four batch sizes, 40 domains, 3 temperatures of agreement."""
    base = sample.profile(ks=tuple(k for k in range(1, 17) if k != 6), batches=(1, 2, 4, 8))
    by_domain = {f"domain number {i}": sample.around(0.3 + i / 100) for i in range(40)}
    agreements = [replace(a, by_domain=by_domain) for a in base.agreements]
    return replace(
        base,
        subject=replace(base.subject, domains=dict.fromkeys(by_domain, 2)),
        agreements=[*agreements, replace(agreements[0], temperature=0.5)],
        recommendations=recommendations(),
        notes=[f"note number {i}" for i in range(40)],
    )


def empty() -> Profile:
    """Interrupted before anything was measured."""
    base = sample.profile()
    return replace(
        base,
        complete=False,
        subject=replace(base.subject, used=0, skipped={}, domains={}),
        drafts=[], agreements=[], settings=[], costs=[], cost_models=[], uppers=[], recommendations=[], trees=[],
        break_even={}, examples=[], notes=[], tokens_file=None,
    )  # fmt: skip


HARM = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'",
    "\x1b[31mred\x1b]0;title\x07\x00\x9b1m",
    "lone \ud800 surrogate \udfff",
    "\u202egnp.exe",
    "$\\frac{1}{0}$ [bold]rich[/] _x",
    "漢字の領域" * 10,
    "long" * 2000,
    "",
    "line\nline\r\nline\u2028line",
]


def harmful() -> Profile:
    """Names and texts that would run, steer, turn or break what shows them."""
    base = full()
    names = {"model:draft": HARM[1], "ngram": HARM[2] + HARM[5]}
    domains = dict.fromkeys(HARM, 2)
    by_domain = {text: sample.around(0.5) for text in HARM}
    settings = [
        replace(
            s,
            draft=names.get(s.draft, s.draft),
            measured=s.measured and replace(s.measured, by_domain=by_domain),
        )
        for s in base.settings
    ]
    tokens = [ExampleToken(text, text if i % 2 else "accepted") for i, text in enumerate(HARM)]
    tokens += [ExampleToken("<i>", "recovered", 0.1, 0.2, 0.3)] * 3000
    return replace(
        base,
        created=HARM[0],
        machine=replace(base.machine, device=HARM[2], dtype=HARM[0], torch=HARM[1]),
        subject=replace(base.subject, target=HARM[0], prompts=HARM[3], skipped={HARM[1]: 1}, domains=domains),
        drafts=[Draft(names["model:draft"], HARM[0], HARM[4], 5), Draft(names["ngram"], "ngram")],
        agreements=[
            replace(a, draft=names[a.draft], by_domain=by_domain, by_entropy=[Band(0, None, 5, sample.around(0.4))])
            for a in base.agreements
        ],
        settings=settings,
        costs=[replace(c, draft=names[c.draft]) for c in base.costs],
        cost_models=[replace(m, draft=names[m.draft], features=HARM[:2], part=HARM[3]) for m in base.cost_models],
        uppers=[replace(u, draft=names[u.draft]) for u in base.uppers],
        trees=[replace(t, draft=names[t.draft], parents=[3, -5]) for t in base.trees],
        recommendations=[replace(r, draft=names.get(r.draft, r.draft), reasons=HARM) for r in base.recommendations],
        break_even={HARM[1]: 3},
        examples=[Example(HARM[0], HARM[1], HARM[2], 0.0, 4, tokens), Example("", "", "", 0.0, 0, [])],
        notes=HARM,
    )
