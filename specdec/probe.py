"""Small forwards that show how a model can be rolled back, before it is trusted with an output.

Refusing by name misses what nobody listed: positions that are counted rather than given, a mask that is
ignored, a state outside the cache. So each kind of model is asked once a process: which layout of windows gives
the logits of a plain forward, after a prompt, a rejection, and while another text is being decoded?
"""

from __future__ import annotations

import copy
import weakref

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LogitsProcessorList, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from specdec.errors import UnsupportedModelError, is_out_of_memory
from specdec.feeding import feed_ahead, window_of
from specdec.prompt import Encoded, PromptInputs
from specdec.sampling import Sampler
from specdec.state import DecodeState
from specdec.target import Layout, ModelRunner, at_nodes, kept_logits
from specdec.types import Proposal
from specdec.wrapped import uncompiled_call

_RAGGED, _EVEN = (4, 6), (6, 6)  # tokens of the two rows' prompts
_ROOM = 16  # words of the text behind them
_RIGHT = 3  # right tokens that are verified together
_TREE = (-1, -1, 1, 2)  # node 0 is a wrong guess; node 1 and its descendants are what the text says
_ENCODED = 5  # states that an encoder is said to have made
# What a model raises that cannot take a window: refusals of its own, shapes that do not fit, missing arguments.
_FAILURES = (ValueError, TypeError, RuntimeError, IndexError, AttributeError, NotImplementedError, AssertionError)
_found: dict[tuple[object, ...], Layout] = {}
_found_by_model: weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple[object, ...], Layout]] = (
    weakref.WeakKeyDictionary()
)


def probe(runner: ModelRunner) -> None:
    """Sets the runner's layout to the best under which verified logits are those of a plain forward.

    Costs a few forwards of a few tokens the first time that a model class, dtype, attention implementation and device
    type are met; for recurrent models the first time that the model is met, since how much a lost state shows depends
    on its weights.

    Raises:
        UnsupportedModelError: there is none, not even one token at a time.
    """
    known = _found_by_model.setdefault(runner.model, {}) if runner.replays else _found
    key = identity(runner)
    if key not in known:
        try:
            known[key] = choose(runner)
        except UnsupportedModelError:
            if not runner.model.training or _repeats_itself(runner):
                raise
            return  # with dropout no two forwards agree, and there is no output to be equal to
    runner.layout = known[key]


def choose(runner: ModelRunner) -> Layout:
    """The first of the runner's layouts that gives the logits of a plain forward.

    Raises:
        UnsupportedModelError: there is none, not even one token at a time.
    """
    error = floor(runner)
    if _settled(runner, agrees(error, largest_rounding(runner.dtype))):
        limit = tolerance(runner.dtype, error)
        for layout in runner.layouts:
            error = attempt(runner, layout)
            if _settled(runner, agrees(error, limit)):
                return layout
    raise UnsupportedModelError(_refusal(runner, error))


def floor(runner: ModelRunner) -> float | str:
    """The relative error of one token at a time, undisturbed: the model's own rounding."""
    return attempt(runner, Layout(level=True, padded=False, trees=False, stepwise=True), interrupted=False)


@torch.no_grad()
def attention_rounding(runner: ModelRunner) -> float:
    """Mean difference of plain logits by torch's fused attention and by its plain one, relative to their deviation."""
    one = _Text(runner, 7, is_even=True).plain
    with sdpa_kernel(SDPBackend.MATH):
        two = _Text(runner, 7, is_even=True).plain
    return float((one - two).nan_to_num(0.0, 0.0, 0.0).abs().mean() / one[one.isfinite()].std().clamp(min=1e-6))


def tolerance(dtype: torch.dtype, rounding: float | str) -> float:
    """The relative error up to which logits count as the same: a few times the model's own rounding, its `floor`.

    A bound of its own would not do: a state that is lost shows as 0.04 in one model, while another's bfloat16 rounding
    is 0.05.
    """
    eps = torch.finfo(dtype).eps
    least = eps if eps > 1e-4 else 1e-5  # rotary embeddings and routers compute in float32 whatever the dtype
    return min(largest_rounding(dtype), max(5 * rounding, least)) if isinstance(rounding, float) else least


def agrees(error: float | str | None, limit: float) -> bool:
    """Is this error mere rounding? NaN is not."""
    return isinstance(error, float) and error <= limit


def _settled(runner: ModelRunner, answer: bool) -> bool:
    """Rank 0's answer where several share the model: errors that are rounding may differ."""
    return answer if runner.ranks is None else runner.ranks.settle([answer])[0]


def largest_rounding(dtype: torch.dtype) -> float:
    """More than this is no rounding in any model."""
    return 0.2 if dtype in (torch.bfloat16, torch.float16) else 0.02


def _repeats_itself(runner: ModelRunner) -> bool:
    """Two plain forwards give the same logits, up to rounding."""
    with torch.no_grad(), torch.random.fork_rng():
        one, two = (_Text(runner, 7, is_even=True).plain for _ in range(2))
    return torch.allclose(one, two, rtol=largest_rounding(runner.dtype), atol=largest_rounding(runner.dtype))


def identity(runner: ModelRunner) -> tuple[object, ...]:
    """What decides a model's layout."""
    config = runner.model.config.get_text_config(decoder=True)
    implementation, is_sharded = config._attn_implementation, runner.ranks is not None
    # A sharded model is asked on all ranks or on none: what one of them knows of a whole model does not count.
    known = (type(runner.model), runner.dtype, implementation, runner.device.type, is_sharded)
    return (*known, runner.kinds, runner.layouts)


def _refusal(runner: ModelRunner, error: float | str) -> str:
    """Why a model cannot be decoded."""
    name = type(runner.model).__name__
    if agrees(floor(runner), largest_rounding(runner.dtype)):
        return (
            f"{name} keeps a state outside its cache: two texts decoded in turn disturb each other, and nothing can be "
            "rolled back. Use model.generate() for it."
        )
    how = f"relative error {error:.2g}" if isinstance(error, float) else error
    return (
        f"{name} gives other logits through a cache than in a plain forward, even one token at a time ({how}): it "
        "cannot be rolled back. Use model.generate() for it."
    )


def attempt(
    runner: ModelRunner, layout: Layout, *, interrupted: bool = True, is_even: bool = False, in_step: bool = False
) -> float | str:
    """The relative error of a layout, or what the model raised.

    Args:
        interrupted: between this text's forwards another text is fed, to another cache.
        is_even: rows of one length, that accept equally many tokens.
        in_step: rows that hold equally many tokens in each forward, as recurrent ones must.
    """
    runner = copy.copy(runner)  # a drafter's is shared between threads
    runner.layout, runner.replays = layout, runner.replays or in_step
    try:
        return relative_error(runner, interrupted, is_even)
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise  # else the process would go without drafts, or the model be refused, for want of memory once
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]


@torch.no_grad()
def relative_error(runner: ModelRunner, interrupted: bool = True, is_even: bool = False) -> float:
    """Mean error of logits under the runner's layout, relative to their deviation; infinite if some overflow."""
    is_even = is_even or not runner.layout.padded
    text, other = _Text(runner, 7, is_even), _Text(runner, 11, is_even)
    for _ in range(2):
        text.feed()
        text.go_on([1, 1])
        if interrupted:
            other.feed()
            other.go_on([1, 1])
        if not runner.layout.stepwise:
            text.verify([2, 2] if is_even or runner.layout.level else [2, 1])
    text.feed()
    return text.error()


class _Text:
    """Two rows that begin one text, fed through a cache as the loop would, and compared with one forward over it."""

    def __init__(self, runner: ModelRunner, step: int, is_even: bool) -> None:
        prompts = _EVEN if is_even else _RAGGED
        self.runner, device, longest = runner, runner.device, max(prompts)
        self.words = (torch.arange(longest + _ROOM, device=device) * step + 3) % runner.vocab_size
        ids = torch.stack([torch.nn.functional.pad(self.words[:n], (longest - n, 0)) for n in prompts])
        mask = torch.arange(longest, device=device) >= longest - torch.tensor(prompts, device=device)[:, None]
        sampler = Sampler(LogitsProcessorList(), False, len(prompts))
        self.state = DecodeState(ids, ids, mask, longest + _ROOM, runner.vocab_size, sampler, None)
        self.cache = runner.new_cache(len(prompts), longest)
        self.seen = [0] * len(prompts)
        self.prompt = _encoded(runner)
        self.compared: list[tuple[Tensor, Tensor]] = []  # through the cache, plain
        self.plain = self._plain()  # [T, V]

    def feed(self) -> None:
        """Feeds all committed tokens; compares what comes after each row's last."""
        runner, state, cache = self.runner, self.state, self.cache
        self.seen = feed_ahead(runner, cache, state, self.seen, lambda w: runner.forward(w, cache, 1, self.prompt))
        pending = self._forward(Proposal.empty(state.batch_size, state.device), path=[])
        self._commit(pending)

    def verify(self, accepted: list[int]) -> None:
        """Verifies what the text says together with a wrong guess; each row accepts a part of it."""
        state, layout = self.state, self.runner.layout
        right = torch.stack([self.words[n : n + _RIGHT] for n in state.host_lengths])
        wrong = (right[:, :1] + 1) % self.runner.vocab_size
        first = int(layout.trees)  # the wrong guess stands before or behind the right ones
        if layout.trees:
            tokens = torch.cat([wrong, right], dim=1)
            parents = torch.tensor(_TREE, device=state.device).expand(len(tokens), -1)
            proposal = Proposal(tokens, parents, torch.ones_like(tokens, dtype=torch.bool), depth=_RIGHT, width=2)
        else:
            proposal = Proposal.chain(torch.cat([right, wrong], dim=1))
        pending = self._forward(proposal, path=[first + i for i in range(_RIGHT)])
        keep = None
        if layout.trees:
            rows = [[0, *(first + i + 1 if i < a else -1 for i in range(_RIGHT))] for a in accepted]
            keep = torch.tensor(rows, device=state.device)
        self._commit([p + a for p, a in zip(pending, accepted, strict=True)], keep)
        self.go_on([a + 1 for a in accepted])

    def go_on(self, num_new: list[int]) -> None:
        """The text's next words are committed."""
        device = self.state.device
        new = [self.words[n : n + k].tolist() for n, k in zip(self.state.host_lengths, num_new, strict=True)]
        table = torch.tensor([row + [0] * (max(num_new) - len(row)) for row in new], device=device)
        self.state.extend(table, torch.tensor(num_new, device=device), new)

    def error(self) -> float:
        """Mean over all that was compared."""
        cached, plain = (torch.stack(logits) for logits in zip(*self.compared, strict=True))
        finite = plain.isfinite()  # a logit that overflows (remove_invalid_values exists for it) tells nothing
        if not finite.any() or not torch.equal(cached.isfinite(), finite):
            return float("inf")
        scale = self.plain[self.plain.isfinite()].std().clamp(min=1e-6)
        return float((cached - plain)[finite].abs().mean() / scale)

    def _forward(self, proposal: Proposal, path: list[int]) -> list[int]:
        """One window; compares each row's root and the nodes of a path from it. Returns the pending tokens."""
        ends = self.state.host_ends(self.runner.layout.level)
        pending = [n - s for n, s in zip(ends, self.seen, strict=True)]
        window = window_of(self.runner, self.cache, self.state, self.seen, proposal)
        roots = [p - 1 for p in pending]
        keep = kept_logits(roots, window.tokens.shape[1], proposal.num_nodes)
        output = self.runner.forward(window, self.cache, keep, self.prompt)
        logits = _precise(at_nodes(output.logits, keep, roots, proposal.num_nodes))
        for row, length in enumerate(self.state.host_lengths):
            for depth, node in enumerate([-1, *path]):
                self.compared.append((logits[row, node + 1], self.plain[length - 1 + depth]))
        return pending

    def _commit(self, kept: list[int], keep: Tensor | None = None) -> None:
        self.cache.commit(torch.tensor(kept, device=self.state.device), keep)
        self.seen = [s + k for s, k in zip(self.seen, self.cache.retained(kept), strict=True)]

    def _plain(self) -> Tensor:
        """[T, V] logits of one forward over the text."""
        inputs: dict[str, object] = {f"{self.runner.prefix}input_ids": self.words[None]}
        if self.prompt is not None and self.prompt.encoded is not None:
            inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=self.prompt.encoded.hidden[:1])
        logits: Tensor = uncompiled_call(self.runner.model)(**inputs, use_cache=False, return_dict=True).logits
        return _precise(logits[0]).to(self.runner.device)  # a model spread over devices may end on another one


def _precise(logits: Tensor) -> Tensor:
    """At least float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _encoded(runner: ModelRunner) -> PromptInputs | None:
    """What an encoder might have made: the same for both rows."""
    if not runner.is_encoder_decoder:
        return None
    config = runner.model.config
    width = getattr(config, "d_model", None) or config.hidden_size
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, _ENCODED, width, generator=random).to(runner.device, runner.dtype)
    return PromptInputs(
        torch.ones(2, dtype=torch.int64, device=runner.device), encoded=Encoded(hidden.expand(2, -1, -1))
    )
