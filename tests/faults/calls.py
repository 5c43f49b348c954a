"""A fault point as a call: its traps, and what may come of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from faults import settings
from faults.broken import BREACHES, EITHER, ODD
from faults.callbacks import AtLength, Criterion, Processor, Streamer, Trap, Trapped, Witness
from faults.settings import Setting
from faults.table import Point
from models import VOCAB_SIZE
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import specdec
from specdec.cache.layers import FullAttentionLayer
from specdec.cache.recurrent import RecurrentLayer
from specdec.cache.sliding import SlidingLayer
from specdec.probe import probe
from specdec.target import ModelRunner


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
        is_refused: an OptionError must come before the fault can: the cache given is another model's.
        accepts: what the counted drafts of a call that ends must be: (drafted, accepted) -> bool.
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
    is_refused: bool = False
    accepts: Callable[[int, int], bool] = lambda drafted, accepted: True


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
    prompt_length = width_of_prompt(setting)
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
    probe(ModelRunner(setting.target))  # now, so that the forwards to count are the call's own
    forwards = Trap()
    # What is asked before any forward, to see whether a processor is a pure function, is not the fault yet.
    trap = Witness(lambda _: forwards.count > 0)
    call = Call(setting, trap, Trapped(setting.drafter(), "", trap))
    call.hooks.append((setting.target, forwards))
    token = None if name == "all" else 5
    if at is not None:
        call.processors.append(AtLength(length, float(value), token, trap))
    raises = setting.do_sample or value == "NaN"
    # A sampled call leaves one token possible: with probability 1 it is drawn, but not among others that are infinite.
    # Where a draft comes upon it before the target does, it is the draft's q that is no distribution.
    errors = (specdec.NumericalError, specdec.DrafterError)
    call.allowed, call.must_raise = (errors[: 1 + setting.do_sample], True) if raises else ((), False)
    own = [*setting.arguments().get("logits_processor", []), AtLength(length, float(value), token)]
    call.sound = lambda: settings.text(setting, logits_processor=own)
    return call


def _logits_of_model(point: Point, setting: Setting, at: int | None) -> Call:
    if point.fault == "all NaN":
        trap = Trap(at, lambda logits: logits * float("nan"))
        call = Call(setting, trap, Trapped(setting.drafter(), "", Trap()))
        call.hooks.append((setting.target, trap))
    else:
        trap = Witness(lambda logits: not bool(logits.float().isfinite().all()))
        target = settings.poisoned(setting, {"inf": "head inf", "NaN": "head nan"}[point.fault.split()[-1]])
        call = Call(setting, trap, Trapped(setting.drafter(), "", Trap()), target=target if at is not None else None)
        call.hooks.append((target, trap))
        call.sound = lambda: settings.text(setting, target)
        if setting.memory == "given RollbackCache":
            call.is_refused = True
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
    call = Call(setting, trap, Trapped(setting.drafter(), "", trap))

    def make() -> specdec.Drafter:
        trap(None)
        return specdec.ModelDrafter(setting.draft, tokenizer=_tokenizer(0), draft_tokenizer=_tokenizer(1))

    if at is not None:
        call.make = make
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
    trap = Trap(0)  # the first proposal that has tokens
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
    call = Call(setting, trap, Trapped(Adversary(made[point.fault]), "propose", trap))
    if point.fault in ("always right", "random trees"):  # whose eldest node is right
        call.accepts = lambda drafted, accepted: 0 < accepted <= drafted
    elif point.fault in ("always wrong", "a poisoned token"):
        call.accepts = lambda drafted, accepted: accepted == 0 < drafted
    if point.fault == "a poisoned token":
        # Keys of a token that overflows meet a weight of zero, and zero times NaN is NaN: no right output, an error.
        call.target = settings.poisoned(setting, "embedding")
        call.allowed = (specdec.NumericalError,)
        if setting.memory == "given RollbackCache":
            call.is_refused = True
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
    return int(settings.reference(setting).shape[1]) - width_of_prompt(setting)


def width_of_prompt(setting: Setting) -> int:
    arguments = setting.arguments()
    return int(arguments["input_ids"].shape[1]) if setting.memory != "encoder-decoder" else 1
