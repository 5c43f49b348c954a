"""A record as the axes' benchmarks leave it, with figures that are made up."""

from __future__ import annotations

import itertools
from typing import Any

KS = (1, 2, 3, 4, 6, 8)
PEERS = ("plain", "static cache, torch.compile", "assisted k=4", "eager plain", "compiled plain")
SPEED = {"model": 1.6, "n-gram": 1.9, "tree dynamic": 1.4, "suffix": 2.0}


def data(dtypes: tuple[str, ...] = ("bfloat16",)) -> dict[str, Any]:
    """pytest-benchmark's JSON, as far as the report reads it."""
    infos = [info for dtype in dtypes for info in _points(dtype)]
    return {
        "machine_info": {"cpu": {"brand_raw": "A Made-up CPU"}},
        "benchmarks": [{"name": f"{i}", "extra_info": info} for i, info in enumerate(infos)],
    }


def _points(dtype: str) -> list[dict[str, Any]]:
    return [
        _info(dtype, "k", [(s, k) for s in ("model", "n-gram") for k in KS]),
        *(_info(dtype, "batch", _few(), batch=b) for b in (1, 2, 4, 8)),
        *(_info(dtype, "context", _few(), context=c) for c in (128, 960)),
        _info(dtype, "sampling", _few(), temperature=0.8),
        _info(dtype, "strategy", [(s, k) for s in SPEED for k in (4, None)]),
    ]


def _few() -> list[tuple[str, int | None]]:
    return [("model", 4), ("model", None), ("n-gram", None)]


def _info(
    dtype: str,
    axis: str,
    strategies: list[tuple[str, int | None]],
    batch: int = 1,
    context: int = 100,
    temperature: float = 0.0,
) -> dict[str, Any]:
    ours = {
        f"{engine} {s} {'auto' if k is None else f'k={k}'}": {"engine": engine, "strategy": s, "draft_tokens": k}
        for engine, (s, k) in itertools.product(("eager", "compiled"), strategies)
    }
    speed = {"plain": 1.0, "static cache, torch.compile": 1.7, "assisted k=4": 1.2}
    speed |= {"eager plain": 1.05, "compiled plain": 4.0}
    for name, own in ours.items():
        k = own["draft_tokens"] or 3
        gain = 1 + (SPEED[own["strategy"]] - 1) * (1 - abs(k - 3) / 8) / batch**0.3
        speed[name] = gain * speed[f"{own['engine']} plain"]
    missing = {"assisted k=4": "transformers: one prompt at a time only"} if batch > 1 else {}
    sides = {side: _summary(side in ours) for side in speed if side not in missing}
    return {
        "kind": "axis",
        "axis": axis,
        "dtype": dtype,
        "batch": batch,
        "context": context,
        "temperature": temperature,
        "threads": 2,
        "cpus": 2,
        "torch": "2",
        "transformers": "5",
        "prompts": 4,
        "new_tokens": 64,
        "rounds": 3,
        "models": "bundled pair",
        "device": "cpu",
        "prompt_files": [],
        "missing": missing,
        "ours": ours,
        "sides": sides,
        "kinds": _kinds(sides) if axis == "strategy" else {},
        "ratios": [_ratio(s, "plain", speed[s]) for s in sides if s != "plain"]
        + [_ratio(s, f"{o['engine']} plain", speed[s] / speed[f"{o['engine']} plain"]) for s, o in ours.items()]
        + [_ratio(s, "static cache, torch.compile", speed[s] / 1.7) for s in ours],
        "bounds": [_bound(s, o, speed) for s, o in ours.items()],
        "round_ms": {"eager": {"0": 15.0, "4": 19.0}, "compiled": {"0": 4.0, "4": 6.5}},
    }


def _summary(is_ours: bool) -> dict[str, Any]:
    own = {"tokens_per_second": 60.0, "tokens": 256, "target_forwards": 100}
    return own | ({"acceptance_rate": 0.6, "acceptance_length": 3.4} if is_ours else {})


def _kinds(sides: dict[str, Any]) -> dict[str, Any]:
    return {
        kind: {s: _ratio(s, "", 1.5) | {"acceptance_length": 2.5, "items": 2} for s in sides if s != "plain"}
        for kind in ("code", "math")
    }


def _ratio(side: str, over: str, value: float) -> dict[str, Any]:
    return {"side": side, "over": over, "ratio": value, "low": 0.95 * value, "high": 1.08 * value}


def _bound(side: str, own: dict[str, Any], speed: dict[str, float]) -> dict[str, Any]:
    plain = f"{own['engine']} plain"
    value = speed[side] / speed[plain]
    spread = {"median": value, "low": 0.95 * value, "high": 1.08 * value}
    limit = {"median": 2.5, "low": 2.4, "high": 2.6}
    bound = {"side": side, "over": plain, "ratio": spread, "bound": limit, "rounds": 3, "impossible": False}
    return bound | {"acceptance_length": 3.4, "draft_tokens": 4.0}
