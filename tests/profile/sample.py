"""A profile by hand, for tests of what is made of profiles: every field is filled, and the figures agree."""

from __future__ import annotations

from specdec.profile.schema import (
    PLAIN,
    VERSION,
    Agreement,
    Band,
    Cost,
    CostModel,
    Draft,
    Example,
    ExampleToken,
    Interval,
    Machine,
    Measured,
    Position,
    Predicted,
    Profile,
    Setting,
    Subject,
    Times,
    TreeAdvice,
    Upper,
)

PLAIN_SECONDS = 0.010
LENGTHS = {"model:draft": 0.8, "ngram": 0.5}  # chance that a drafted token is accepted, the same everywhere


def around(value: float, spread: float = 0.05) -> Interval:
    return Interval(value, value * (1 - spread), value * (1 + spread))


def times(k: int, batch: int) -> Times:
    """A draft token costs 2 ms, a window 10 ms and 0.5 ms a token more, the rest 0.3 ms."""
    draft, verify, other = 0.002 * k, PLAIN_SECONDS + 0.0005 * (k + 1) * batch, 0.0003
    return Times(draft, verify, other, draft + verify + other, 0.04, 0.0005)


def setting(draft: str, temperature: float, batch: int, k: int, *, is_measured: bool = True) -> Setting:
    if draft == PLAIN:
        alpha, length = 0.0, 1.0
    else:
        alpha = LENGTHS[draft] - 0.2 * (temperature > 0)
        length = sum(alpha**i for i in range(k + 1))
    cost, plain = times(k, batch), times(0, batch)
    speedup = length * plain.total / cost.total
    predicted = Predicted(around(64 / length), length, cost.total, speedup)
    positions = [Position(1000, int(1000 * alpha**i), around(alpha**i), around(alpha)) for i in range(1, k + 1)]
    measured = Measured(
        tokens=4096,
        rounds=around(64 / length),
        acceptance_rate=(length - 1) / max(k, 1),
        acceptance_length=around(length),
        positions=positions,
        by_domain={"coding": around(length * 1.1), "writing": around(length * 0.9)},
        by_context=[Band(0, 256, 2000, around(max(alpha, 0.01))), Band(256, None, 100, around(max(alpha, 0.01)))],
        by_entropy=[Band(0, 0.5, 1500, around(max(alpha, 0.01))), Band(0.5, None, 600, around(max(alpha / 2, 0.01)))],
        tokens_per_second=batch * length / cost.total,
        speedup=around(speedup * 0.97),
        times=cost,
        peak_bytes=50_000_000,
        joules_per_token=0.4,
        ceiling=length * plain.total / cost.verify,
        impossible=False,
        martingale=Interval(0.01, -0.03, 0.05) if draft != PLAIN else None,
    )
    return Setting(
        draft, temperature, batch, k, None if draft == PLAIN else predicted, measured if is_measured else None
    )


def agreement(draft: str, temperature: float) -> Agreement:
    alpha = LENGTHS[draft] - 0.2 * (temperature > 0)
    bands = [Band(0, 0.5, 3000, around(0.95)), Band(0.5, 2, 700, around(0.6)), Band(2, None, 300, around(0.3))]
    return Agreement(
        draft, temperature, 4000, around(alpha), around(0.8), around(0.4), around(0.9), around(1.2),
        [0.8, 0.1, 0.04, 0.02], {"coding": around(0.85), "writing": around(0.6)}, bands,
        [Band(0, 256, 3600, around(alpha)), Band(256, None, 400, around(alpha))],
    )  # fmt: skip


def profile(ks: tuple[int, ...] = (1, 2, 4, 8), batches: tuple[int, ...] = (1, 4)) -> Profile:
    """Two drafts at two temperatures; k = 6 is predicted only."""
    settings = [
        setting(draft, temperature, batch, k, is_measured=k != 6)
        for temperature in (0.0, 1.0)
        for batch in batches
        for draft in (PLAIN, *LENGTHS)
        for k in ((0,) if draft == PLAIN else (*ks, 6))
    ]
    pieces = [("def", "accepted"), (" add", "recovered"), ("(a, b):\n", "bonus"), ("  return <b>", "plain")]
    return Profile(
        version=VERSION,
        created="2026-11-26T01:02:03+00:00",
        complete=True,
        machine=Machine("Some CPU <2 cores>", 2, 1, "float32", "no", "0.1.0", "2.13.0", "5.23.0"),
        subject=Subject(
            "models/target", 10_700_000, "models/target", "question.jsonl", 16, {"longer than the context": 2},
            {"coding": 10, "writing": 6}, 64, 0,
        ),
        drafts=[
            Draft("model:draft", "model", "models/draft", 2_600_000, None, "chain"),
            Draft("ngram", "ngram", predicts="replay"),
        ],
        agreements=[agreement("model:draft", t) for t in (0.0, 1.0)],
        settings=settings,
        costs=[Cost("model:draft", k, b, 128, times(k, b), 0.002 * k, times(k, b).verify) for k in ks for b in batches],
        cost_models=[CostModel("model:draft", "verify", ["1", "tokens"], [0.01, 0.0005], 0.03)],
        uppers=[Upper("model:draft", t, b, 8, 4.0) for t in (0.0, 1.0) for b in batches],
        recommendations=[],
        trees=[TreeAdvice("model:draft", 0.0, 8, [-1, -1, 0, 0, 2], 3.1, 2.9)],
        break_even={"0": None, "1": 4},
        examples=[
            Example("add", "coding", "model:draft", 0.0, 4, [ExampleToken(t, s, 0.5, 0.25, 0.75) for t, s in pieces])
        ],
        notes=["2 prompts were skipped: longer than the context"],
        tokens_file="tokens.csv",
    )  # fmt: skip
