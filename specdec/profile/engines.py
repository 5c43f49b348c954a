"""A profile's recommendation as settings of other engines: vLLM's `--speculative-config`, SGLang's flags.

Names and meanings were read in the released packages: vLLM 0.33.0 (vllm/config/speculative.py) and SGLang 0.5.23
(sglang/srt/arg_groups/fields/spec.py, speculative_hook.py). Draft models were in vLLM's first engine, were refused by
the second (0.10.0's documentation says so, 0.14.1 still raises) and came back with 0.15.0. What an engine has not got
is refused, never replaced by something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specdec.drafters import NgramDrafter, SuffixDrafter
from specdec.drafters.tree import NUM_NODES
from specdec.errors import OptionError, UnsupportedOptionError
from specdec.profile.choice import Choice, choose
from specdec.profile.schema import PLAIN, Profile

VLLM, SGLANG = "vLLM 0.33.0", "SGLang 0.5.23"
CROSS = "cross-tokenizer"
_BRANCH = 8  # most children of a node, by TreeDrafter's default
_REASONS = {
    (VLLM, "tree"): "it has no trees any more (speculative_token_tree, up to 0.15.0 at least, was for EAGLE heads)",
    (VLLM, "early-exit"): "it cannot draft with the target's own layers",
    (VLLM, "lookahead"): "it has no lookahead decoding",
    (SGLANG, "suffix"): "it has no suffix decoding; its NGRAM is the nearest, and was not what was measured",
    (SGLANG, "early-exit"): "it cannot draft with the target's own layers",
    (SGLANG, "lookahead"): "it has no lookahead decoding",
    (SGLANG, "cross-tokenizer"): "its STANDALONE needs a draft of the target's vocabulary",
}


def to_vllm(
    profile: Profile,
    batch: int = 1,
    temperature: float | None = None,
    *,
    draft: str | None = None,
    draft_tensor_parallel_size: int | None = None,
) -> dict[str, Any]:
    """The JSON of `vllm serve --speculative-config`, as vLLM 0.33.0 reads it; {} where nothing pays: no flag then.

    Args:
        batch, temperature, draft: see `to_specdec`.
        draft_tensor_parallel_size: 1 or the target's; the target's if omitted, which a draft model needs.

    Raises:
        OptionError: not profiled; a size that is none, or for a draft without a model.
        UnsupportedOptionError: vLLM has not got the recommended strategy.

    Example:
        >>> to_vllm(profile, temperature=0.0)  # doctest: +SKIP
        {'method': 'ngram', 'num_speculative_tokens': 4, 'prompt_lookup_max': 6, 'prompt_lookup_min': 2}
    """
    choice = choose(profile, batch, temperature, draft)
    if choice.draft is None:
        return {}
    kind, tokens = choice.draft.kind, choice.num_draft_tokens
    _check_kind(VLLM, choice, profile, ("model", "ngram", "suffix", CROSS))
    if draft_tensor_parallel_size is not None and (kind not in ("model", CROSS) or draft_tensor_parallel_size < 1):
        raise OptionError(
            f"draft_tensor_parallel_size={draft_tensor_parallel_size!r}: a number of GPUs, for draft models only."
        )
    if kind == "ngram":
        sizes = NgramDrafter()
        return {
            "method": "ngram",
            "num_speculative_tokens": tokens,
            "prompt_lookup_max": sizes.max_ngram,
            "prompt_lookup_min": sizes.min_ngram,
        }
    if kind == "suffix":
        return _vllm_suffix(choice, profile)
    config: dict[str, Any] = {"method": "draft_model", "model": choice.path, "num_speculative_tokens": tokens}
    if draft_tensor_parallel_size is not None:
        config["draft_tensor_parallel_size"] = draft_tensor_parallel_size
    if kind == CROSS:
        if choice.recommendation.temperature > 0:
            why = "of drafts with another tokenizer it takes the likeliest tokens only, and these were sampled"
            raise UnsupportedOptionError(_refusal(VLLM, choice, profile, why))
        config["use_heterogeneous_vocab"] = True
    elif choice.recommendation.temperature > 0:
        config["draft_sample_method"] = "probabilistic"  # vLLM's default is to draft greedily
    return config


def to_sglang(
    profile: Profile, batch: int = 1, temperature: float | None = None, *, draft: str | None = None
) -> list[str]:
    """Flags of `python -m sglang.launch_server`, as SGLang 0.5.23 reads them; [] where nothing pays.

    SGLang counts the token that a round starts from: k drafted tokens are `--speculative-num-draft-tokens` k + 1.

    Raises:
        OptionError: not profiled.
        UnsupportedOptionError: SGLang has not got the recommended strategy.

    Example:
        >>> to_sglang(profile, temperature=0.0, draft="ngram")[:2]  # doctest: +SKIP
        ['--speculative-algorithm', 'NGRAM']
    """
    choice = choose(profile, batch, temperature, draft)
    if choice.draft is None:
        return []
    kind, tokens = choice.draft.kind, choice.num_draft_tokens
    _check_kind(SGLANG, choice, profile, ("model", "ngram", "tree"))
    if kind == "ngram":
        window = str(tokens + 1)
        # One branch, as NgramDrafter's: this flag also sets --speculative-eagle-topk, whatever that was given.
        return [
            *("--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", window),
            *("--speculative-ngram-max-bfs-breadth", "1"),
        ]
    branch, nodes = 1, tokens
    if kind == "tree":
        if choice.recommendation.temperature > 0:
            why = "its trees hold the draft's likeliest tokens, and these were drawn from the draft's distribution"
            raise UnsupportedOptionError(_refusal(SGLANG, choice, profile, why))
        branch = _BRANCH
        nodes = min(NUM_NODES, branch + (tokens - 1) * branch * branch)  # no more than such a tree can have
    return [
        *("--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", choice.path),
        *("--speculative-num-steps", str(tokens), "--speculative-eagle-topk", str(branch)),
        *("--speculative-num-draft-tokens", str(nodes + 1)),
    ]


def notes(
    engine: str, profile: Profile, batch: int = 1, temperature: float | None = None, draft: str | None = None
) -> list[str]:
    """What to know before an engine is started with `to_vllm`'s or `to_sglang`'s output; first which version it is for.

    Args:
        engine: `VLLM` or `SGLANG`.
    """
    choice = choose(profile, batch, temperature, draft)
    out = [f"For {engine}."]
    kind = PLAIN if choice.draft is None else choice.draft.kind
    sampled = choice.recommendation.temperature > 0
    if kind == PLAIN:
        return [*out, "Nothing pays here: start the engine without any option of speculative decoding."]
    out.append(
        f"The speed-up of {choice.recommendation.speedup:.2f} was "
        f"{'measured' if choice.recommendation.is_measured else 'predicted'} in specdec, at batch {batch}; acceptance "
        "carries over to an engine of the same models, times do not: measure there."
    )
    out += _VLLM_NOTES.get(kind, ()) if engine == VLLM else _SGLANG_NOTES.get(kind, ())
    if engine == VLLM and kind == "model" and sampled:
        out.append(
            "0.15.0 does not know draft_sample_method: without it vLLM drafts greedily, and fewer tokens are accepted "
            "than were measured."
        )
    if engine == SGLANG and kind == "model" and sampled:
        out.append(
            "STANDALONE drafts greedily (rejection sampling is for EAGLE only): at this temperature fewer tokens are "
            "accepted than were measured."
        )
    return out


_VLLM_NOTES: dict[str, Sequence[str]] = {
    "model": ("Draft models need vLLM 0.15.0 or later: 0.10.0 to 0.14.1 refuse them.",),
    "suffix": ("This method needs `pip install arctic-inference`.", "vLLM also drafts from finished requests."),
    CROSS: ("vLLM drafts in the tokens that both vocabularies have; specdec may have drafted through the text.",),
}
_SGLANG_NOTES: dict[str, Sequence[str]] = {
    "ngram": (
        "SGLang looks for matches in what all requests have written, and has no bounds on their length since 0.5.9's "
        "--speculative-ngram-min/max-match-window-size were removed.",
    ),
    "tree": ("SGLang grows a tree of as many nodes as EAGLE-2 does; specdec's is grown best first.",),
}


def _vllm_suffix(choice: Choice, profile: Profile) -> dict[str, Any]:
    if choice.path:
        raise UnsupportedOptionError(_refusal(VLLM, choice, profile, "it reads no index of texts"))
    own = SuffixDrafter()
    return {
        "method": "suffix",
        "num_speculative_tokens": choice.num_draft_tokens,
        "suffix_decoding_max_spec_factor": own.alpha,
        "suffix_decoding_min_token_prob": own.min_score,
    }


def _check_kind(engine: str, choice: Choice, profile: Profile, kinds: Sequence[str]) -> None:
    assert choice.draft is not None
    if choice.draft.kind not in kinds:
        why = _REASONS.get((engine, choice.draft.kind), f"it has nothing like {choice.draft.kind!r}")
        raise UnsupportedOptionError(_refusal(engine, choice, profile, why, kinds))


def _refusal(engine: str, choice: Choice, profile: Profile, why: str, kinds: Sequence[str] = ("model", "ngram")) -> str:
    """Why, and which of the profile's other drafts the engine could run."""
    assert choice.draft is not None
    place = (choice.recommendation.batch, choice.recommendation.temperature)
    others = []
    for other in profile.drafts:
        if other.kind in kinds and other.name != choice.draft.name:
            found = choose(profile, *place, other.name).recommendation
            if found.draft != PLAIN:
                others.append((found.speedup, f"draft={other.name!r} ({found.speedup:.2f} times as fast here)"))
    advice = f"Choose {max(others)[1]}" if others else "Decode there without a draft, or profile another one"
    return f"{engine} cannot run what the profile recommends, {choice.draft.name}: {why}. {advice}."
