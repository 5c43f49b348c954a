"""Every fault point: a right output or a typed error (or the caller's own, unchanged), and nothing is left behind.

After each: models, configs, hooks and the global generator are as before, sessions are closed, what was published is
what the target would have written, a cache that was passed is untouched or right, and the next call of the same
decoder equals transformers' own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from faults import settings, snapshots
from faults.callbacks import Trap, Trapped
from faults.calls import Boom, Call, build, width_of_prompt
from faults.settings import DRAFTED, Setting
from faults.table import Point, points
from torch import Tensor

import specdec

Stats = list[specdec.SpeculationStats]


def run(call: Call, past: Any, patch: pytest.MonkeyPatch, published: dict[int, list[int]], stats: Stats) -> Tensor:
    """The call itself; traps are in force while it runs only."""
    setting = call.setting
    arguments = setting.arguments()
    processors = [*arguments.pop("logits_processor", []), *call.processors]
    own = call.extra.get("on_commit", Trap())

    def on_commit(part: specdec.Committed) -> None:
        published.setdefault(part.request, []).extend(part.tokens)
        own(None)

    given = {**arguments, "on_finish": stats.append, **call.extra, "on_commit": on_commit}
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
            out = run(call, setting.past(), patch, {}, [])
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
    stats: Stats = []
    error, out = None, None
    try:
        out = run(call, past, patch, published, stats)
    except BaseException as raised:
        error = raised

    if error is not None:
        assert isinstance(error, specdec.OptionError if call.is_refused else call.allowed), repr(error)
        if isinstance(error, Boom | torch.OutOfMemoryError | KeyboardInterrupt):
            assert str(error) in ("boom", "", "CUDA out of memory. Tried to allocate 2.00 GiB."), "unchanged"
        else:
            assert isinstance(error, specdec.SpecdecError)
        assert torch.equal(torch.get_rng_state(), rng)
    else:
        assert not call.must_raise and not call.is_refused, "nothing was raised"
        assert "on_finish" in call.extra or call.accepts(stats[0].drafted, stats[0].accepted), stats
        sound = expected if call.sound is None else call.sound()
        assert out is not None and torch.equal(out, sound)
        assert torch.equal(torch.get_rng_state(), seed_drawn(setting, rng))
    assert call.trap.fired != call.is_refused, "the fault did not happen"
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
    new = text[:, width_of_prompt(call.setting) :].tolist()
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
