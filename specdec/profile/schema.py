"""What `profile.json` holds. docs/profiler.md documents the format; `VERSION` grows with each change to it.

Rates are shares from 0 to 1, times are seconds unless a name says otherwise, entropies and divergences are in nats.
A *setting* is a draft, a temperature, a batch size and a number of draft tokens. Intervals hold 95 % of a bootstrap
over prompts: tokens of one prompt are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

VERSION = 1
PLAIN = "plain"  # the name of decoding without a draft


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and where 95 % of its bootstrap lies; all three are equal where there is nothing to resample."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Band:
    """Tokens whose entropy (nats) or context (tokens) is at least `low` and below `high`; None is no bound."""

    low: float
    high: float | None
    tokens: int
    value: Interval


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured, and with what."""

    device: str  # as people call it: the processor's or the GPU's name
    threads: int
    processes: int
    dtype: str
    compile: str  # "no" or "yes"
    specdec: str
    torch: str
    transformers: str


@dataclass(frozen=True, slots=True)
class Subject:
    """The target, and what it wrote.

    Attributes:
        target: as it was given: a path or hub id; "bundled".
        prompts: the file, or "bundled".
        used: prompts that were measured.
        skipped: reason -> prompts that were not.
        domains: domain -> prompts.
        new_tokens: tokens a prompt at most.
    """

    target: str
    parameters: int
    tokenizer: str
    prompts: str
    used: int
    skipped: dict[str, int]
    domains: dict[str, int]
    new_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Draft:
    """One way to draft.

    Attributes:
        name: what the rest of the profile calls it.
        kind: "model", "tree", "ngram", "suffix", "early-exit", "lookahead" or "cross-tokenizer".
        path: of the draft model or the index; None where there is none.
        exit_layer: of an early exit.
        predicts: how rounds are predicted: "chain" (from alpha), "replay" (proposals on the target's text) or
            "nothing" (measured only).
    """

    name: str
    kind: str
    path: str | None = None
    parameters: int = 0
    exit_layer: int | None = None
    predicts: str = "nothing"


@dataclass(frozen=True, slots=True)
class Agreement:
    """Target and draft on the target's own text, token by token, without running the loop.

    Attributes:
        alpha: sum of min(p, q) = 1 - TVD(p, q): the chance that a drafted token is accepted here.
        greedy: share of tokens where the arg-maxes agree.
        kl: KL(p || q).
        ranks: [r] share of tokens where the text's token is the draft's r-th likeliest; what is missing to 1 is lower.
    """

    draft: str
    temperature: float
    tokens: int
    alpha: Interval
    greedy: Interval
    kl: Interval
    target_entropy: Interval
    draft_entropy: Interval
    ranks: list[float]
    by_domain: dict[str, Interval]
    by_entropy: list[Band]
    by_context: list[Band]


@dataclass(frozen=True, slots=True)
class Position:
    """What became of the i-th drafted token of a round; a row's round counts where it drafted so many.

    Attributes:
        marginal: accepted / drafted.
        conditional: accepted, where the token before it was.
    """

    drafted: int
    accepted: int
    marginal: Interval
    conditional: Interval


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a round of the whole batch, host time; medians of the runs.

    Attributes:
        spread: of `total`: the interquartile range as a part of the median.
        prefill: of a call, per token of its prompt and row.
    """

    draft: float
    verify: float
    other: float
    total: float
    spread: float
    prefill: float


@dataclass(frozen=True, slots=True)
class Predicted:
    """From acceptance on the text and costs, measured apart.

    Attributes:
        rounds: expected rounds a prompt.
        acceptance_length: expected tokens a round, row and round counted once.
        round_seconds: the cost model's.
        speedup: over plain decoding of the same engine, prefill included.
    """

    rounds: Interval
    acceptance_length: float
    round_seconds: float
    speedup: float


@dataclass(frozen=True, slots=True)
class Measured:
    """The loop itself.

    Attributes:
        rounds: a prompt.
        speedup: over plain decoding of the same engine, prompts paired, prefill included.
        ceiling: acceptance length x T(1) / T(verify): what no loop can exceed.
        impossible: the speed-up's whole interval lies above the ceiling: the plain side was slowed by something.
        martingale: accepted first tokens minus alpha at their context, a round start: 0 within its interval if
            acceptance is what theory says. None where alpha is not known.
    """

    tokens: int
    rounds: Interval
    acceptance_rate: float
    acceptance_length: Interval
    positions: list[Position]
    by_domain: dict[str, Interval]  # acceptance length
    by_context: list[Band]  # acceptance of a drafted token that was looked at
    by_entropy: list[Band]
    tokens_per_second: float
    speedup: Interval
    times: Times
    peak_bytes: int | None
    joules_per_token: float | None
    ceiling: float
    impossible: bool
    martingale: Interval | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting with what is predicted and what was measured of it; plain decoding has num_draft_tokens 0.

    Attributes:
        predicted: over the prompts that the loop was run on, so that it can be held against `measured`.
        overall: the same prediction over all prompts.
    """

    draft: str
    temperature: float
    batch: int
    num_draft_tokens: int
    predicted: Predicted | None = None
    measured: Measured | None = None
    overall: Predicted | None = None

    @property
    def is_plain(self) -> bool:
        return self.draft == PLAIN

    @property
    def speedup(self) -> float:
        """Measured where it was, else predicted."""
        if self.measured is not None:
            return self.measured.speedup.value
        return self.predicted.speedup if self.predicted is not None else 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """A round's parts by the size of its window, measured and by the model.

    Attributes:
        context: tokens of a row in front of the window.
        sampled: at a temperature above 0.
        fitted_draft, fitted_verify: the cost model's.
    """

    draft: str
    num_draft_tokens: int
    batch: int
    context: int
    times: Times
    fitted_draft: float
    fitted_verify: float
    sampled: bool = False


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds = sum of coefficient x feature, one fit a draft and part; `residual` is the median relative error.

    Attributes:
        part: of a round: "draft", "verify"; of a call: "other", "prefill".
    """

    draft: str
    part: str
    features: list[str]
    coefficients: list[float]
    residual: float
    sampled: bool = False


@dataclass(frozen=True, slots=True)
class Upper:
    """What a free draft with this acceptance would reach: the pair's bound over all num_draft_tokens."""

    draft: str
    temperature: float
    batch: int
    num_draft_tokens: int
    speedup: float


@dataclass(frozen=True, slots=True)
class Money:
    """Cost of a million new tokens, at a price an hour."""

    price_per_hour: float
    plain: float
    recommended: float


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to run at one batch size and temperature, and why.

    Attributes:
        draft: "plain" where nothing pays.
        is_measured: its speed-up was measured, not predicted only.
        reasons: sentences for people.
    """

    temperature: float
    batch: int
    draft: str
    num_draft_tokens: int
    speedup: float
    is_measured: bool
    reasons: list[str]
    money: Money | None = None


@dataclass(frozen=True, slots=True)
class TreeAdvice:
    """The best static tree of at most `num_nodes` nodes for the measured ranks.

    Attributes:
        parents: of each node, -1 = child of the root.
        acceptance_length: expected, if ranks at one depth say nothing of the next.
    """

    draft: str
    temperature: float
    num_nodes: int
    parents: list[int]
    acceptance_length: float
    chain_length: float  # that of the best chain of the same draft tokens


@dataclass(frozen=True, slots=True)
class ExampleToken:
    """A piece of an example text.

    Attributes:
        source: "accepted", "recovered", "bonus" or "plain".
        p, q: the target's and the draft's probability of it; None where not known.
        alpha: chance that a drafted token is accepted here.
    """

    text: str
    source: str
    p: float | None = None
    q: float | None = None
    alpha: float | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A text that the loop wrote."""

    prompt: str
    domain: str
    draft: str
    temperature: float
    num_draft_tokens: int
    tokens: list[ExampleToken]


@dataclass(frozen=True, slots=True)
class Profile:
    """All of it.

    Attributes:
        complete: False if it was interrupted; what is there is right.
        notes: what a reader must know: skips, flags, bad baselines.
    """

    version: int
    created: str  # ISO 8601, UTC
    complete: bool
    machine: Machine
    subject: Subject
    drafts: list[Draft]
    agreements: list[Agreement]
    settings: list[Setting]
    costs: list[Cost]
    cost_models: list[CostModel]
    uppers: list[Upper]
    recommendations: list[Recommendation]
    trees: list[TreeAdvice]
    break_even: dict[str, int | None]  # temperature -> smallest measured or predicted batch where nothing pays
    examples: list[Example]
    notes: list[str] = field(default_factory=list)
    tokens_file: str | None = None  # per-token measures beside the profile
