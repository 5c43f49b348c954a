"""Every fault point: a right output or a typed error (or the caller's own, unchanged), and nothing is left behind.

After each: models, configs, hooks and the global generator are as before, sessions are closed, what was published is
what the target would have written, a cache that was passed is untouched or right, and the next call of the same
decoder equals transformers' own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from faults import settings, snapshots
from faults.broken import BREACHES, EITHER, ODD
from faults.callbacks import AtLength, Criterion, Processor, Streamer, Trap, Trapped
from faults.settings import DRAFTED, Setting
from faults.table import Point, points
from models import VOCAB_SIZE
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import specdec
from specdec.cache.layers import FullAttentionLayer
from specdec.cache.recurrent import RecurrentLayer
from specdec.cache.sliding import SlidingLayer


class Boom(Exception):
    """The caller's own."""


@dataclass
class Call:
    """One call with its traps.

    Args:
        target: if not the setting's own.
        allowed: errors that may come.
        must_raise: one of them must.
        sound: the output, if one comes, is transformers'; None means the setting's reference.
        patches: (class, method, trap) that are in force during the call.
        hooks: (model, trap) on the logits of a model's forwards.
        make: makes another drafter, where that is what fails.
    """

    setting: Setting
    trap: Trap
    drafter: specdec.Drafter
    extra: dict[str, Any] = field(default_factory=dict)
    processors: list[Any] = field(default_factory=list)
    target: PreTrainedModel | None = None
    allowed: tuple[type[BaseException], ...] = ()
    must_raise: bool = False
    sound: Callable[[], Tensor] | None = None
    patches: list[tuple[Any, str, Trap]] = field(default_factory=list)
    hooks: list[tuple[PreTrainedModel, Trap]] = field(default_factory=list)
    make: Callable[[], specdec.Drafter] | None = None


def raising(error: BaseException) -> Callable[..., Any]:
    def action(*_: Any) -> Any:
        raise error

    return action


def build(point: Point, at: int | None) -> Call:
    """The call with the fault; at=None leaves it out, and counts."""
    setting = Setting(point.memory, point.batch_size, point.do_sample)
    return BUILDERS[point.group](point, setting, at)


def _of_callback(callback: str, setting: Setting, trap: Trap) -> Call:
    """A call whose trap sits in a callback of the user's."""
    call = Call(setting, trap, Trapped(setting.drafter(), callback, trap))
    prompt_length = _prompt_length(setting)
    if callback == "processor":
        call.processors.append(Processor(trap, prompt_length))
    elif callback == "criterion":
        call.extra["stopping_criteria"] = [Criterion(trap)]
    elif callback == "streamer's put":
        call.extra["streamer"] = Streamer(put=trap)
    elif callback == "streamer's end":
        call.extra["streamer"] = Streamer(end=trap)
    elif callback in ("on_commit", "on_finish"):
        call.extra[callback] = trap
    return call


def _raises(point: Point, setting: Setting, at: int | None) -> Call:
    error = Boom("boom") if point.group == "raises" else KeyboardInterrupt()
    call = _of_callback(point.fault, setting, Trap(at, raising(error)))
    call.allowed, call.must_raise = (type(error),), True
    return call


def _proposes(cases: dict[str, Any], allowed: tuple[type[BaseException], ...], must_raise: bool) -> Any:
    def builder(point: Point, setting: Setting, at: int | None) -> Call:
        trap = Trap(at, lambda right, most: cases[point.fault](right, most))
        call = Call(setting, trap, Trapped(setting.drafter(), "propose", trap))
        call.allowed, call.must_raise = allowed, must_raise
        return call

    return builder


def _logits_of_processor(point: Point, setting: Setting, at: int | None) -> Call:
    """At a length, so that transformers can be asked what it makes of it."""
    name, value = point.fault.split()
    prompt_length = settings.reference(setting).shape[1] - _new_columns(setting)
    length = prompt_length + {"0": 0, "1": 1, "2": 2, "last": _new_columns(setting) - 1}[point.when]
    processor = AtLength(length, float(value), None if name == "all" else 5)
    trap = Trap(0)
    trap.fired = True  # `length` is one of the text's
    call = Call(setting, trap, Trapped(setting.drafter(), "", trap))
    if at is not None:
        call.processors.append(processor)
    raises = setting.do_sample or value == "NaN"
    # A sampled call leaves one token possible: with probability 1 it is drawn, but not among others that are infinite.
    call.allowed, call.must_raise = ((specdec.NumericalError,), True) if raises else ((), False)
    own = [*setting.arguments().get("logits_processor", []), processor]
    call.sound = lambda: settings.text(setting, logits_processor=own)
    return call


def _logits_of_model(point: Point, setting: Setting, at: int | None) -> Call:
    if point.fault == "all NaN":
        trap = Trap(at, lambda logits: logits * float("nan"))
        call = Call(setting, trap, Trapped(setting.drafter(), "", Trap()))
        call.hooks.append((setting.target, trap))
    else:
        trap = Trap(0)
        trap.fired = True
        target = settings.poisoned(setting, {"inf": "head inf", "NaN": "head nan"}[point.fault.split()[-1]])
        call = Call(setting, trap, Trapped(setting.drafter(), "", Trap()), target=target if at is not None else None)
        call.sound = lambda: settings.text(setting, target)
        if setting.memory == "given RollbackCache":  # another model's cache
            call.allowed = (specdec.OptionError,)
    call.allowed = (*call.allowed, specdec.NumericalError, specdec.UnsupportedModelError)
    return call


def _answers(point: Point, setting: Setting, at: int | None) -> Call:
    trap = Trap(at, lambda right: torch.zeros(len(right) + 1, dtype=torch.bool))
    call = _of_callback("criterion", setting, trap)
    call.allowed, call.must_raise = (specdec.OptionError,), True
    return call


def _out_of_memory(point: Point, setting: Setting, at: int | None) -> Call:
    trap = Trap(at, raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")))
    call = Call(setting, trap, Trapped(setting.drafter(), "", Trap()))
    call.allowed, call.must_raise = (torch.OutOfMemoryError,), True
    if point.fault == "in the target's forward":
        call.hooks.append((setting.target, trap))
    elif point.fault == "in the draft's forward":
        call.hooks.append((setting.draft, trap))
    elif point.fault == "as the cache grows":
        call.patches += [(FullAttentionLayer, "grow", trap), (SlidingLayer, "_regrow", trap)]
    else:
        call.patches += [(FullAttentionLayer, n, trap) for n in ("select_rows", "permute_rows")]
        call.patches.append((RecurrentLayer, "select_states", trap))
    return call


def _tokenizers(point: Point, setting: Setting, at: int | None) -> Call:
    trap = Trap(0)
    trap.fired = True
    call = Call(setting, trap, Trapped(setting.drafter(), "", trap))
    if at is not None:
        call.make = lambda: specdec.ModelDrafter(setting.draft, tokenizer=_tokenizer(0), draft_tokenizer=_tokenizer(1))
    call.allowed, call.must_raise = (specdec.DraftMismatchError,), True
    return call


@cache
def _tokenizer(shift: int) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"w{(i + shift) % VOCAB_SIZE}": i for i in range(VOCAB_SIZE)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")))


class Adversary(specdec.Drafter):
    """Proposes what a function of the text says, each round."""

    def __init__(self, make: Callable[[specdec.DecodeState, int], specdec.Proposal]) -> None:
        self._make = make

    def start(self, state: specdec.DecodeState) -> specdec.DraftSession:
        session = specdec.DraftSession()
        session.propose = lambda state, limit: self._make(state, max(limit))  # type: ignore[method-assign]
        return session


def _adversary(point: Point, setting: Setting, at: int | None) -> Call:
    trap = Trap(0)
    if at is None:
        return Call(setting, trap, Trapped(setting.drafter(), "", trap))
    random_ = random.Random(repr(point))
    right = [row[-_new_columns(setting) :].tolist() + [3] * 9 for row in settings.reference(setting)]
    eos = settings.eos(setting)

    def chains(state: specdec.DecodeState, rows: Callable[[int, list[int]], list[int]]) -> specdec.Proposal:
        done = [len(t) - p for t, p in zip(state.host_tokens, state.prompt_lengths, strict=True)]
        return specdec.Proposal.chain(
            torch.tensor([rows(r, right[r][n:]) for r, n in zip(state.host_requests, done, strict=True)])
        )

    def tree(state: specdec.DecodeState, most: int) -> specdec.Proposal:
        size = random_.randint(1, 8)
        parents = [-1] + [random_.randint(-1, n - 1) for n in range(1, size)]
        depths = [0] * size
        for node, parent in enumerate(parents):
            depths[node] = 1 if parent < 0 else depths[parent] + 1
        kept = [n for n in range(size) if depths[n] <= most]
        place = {-1: -1, **{n: i for i, n in enumerate(kept)}}
        hung = [place[parents[n]] for n in kept]
        width = max(hung.count(p) for p in hung)
        tokens = [
            [
                right[r][len(t) - p] if depths[n] == 1 and hung[i] == -1 and i == 0 else random_.randrange(2, 90)
                for i, n in enumerate(kept)
            ]
            for r, t, p in zip(state.host_requests, state.host_tokens, state.prompt_lengths, strict=True)
        ]
        shape = len(tokens), len(kept)
        deep = max(depths[n] for n in kept)
        hung_ = torch.tensor(hung).expand(shape).contiguous()
        return specdec.Proposal(torch.tensor(tokens), hung_, torch.ones(shape, dtype=torch.bool), deep, width)

    made: dict[str, Callable[[specdec.DecodeState, int], specdec.Proposal]] = {
        "always wrong": lambda s, d: chains(s, lambda _, text: [(t + 1) % VOCAB_SIZE for t in text[:d]]),
        "always right": lambda s, d: chains(s, lambda _, text: text[:d]),
        "only EOS": lambda s, d: chains(s, lambda _, text: [eos] * d),
        "random lengths": lambda s, d: (lambda n: chains(s, lambda _, t: t[:n]))(random_.randint(1, d)),
        "random trees": tree,
        "a poisoned token": lambda s, d: chains(s, lambda _, text: [settings.unused(setting)] * d),
    }
    trap.fired = True
    call = Call(setting, trap, Trapped(Adversary(made[point.fault]), "", trap))
    if point.fault == "a poisoned token":
        # Keys of a token that overflows meet a weight of zero, and zero times NaN is NaN: no right output, an error.
        call.target = settings.poisoned(setting, "embedding")
        call.allowed = (specdec.NumericalError,)
        if setting.memory == "given RollbackCache":
            call.allowed = (specdec.NumericalError, specdec.OptionError)
    return call


BUILDERS: dict[str, Callable[[Point, Setting, int | None], Call]] = {
    "raises": _raises,
    "interrupted": _raises,
    "breach": _proposes(BREACHES, (specdec.DrafterError,), True),
    "odd": _proposes(ODD, (), False),
    "either": _proposes(EITHER, (specdec.DrafterError,), False),
    "logits from a processor": _logits_of_processor,
    "logits from the model": _logits_of_model,
    "criterion": _answers,
    "out of memory": _out_of_memory,
    "tokenizers": _tokenizers,
    "adversary": _adversary,
}


def _new_columns(setting: Setting) -> int:
    return int(settings.reference(setting).shape[1]) - _prompt_length(setting)


def _prompt_length(setting: Setting) -> int:
    arguments = setting.arguments()
    return int(arguments["input_ids"].shape[1]) if setting.memory != "encoder-decoder" else 1


def run(call: Call, past: Any, patch: pytest.MonkeyPatch, published: dict[int, list[int]]) -> Tensor:
    """The call itself; traps are in force while it runs only."""
    setting = call.setting
    arguments = setting.arguments()
    processors = [*arguments.pop("logits_processor", []), *call.processors]
    own = call.extra.get("on_commit", Trap())

    def on_commit(part: specdec.Committed) -> None:
        published.setdefault(part.request, []).extend(part.tokens)
        own(None)

    given = {**arguments, **call.extra, "on_commit": on_commit}
    if processors:
        given["logits_processor"] = processors
    if past is not None:
        given["past_key_values"] = past
    handles = [
        model.get_output_embeddings().register_forward_hook(lambda _, __, out, trap=trap: trap(out))
        for model, trap in call.hooks
    ]
    try:
        with patch.context() as patched:
            patched.setattr("specdec.cache.rollback._GRANULE", 4)  # so that caches grow
            for kind, method, trap in call.patches:
                patched.setattr(kind, method, _trapped(getattr(kind, method), trap))
            return specdec.generate(
                call.target or setting.target,
                **given,
                drafter=call.drafter if call.make is None else call.make(),
                num_draft_tokens=DRAFTED,
                do_sample=setting.do_sample,
            )
    finally:
        for handle in handles:
            handle.remove()


def _trapped(method: Any, trap: Trap) -> Any:
    def run(*given: Any) -> Any:
        trap(None)
        return method(*given)

    return run


_counted: dict[tuple[str, Setting], int] = {}


def calls_without(point: Point, setting: Setting) -> int:
    """How often the trap's place is reached in a call without the fault, which must be right."""
    place = "propose" if point.group in ("breach", "odd", "either") else point.fault
    if (place, setting) not in _counted:
        call = build(point, None)
        with pytest.MonkeyPatch.context() as patch:
            out = run(call, setting.past(), patch, {})
        assert torch.equal(out, settings.reference(setting)), "the call without a fault"
        _counted[place, setting] = call.trap.count
    return _counted[place, setting]


def seed_drawn(setting: Setting, before: Tensor) -> Tensor:
    """The global generator's state after a call: as it was, or one number later where a seed was drawn."""
    if not setting.do_sample:
        return before
    generator = torch.Generator()
    generator.set_state(before)
    torch.randint(-(2**63), 2**63 - 1, (), generator=generator)
    return generator.get_state()


def check(point: Point, patch: pytest.MonkeyPatch) -> None:
    setting = Setting(point.memory, point.batch_size, point.do_sample)
    expected = settings.reference(setting)
    assert len(set(expected.flatten().tolist())) >= 6
    fixed = point.group in ("logits from a processor", "tokenizers", "adversary") or "head" in point.fault
    at = 0 if fixed else calls_without(point, setting) - 1 if point.when == "last" else int(point.when)
    call = build(point, at)
    target, past = call.target or setting.target, setting.past()
    models = [(m, snapshots.of_model(m)) for m in (target, setting.draft)]
    was = snapshots.of_cache(past) if setting.memory == "given DynamicCache" else []
    rng = torch.get_rng_state()
    published: dict[int, list[int]] = {}
    error, out = None, None
    try:
        out = run(call, past, patch, published)
    except BaseException as raised:
        error = raised

    if error is not None:
        assert isinstance(error, call.allowed), repr(error)
        if isinstance(error, Boom | torch.OutOfMemoryError | KeyboardInterrupt):
            assert str(error) in ("boom", "", "CUDA out of memory. Tried to allocate 2.00 GiB."), "unchanged"
        else:
            assert isinstance(error, specdec.SpecdecError)
        assert torch.equal(torch.get_rng_state(), rng)
    else:
        assert not call.must_raise, "nothing was raised"
        sound = expected if call.sound is None else call.sound()
        assert out is not None and torch.equal(out, sound)
        assert torch.equal(torch.get_rng_state(), seed_drawn(setting, rng))
    assert call.trap.fired, "the fault did not happen"
    for model, before in models:
        assert not snapshots.differences(before, snapshots.of_model(model))
    assert isinstance(call.drafter, Trapped)
    assert call.drafter.opened == call.drafter.closed
    check_published(point, call, published, out)
    check_next(point, call, past, was, error)


def check_published(point: Point, call: Call, published: dict[int, list[int]], out: Tensor | None) -> None:
    """What left the call is the beginning of what the target writes, also where an error came amid it."""
    text = out
    if text is None:
        text = settings.reference(call.setting) if call.sound is None else call.sound()
        if point.group == "logits from the model":
            return  # what NaN hid is not known
    new = text[:, _prompt_length(call.setting) :].tolist()
    for row, tokens in published.items():
        assert tokens == new[row][: len(tokens)]
        assert out is None or set(new[row][len(tokens) :]) <= {0}
    streamer = call.extra.get("streamer")
    if streamer is not None:
        assert streamer.ends == 1
        for column, step in enumerate(streamer.steps):
            assert step == [row[column] for row in new]


def check_next(point: Point, call: Call, past: Any, was: list[Tensor], error: BaseException | None) -> None:
    """The same decoder's next call, and the cache that this one was given."""
    setting, expected = call.setting, settings.reference(call.setting)
    call.trap.at = None
    settled: dict[str, Any] = {}
    is_whole = error is None or _after_the_end(point)
    if was and is_whole:  # of the whole text, as transformers leaves it
        assert past.get_seq_length() == call_length(call) - 1
    elif was:
        now = snapshots.of_cache(past)
        assert all(torch.equal(a, b) for a, b in zip(was, now, strict=True)), "untouched"
    if past is not None and not (was and is_whole) and (call.target is None or error is not None):
        settled["past_key_values"] = past
    decoder = specdec.SpeculativeDecoder(call.drafter, num_draft_tokens=DRAFTED)
    if point.group in ("tokenizers", "adversary"):
        decoder = specdec.SpeculativeDecoder(setting.drafter(), num_draft_tokens=DRAFTED)
    arguments = {**setting.arguments(), "do_sample": setting.do_sample}
    if point.fault == "as rows leave" and settled:
        try:
            out = decoder.generate(setting.target, **arguments, **settled)
        except specdec.OptionError:  # rows had changed places in some layers
            out = decoder.generate(setting.target, **arguments)
    else:
        out = decoder.generate(setting.target, **arguments, **settled)
    assert torch.equal(out, expected), "the next call"


def call_length(call: Call) -> int:
    """Columns of the call's output."""
    return int((settings.reference(call.setting) if call.sound is None else call.sound()).shape[1])


def _after_the_end(point: Point) -> bool:
    """The call had finished, and its cache is that of the whole text."""
    return point.fault in ("on_finish", "streamer's end")


@pytest.mark.parametrize("point", points(long=False), ids=lambda p: p.name)
def test_fault(point: Point, monkeypatch: pytest.MonkeyPatch) -> None:
    check(point, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("point", points(long=True), ids=lambda p: p.name)
def test_every_fault(point: Point, monkeypatch: pytest.MonkeyPatch) -> None:
    check(point, monkeypatch)


def test_the_table_is_as_long_as_promised() -> None:
    """Each point once, and enough of them; `python -m tests.faults.table` prints them."""
    daily, rest = points(long=False), points(long=True)
    assert len(set(daily)) == len(daily) >= 200
    assert len(set(daily) | set(rest)) == len(daily) + len(rest) >= 1000
    for axis in ("memory", "batch_size", "do_sample", "when", "group"):
        assert len({getattr(p, axis) for p in daily}) == len({getattr(p, axis) for p in [*daily, *rest]}), axis
