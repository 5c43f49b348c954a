"""transformers' static cache with torch.compile: the fastest `target.generate()` that needs nothing but transformers.

With `cache_implementation="static"` transformers compiles the decoding step by itself on an accelerator. On a CPU it
does not, unless `CompileConfig` carries the flag `_compile_all_devices`, which is undocumented; otherwise
`compile_config=` is ignored with a warning. The flag is set here, so that the baseline is the best that there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import CompileConfig, PreTrainedModel


def static_generate(model: PreTrainedModel, longest: int) -> Callable[..., Any]:
    """`model.generate` with a static cache of `longest` slots and a compiled decoding step.

    Args:
        model: a copy that nothing else uses: what transformers compiles stays on it.
        longest: slots of every call's cache, so that one graph serves prompts of all lengths.
    """
    if model.device.type == "cuda":
        compiling = CompileConfig()  # transformers' own choice for GPUs: CUDA graphs
    else:
        compiling = CompileConfig(mode="default")
        compiling._compile_all_devices = True  # type: ignore[assignment]
    own: Any = model.generate

    def generate(**kwargs: Any) -> Any:
        return own(cache_implementation="static", compile_config=compiling, max_cache_len=longest, **kwargs)

    return generate


def reason_against(generate: Callable[..., Any], batch: dict[str, torch.Tensor], **kwargs: Any) -> str | None:
    """Compiles by two short calls; what went wrong in a few words, or None.

    The second call has another cache than the first: what a fresh cache costs in compiling is paid here, and not where
    time is taken.
    """
    try:
        for _ in range(2):
            generate(**batch, max_new_tokens=4, do_sample=False, **kwargs)
    # torch.compile fails in many ways: no compiler, operations that it does not know, a model that it cannot trace.
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return None
