"""What each of two processes does in test_sharded.py: `torchrun --nproc-per-node 2 sharded_worker.py DIR CHECK...`.

DIR holds a checkpoint for each model; every check's outcome goes to DIR/rank.json. Both ranks decode the same prompts,
and compare with the sharded target's own generate().
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import torch
from models import prompts, tiny
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import specdec
import specdec.loop

RANK = int(os.environ["RANK"])
NEW = 20
DIR = pathlib.Path(sys.argv[1])
Check = Callable[[], dict[str, Any]]


def sharded(name: str) -> PreTrainedModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions have DistributedConfig(tp_plan="auto")
        return whole(name, tp_plan="auto")


def whole(name: str, **how: Any) -> PreTrainedModel:
    # transformers' grouped product of a shard's experts knows no float64
    how["experts_implementation"] = "eager" if name.startswith(("mixtral", "qwen3_moe")) else None
    return AutoModelForCausalLM.from_pretrained(DIR / name, dtype=torch.float64, **how).eval()


def said(expected: Tensor, out: Any, **more: Any) -> dict[str, Any]:
    """What a check reports of a greedy call."""
    stats = out.speculation
    counts = {"accepted": stats.accepted, "drafted": stats.drafted, "draft_calls": stats.draft_calls}
    return {"equal": torch.equal(out.sequences, expected), "tokens": out.sequences.tolist(), **counts, **more}


def decoded(target: PreTrainedModel, drafter: Any, num: int | str = 4, rows: int = 3, **options: Any) -> Any:
    options = {"max_new_tokens": NEW, "return_dict_in_generate": True, **options}
    return specdec.generate(target, **prompts(rows), drafter=drafter, num_draft_tokens=num, **options)


def plain(target: PreTrainedModel, rows: int = 3) -> Tensor:
    return target.generate(**prompts(rows), max_new_tokens=NEW)


def drafters(target: PreTrainedModel, draft: PreTrainedModel) -> dict[str, Any]:
    return {
        "none": None,
        "chain": draft,
        "confident chain": specdec.ModelDrafter(draft, min_confidence=0.1),
        "tree": specdec.TreeDrafter(draft, num_nodes=8),
        "n-grams": specdec.NgramDrafter(),
        "suffixes": specdec.SuffixDrafter(),
        "lookahead": specdec.LookaheadDrafter(),
        "early exit": specdec.EarlyExitDrafter(),
        "layer skip": specdec.LayerSkipDrafter([1]),
        "mix": specdec.MixedDrafter([specdec.NgramDrafter(), specdec.ModelDrafter(draft)]),
        "mix with own layers": specdec.MixedDrafter([specdec.NgramDrafter(), specdec.EarlyExitDrafter(1)]),
    }


def strategy(family: str, name: str, num: int | str, rows: int) -> Check:
    """Greedy: equal to the target's own. Sampled: both ranks the same text, though each has a seed of its own."""

    def check() -> dict[str, Any]:
        target = sharded(family)
        drafter = drafters(target, whole(f"{family}-draft"))[name]
        greedy = said(plain(target, rows), decoded(target, drafter, num, rows))
        torch.manual_seed(100 + RANK)
        for rule in ("rejection", "block"):
            out = decoded(target, drafter, num, rows, do_sample=True, top_k=30, rule=rule)
            greedy[rule] = out.sequences.tolist()
        return greedy

    return check


def sharded_draft() -> dict[str, Any]:
    target, draft = sharded("llama"), sharded("llama-draft")
    out = {}
    for name, drafter in {"chain": draft, "tree": specdec.TreeDrafter(draft, num_nodes=8)}.items():
        torch.manual_seed(100 + RANK)
        sampled = decoded(target, drafter, "auto", do_sample=True).sequences.tolist()
        out[name] = said(plain(target), decoded(target, drafter, 4), sampled=sampled)
    return out


def _turned(model: PreTrainedModel) -> None:
    """From now on this rank's logits are another text's, wherever a cache is used (else its probe would agree)."""

    def turn(_: Any, __: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if kwargs.get("use_cache", True):
            output["logits"] = output.logits.roll(1, -1)
        return output

    model.register_forward_hook(turn, with_kwargs=True)


def other_logits() -> dict[str, Any]:
    """Rank 1 would choose other tokens of the target, and another layout when it is probed."""
    target = sharded("qwen3")
    expected = plain(target)
    if RANK == 1:
        _turned(target)
    return said(expected, decoded(target, whole("qwen3-draft")))


def other_sharded_draft() -> dict[str, Any]:
    """Rank 1 would choose other tokens of a draft that both must run together, and has another seed.

    The draft has the target's weights: all its tokens are accepted, unless the ranks have fed it different ones.
    """
    target, draft = sharded("llama"), sharded("llama")
    expected = plain(target)
    if RANK == 1:
        _turned(draft)
    torch.manual_seed(100 + RANK)
    out = {}
    for name, drafter in {"chain": draft, "tree": specdec.TreeDrafter(draft, num_nodes=8)}.items():
        out[name] = said(expected, decoded(target, drafter))
        sampled = decoded(target, draft, do_sample=True)
        out[name] |= {"sampled": sampled.sequences.tolist(), "rejected": _rejected(sampled)}
    return out


def _rejected(out: Any) -> int:
    return out.speculation.drafted - out.speculation.accepted


def other_draft() -> dict[str, Any]:
    """Rank 1 holds a draft of other weights."""
    target = sharded("llama")
    draft = whole("llama-draft") if RANK == 0 else tiny("llama", seed=5)
    return {
        name: said(plain(target), decoded(target, drafter))
        for name, drafter in {"chain": draft, "tree": specdec.TreeDrafter(draft, num_nodes=8)}.items()
    }


def other_clock() -> dict[str, Any]:
    """To rank 1 every forward seems a thousand times as long as a draft's; to rank 0 the other way round."""
    target, draft = sharded("llama"), sharded("llama-draft")
    expected = plain(target)
    ticks = itertools.count()
    steps = itertools.cycle((1.0, 1000.0) if RANK == 0 else (1000.0, 1.0))
    specdec.loop.perf_counter = lambda: float(next(ticks)) * next(steps)  # type: ignore[attr-defined]
    try:
        return said(expected, decoded(target, draft, "auto"))
    finally:
        from time import perf_counter

        specdec.loop.perf_counter = perf_counter  # type: ignore[attr-defined]


class _Tired:
    """A criterion, of which only rank 0's answer counts: rank 1's is always yes."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), RANK == 1 or input_ids.shape[1] >= 18)


def other_criteria() -> dict[str, Any]:
    target = sharded("llama")
    out = decoded(target, whole("llama-draft"), stopping_criteria=[_Tired()])
    return {"tokens": out.sequences.tolist(), "length": out.sequences.shape[1]}


def _raised(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "nothing"


class _Broken(specdec.Drafter):
    """Raises in the third proposal of rank 0, which is the only one that drafts."""

    def start(self, state: specdec.DecodeState) -> specdec.DraftSession:
        session, calls = specdec.NgramDrafter().start(state), itertools.count()
        own = session.propose

        def propose(*args: Any) -> specdec.Proposal:
            if next(calls) == 2:
                raise KeyError("a drafter")
            return own(*args)

        session.propose = propose  # type: ignore[method-assign]
        return session


def one_rank_fails() -> dict[str, Any]:
    """What each rank is told, and that the next call works."""
    target, draft = sharded("llama"), whole("llama-draft")
    expected = plain(target)

    def raises(rank: int, kind: type[Exception], after: int = 0) -> Callable[..., Any]:
        calls = itertools.count()

        def callback(*args: Any) -> Any:
            if rank == RANK and next(calls) >= after:
                raise kind("a callback")
            return args[-1]

        return callback

    cases: dict[str, Callable[[], Any]] = {
        "on_commit of rank 1": lambda: decoded(target, draft, on_commit=raises(1, KeyError)),
        "on_commit of rank 0": lambda: decoded(target, draft, on_commit=raises(0, KeyError, after=4)),
        "processor of rank 1": lambda: decoded(target, draft, logits_processor=[raises(1, KeyError, after=9)]),
        "on_finish of rank 1": lambda: decoded(target, draft, on_finish=raises(1, KeyError)),
        "on_finish of both": lambda: decoded(target, draft, on_finish=raises(RANK, KeyError)),
        "drafter": lambda: decoded(target, _Broken()),
        "other prompts": lambda: decoded(target, draft, rows=1 + RANK),
        "other options": lambda: decoded(target, draft, max_new_tokens=NEW + RANK),
        "refused on rank 1": lambda: decoded(target, draft, num_beams=1 + RANK),
        "refused on both": lambda: decoded(target, draft, num_beams=2),
    }
    out = {}
    for name, call in cases.items():
        before = torch.get_rng_state()
        out[name] = {"raised": _raised(call), "rng": torch.equal(before, torch.get_rng_state())}
        out[name] |= said(expected, decoded(target, draft))
    return out


def a_given_cache() -> dict[str, Any]:
    """The memory of a call is taken up by the next one, on each rank its own heads."""
    target, draft = sharded("llama"), whole("llama-draft")
    first = decoded(target, draft, rows=2, eos_token_id=7)
    longer = torch.cat([first.sequences, first.sequences[:, :1]], dim=1)
    mask = torch.ones_like(longer)
    mask[1, :3] = 0
    expected = target.generate(longer, attention_mask=mask, max_new_tokens=8)
    out = specdec.generate(
        target, longer, attention_mask=mask, max_new_tokens=8, drafter=draft, past_key_values=first.past_key_values
    )
    return {"equal": torch.equal(out, expected), "tokens": out.tolist()}


def uncompiled() -> dict[str, Any]:
    target = sharded("llama")
    out = decoded(target, specdec.EarlyExitDrafter(1), compile=True)
    return said(plain(target), out, roles=out.speculation.graphs.roles)


def the_probe() -> dict[str, Any]:
    found = specdec.capabilities(sharded("llama"))
    return {"drafts": found.drafts, "batches": found.batches}


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        sharded_draft,
        other_logits,
        other_sharded_draft,
        other_draft,
        other_clock,
        other_criteria,
        one_rank_fails,
        a_given_cache,
        uncompiled,
        the_probe,
    )
}


def main() -> None:
    torch.set_num_threads(1)
    results = {}
    for name in sys.argv[2:]:
        check = CHECKS[name] if name in CHECKS else strategy(*json.loads(name))
        try:
            results[name] = check()
        except Exception as error:
            results[name] = {"error": repr(error)}
            (DIR / f"{RANK}.json").write_text(json.dumps(results))
            raise  # the other rank may wait: torchrun ends it
    (DIR / f"{RANK}.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
