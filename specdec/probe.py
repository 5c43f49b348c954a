"""Three small forwards that show whether a model can be rolled back, before it is trusted with an output.

Refusing by name misses what nobody listed: positions that are counted rather than given, a mask that is
ignored, a state outside the cache. So each kind of model is asked once a process: do a ragged prefill and a
tree of drafts give the logits of a plain forward? (A hidden window longer than the probe is not seen by it.)
"""

from __future__ import annotations

import torch

from specdec.errors import UnsupportedModelError
from specdec.target import ModelRunner
from specdec.types import Proposal
from specdec.window import build_window
from specdec.wrapped import uncompiled_call

_PREFILLED = (4, 6)  # committed tokens of the two rows
_PARENTS = (-1, -1, 1)  # node 0 is a wrong guess; node 1 and its child are what the text says
_passed: set[tuple[object, ...]] = set()


def probe(runner: ModelRunner) -> None:
    """Raises UnsupportedModelError unless verification windows reproduce a plain forward.

    Costs three forwards of a few tokens the first time that a model class, dtype, attention implementation
    and device type are met. Models in training mode (dropout) are not probed.
    """
    config = runner.model.config.get_text_config(decoder=True)
    key = (type(runner.model), runner.dtype, config._attn_implementation, runner.device.type)
    if key in _passed or runner.model.training:
        return
    error = relative_error(runner)
    limit = 0.2 if runner.dtype in (torch.bfloat16, torch.float16) else 0.02
    if not error <= limit:  # NaN is no pass
        raise UnsupportedModelError(
            f"{type(runner.model).__name__} gives other logits when drafts are verified through a cache than in a "
            f"plain forward (relative error {error:.2g}): it cannot be rolled back. Use model.generate() for it."
        )
    _passed.add(key)


@torch.no_grad()
def relative_error(runner: ModelRunner) -> float:
    """Mean error of verified logits, relative to the logits' standard deviation; infinite if they overflow elsewhere.

    Attention that takes no mask is asked about what it will serve: one row, and a chain.
    """
    prefilled = _PREFILLED if runner.takes_masks else _PREFILLED[-1:]
    end = max(prefilled) + 2
    device = runner.device
    text = (torch.arange(end + 1, device=device) * 7 + 3) % runner.vocab_size
    batch_size = len(prefilled)
    lengths = torch.tensor(prefilled, device=device)
    committed = text[:end].repeat(batch_size, 1)

    cache = runner.new_cache(batch_size, capacity=end + len(_PARENTS))
    nothing = Proposal.empty(batch_size, device)
    shape = runner.plan([0] * batch_size, prefilled, nothing)
    runner.forward(build_window(committed, lengths, cache.lengths, nothing, shape), cache, keep=1)
    cache.commit(lengths - 1)

    right = torch.stack([text[n : n + 2] for n in prefilled])  # what the text says
    wrong = torch.stack([text[n + 2 : n + 3] for n in prefilled])
    proposal = (
        Proposal.chain(right)
        if not runner.takes_masks
        else Proposal(
            tokens=torch.cat([wrong, right], dim=1),
            parents=torch.tensor(_PARENTS, device=device).expand(batch_size, -1),
            valid=torch.ones(batch_size, len(_PARENTS), dtype=torch.bool, device=device),
            depth=2,
            width=2,
        )
    )
    shape = runner.plan([n - 1 for n in prefilled], prefilled, proposal)
    window = build_window(committed, lengths, cache.lengths, proposal, shape)
    logits = runner.forward(window, cache, keep=shape.width).logits.float()

    positions = torch.arange(end, device=device)[None]
    forward = uncompiled_call(runner.model)
    plain = forward(input_ids=text[None, :end], position_ids=positions, use_cache=False).logits[0].float()
    slots = (0, shape.width - 2, shape.width - 1)  # the pending token and the two right ones
    differences = [
        logits[row, slot] - plain[n - 1 + depth] for row, n in enumerate(prefilled) for depth, slot in enumerate(slots)
    ]
    both = torch.stack(differences)
    finite = both.isfinite()  # a logit that overflows (remove_invalid_values exists for it) tells nothing if both do
    expected = torch.stack([plain[n - 1 + depth] for n in prefilled for depth in range(len(slots))]).isfinite()
    if not torch.equal(finite, expected) or not finite.any():
        return float("inf")
    return float(both[finite].abs().mean() / plain[plain.isfinite()].std().clamp(min=1e-6))
