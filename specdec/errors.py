"""Every error that specdec raises on purpose.

    SpecdecError
    ├── OptionError(ValueError)          an argument is wrong, unknown, or not supported yet
    │   └── UnsupportedOptionError       transformers knows it, specdec does not honour it (yet)
    ├── InputError(ValueError)           the prompt: empty, right-padded, ids out of range, too long
    ├── DraftMismatchError(ValueError)   target and draft do not share a vocabulary
    ├── UnsupportedModelError(TypeError) the model's memory or attention cannot be rolled back (yet)
    ├── DrafterError(RuntimeError)       a drafter broke its contract while decoding
    ├── NumericalError(RuntimeError)     NaN, inf or an empty distribution where p was expected
    └── RankError(RuntimeError)          another process that shares the model has failed

Each also derives from the builtin that a caller of `model.generate()` would expect, so existing
`except ValueError` clauses keep working. The first four are raised before any decoding forward.
"""

from __future__ import annotations

import torch


class SpecdecError(Exception):
    """Base of all specdec errors.

    Attributes:
        while_decoding: tokens may already have been handed out when it was raised.
    """

    while_decoding = False


class OptionError(SpecdecError, ValueError):
    """An argument is wrong or unknown."""


class UnsupportedOptionError(OptionError):
    """An option of transformers that specdec refuses instead of ignoring."""


class InputError(SpecdecError, ValueError):
    """The prompt cannot be decoded as given."""


class DraftMismatchError(SpecdecError, ValueError):
    """Target and draft do not speak the same vocabulary."""


class UnsupportedModelError(SpecdecError, TypeError):
    """The model cannot be decoded speculatively."""


class DrafterError(SpecdecError, RuntimeError):
    """A drafter proposed something that breaks its contract."""


class NumericalError(SpecdecError, RuntimeError):
    """The target's logits do not define a distribution."""


class RankError(SpecdecError, RuntimeError):
    """Another of the processes that share a sharded model has failed in this call."""


def is_out_of_memory(error: BaseException) -> bool:
    """Is it about memory, which says nothing about a model or a processor, and may pass?"""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


# What is raised before any decoding forward: the call could still be decoded otherwise.
REFUSALS = (OptionError, InputError, DraftMismatchError, UnsupportedModelError)
