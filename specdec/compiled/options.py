"""How inductor compiles a step; a part of the packages' key."""

from __future__ import annotations

from typing import Any

# docs/performance.md has what each of these gave.
OPTIONS: dict[str, Any] = {
    "freezing": True,  # weights become constants, laid out as the products read them
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
    "realize_opcount_threshold": 8,
    # Without a rival of torch's own, inductor's products need no trial runs: a third of the time to build.
    "test_configs.autotune_choice_name_regex": r"^(?!(mm|addmm|_linear_pointwise.*)$)",
}
WITH_RIVALS = {**OPTIONS, "test_configs.autotune_choice_name_regex": None}  # where a product has no other choice
