"""TreeDrafter: greedy output equal to transformers', one draft forward a depth, caches kept in step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import families
import pytest
import torch
from families import ARCHITECTURES, NEW_TOKENS, family, inputs
from models import VOCAB_SIZE, prompts, tiny
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper

import specdec
from specdec import TreeDrafter
from specdec.drafters.planning import LearningPlanner
from specdec.sampling import Sampler
from specdec.state import DecodeState

KINDS: dict[str, dict[str, Any]] = {
    "static": {"widths": [3, 2, 1]},
    "irregular": {"parents": [-1, 0, -1, 2, 1, 3, 3, 6]},
    "dynamic": {"num_nodes": 9},
    "eagle": {"num_nodes": 9, "expand": 3, "branch": 3},
    "optimal": {"acceptance": [0.5, 0.2, 0.1], "num_nodes": 10},
    "auto": {"acceptance": "auto", "num_nodes": 10, "branch": 4},
    "confident": {"num_nodes": 9, "min_confidence": 0.1},
}
TREES = [n for n in families.names("attention", "sliding", "moe") if n not in ("bloom", "falcon_alibi")]
EACH_CHANGE = ("llama", "mistral")
RECURRENT = ("mamba2", "falcon_h1")
COLUMN = [n if n in EACH_CHANGE else pytest.param(n, marks=pytest.mark.long) for n in TREES]


@cache
def reference(name: str, batch_size: int) -> Tensor:
    return family(name).generate(**inputs(name, batch_size), max_new_tokens=NEW_TOKENS, do_sample=False)


def noisy(name: str) -> Any:
    return family(name, ARCHITECTURES[name].noise)


def decode(name: str, batch_size: int, drafter: specdec.Drafter, **kwargs: Any) -> Any:
    arguments = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "num_draft_tokens": 4, **kwargs}
    return specdec.generate(
        family(name), **inputs(name, batch_size), drafter=drafter, return_dict_in_generate=True, **arguments
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", COLUMN)
def test_equals_generate(name: str, batch_size: int, kind: str) -> None:
    """48 tokens, past windows of 8."""
    out = decode(name, batch_size, TreeDrafter(noisy(name), **KINDS[kind]))
    assert torch.equal(out.sequences, reference(name, batch_size))
    assert out.speculation.accepted > 10


SELF = {
    "static": {"widths": [3, 2, 2, 1]},
    "dynamic": {"num_nodes": 24, "branch": 3},
    "eagle": {"num_nodes": 24, "expand": 3, "branch": 3},
    "optimal": {"acceptance": [0.7, 0.2], "num_nodes": 10},
}


@pytest.mark.parametrize("kind", SELF)
@pytest.mark.parametrize("name", ["llama", "mistral", pytest.param("gemma2", marks=pytest.mark.long)])
def test_the_target_drafts_for_itself(name: str, kind: str) -> None:
    """Its likeliest path is right, behind trees and past the window of 8, or the draft's cache and masks are wrong."""
    out = decode(name, 3, TreeDrafter(family(name), **SELF[kind]))
    assert torch.equal(out.sequences, reference(name, 3))
    stats = out.speculation
    # Of 24 nodes the likeliest path is left out only where the draft is quite unsure.
    assert stats.acceptance_rate == 1.0 if kind in ("static", "optimal") else stats.acceptance_rate > 0.95
    assert stats.rounds <= 11


def test_one_forward_a_depth() -> None:
    target, draft = tiny("llama"), tiny("llama", noise=0.02)
    for kind in ({"widths": [4, 3, 2]}, {"acceptance": [0.5, 0.2], "num_nodes": 12}, {"num_nodes": 12}):
        out = specdec.generate(
            target,
            **prompts(1),
            drafter=TreeDrafter(draft, **kind),
            num_draft_tokens=3,
            max_new_tokens=38,
            return_dict_in_generate=True,
        )
        stats = out.speculation
        assert 2 * stats.rounds < stats.draft_calls <= 3 * stats.rounds
        assert stats.host_syncs == stats.rounds + 1


def test_trees_accept_more_than_chains_of_their_depth() -> None:
    target, draft, inputs = tiny("llama"), tiny("llama", noise=0.03), prompts(3)
    lengths = {}
    drafters = {"chain": specdec.ModelDrafter(draft), **{k: TreeDrafter(draft, **v) for k, v in KINDS.items()}}
    for kind, drafter in drafters.items():
        out = specdec.generate(
            target, **inputs, drafter=drafter, num_draft_tokens=3, max_new_tokens=48, return_dict_in_generate=True
        )
        lengths[kind] = out.speculation.acceptance_length
    for kind in ("static", "dynamic", "eagle", "optimal", "auto"):
        assert lengths[kind] > 1.1 * lengths["chain"], lengths


# --- What is proposed


def proposals(drafter: specdec.Drafter, limit: Sequence[int], processors: Any = (), num_rows: int = 2) -> Any:
    """The first proposal behind ragged prompts, and the rows' tokens."""
    inputs = prompts(num_rows)
    ids = inputs["input_ids"] % drafter.model.config.vocab_size  # type: ignore[attr-defined]
    sampler = Sampler(processors, False, num_rows)
    vocab_size = drafter.model.config.vocab_size  # type: ignore[attr-defined]
    state = DecodeState(ids, ids, inputs["attention_mask"].bool(), 60, vocab_size, sampler, None)
    with torch.inference_mode():
        return drafter.start(state).propose(state, limit), state.host_tokens


def paths_of(proposal: specdec.Proposal, row: int) -> list[tuple[int, ...]]:
    """The tokens on the way to each valid node, in order."""
    found: list[tuple[int, ...]] = []
    for node, (token, parent) in enumerate(
        zip(proposal.tokens[row].tolist(), proposal.parents[row].tolist(), strict=True)
    ):
        assert -1 <= parent < node, "parents first"
        found.append((*(found[parent] if parent >= 0 else ()), token))
    valid = proposal.valid[row].tolist()
    out = [path for path, ok in zip(found, valid, strict=True) if ok]
    assert all(path[:-1] in ((), *out) for path in out), "descendants of an invalid node"
    return out


@torch.no_grad()
def tree_of_all(model: Any, prompt: list[int], depth: int) -> dict[tuple[int, ...], float]:
    """The probability of every continuation of up to `depth` tokens, by forwards over the whole text."""
    values, level = {(): 1.0}, [()]
    for _ in range(depth):
        ids = torch.tensor([[*prompt, *path] for path in level])
        probs = model(ids).logits[:, -1].float().softmax(-1)
        for path, row in zip(level, probs.tolist(), strict=True):
            values.update({(*path, token): values[path] * p for token, p in enumerate(row)})
        level = [(*path, token) for path in level for token in range(probs.shape[1])]
    return values


SMALL = {name: tiny(name, vocab_size=6) for name in ("llama", "gpt2")}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("num_nodes", [1, 5, 17])
def test_best_first_trees_are_the_best_of_their_size(name: str, num_nodes: int) -> None:
    """The likeliest paths of all, row by row, each to its own depth."""
    model, limit = SMALL[name], [4, 2]
    proposal, texts = proposals(TreeDrafter(model, num_nodes=num_nodes, branch=6), limit)
    for row, text in enumerate(texts):
        every = tree_of_all(model, text, limit[row])
        best = sorted((p for p in every if p), key=every.__getitem__, reverse=True)[:num_nodes]
        assert set(paths_of(proposal, row)) == set(best)
    assert num_nodes == 1 or set(paths_of(proposal, 0)) != set(paths_of(proposal, 1))


def test_eagle_trees() -> None:
    """Of each depth the two best paths are expanded by three; of all the nine best are proposed."""
    model = SMALL["llama"]
    proposal, texts = proposals(TreeDrafter(model, num_nodes=9, expand=2, branch=3), [4, 4])
    for row, text in enumerate(texts):
        every = tree_of_all(model, text, 4)
        seen: list[tuple[int, ...]] = []
        level: list[tuple[int, ...]] = [()]
        for _ in range(4):
            below = []
            for path in level:
                kin = sorted(((*path, t) for t in range(6)), key=every.__getitem__, reverse=True)
                below += kin[:3]
            seen += below
            level = sorted(below, key=every.__getitem__, reverse=True)[:2]
        assert set(paths_of(proposal, row)) == set(sorted(seen, key=every.__getitem__, reverse=True)[:9])


@pytest.mark.parametrize("kind", KINDS)
def test_the_likeliest_child_comes_first(kind: str) -> None:
    """What is left of a tree where only one branch can be verified is the draft's own chain."""
    model = tiny("llama")
    proposal, _ = proposals(TreeDrafter(model, **KINDS[kind]), [3, 2])
    chain, _ = proposals(specdec.ModelDrafter(model), [3, 2])
    first, _ = proposal.first_chain()
    depth = first.tokens.shape[1]
    assert first.valid[:, 0].all()
    assert torch.equal(first.tokens[first.valid], chain.tokens[:, :depth][first.valid])
    assert first.valid[1].sum() <= 2


def test_bounds_on_confidence() -> None:
    """Exactly the nodes whose path is likely enough; nothing at all where there is none."""
    model = SMALL["llama"]
    proposal, texts = proposals(TreeDrafter(model, num_nodes=64, branch=6, min_confidence=0.05), [3, 3])
    for row, text in enumerate(texts):
        every = tree_of_all(model, text, 3)
        assert set(paths_of(proposal, row)) == {path for path, value in every.items() if path and value >= 0.05}
    flat = TemperatureLogitsWarper(1e4)
    for drafter in (TreeDrafter(model, min_confidence=0.2), specdec.ModelDrafter(model, min_confidence=0.2)):
        proposal, _ = proposals(drafter, [3, 3], processors=[flat])
        assert proposal.num_nodes == 0


def test_chains_end_where_the_draft_is_unsure() -> None:
    """By the product of the largest probabilities, row by row; rows at their limit keep no other row drafting."""
    model = tiny("llama")
    flat, bound = TemperatureLogitsWarper(1.5), 0.1
    whole, _ = proposals(specdec.ModelDrafter(model), [6, 6, 2], [flat], num_rows=3)
    proposal, texts = proposals(specdec.ModelDrafter(model, min_confidence=bound), [6, 6, 2], [flat], num_rows=3)
    lengths, by_token = [], []
    for row, text in enumerate(texts):
        ids = torch.tensor([[*text, *whole.tokens[row].tolist()]])
        with torch.no_grad():
            top = (model(ids).logits[0, len(text) - 1 : -1].float() / 1.5).softmax(-1).amax(-1)
        lengths.append(min(int((top.cumprod(0) >= bound).sum()), [6, 6, 2][row]))
        by_token.append(min(int((top >= bound).sum()), [6, 6, 2][row]))
    assert lengths != by_token  # each token for itself would be sure enough
    assert proposal.valid.sum(1).tolist() == lengths
    assert proposal.num_nodes == max(lengths) and len(set(lengths)) > 1
    assert torch.equal(proposal.tokens, whole.tokens[:, : proposal.num_nodes])


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", ["llama", "bloom", *(pytest.param(n, marks=pytest.mark.long) for n in RECURRENT)])
def test_chains_with_a_bound_equal_generate(name: str, batch_size: int) -> None:
    """Whatever the draft remembers: what was drafted and fed before a stop stays in step."""
    out = decode(name, batch_size, specdec.ModelDrafter(noisy(name), min_confidence=0.3), num_draft_tokens=6)
    assert torch.equal(out.sequences, reference(name, batch_size))
    stats = out.speculation
    assert stats.accepted > 0 and stats.drafted < 6 * stats.row_rounds


# --- Targets and drafts that hold one branch


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    ("target", "draft"),
    [("bloom", "bloom"), pytest.param("mamba2", "mamba2", marks=pytest.mark.long), ("llama", "bloom")],
)
def test_chains_where_trees_cannot_be(target: str, draft: str, batch_size: int) -> None:
    out = decode(target, batch_size, TreeDrafter(noisy(draft), widths=[3, 2, 1]))
    assert torch.equal(out.sequences, reference(target, batch_size))
    stats = out.speculation
    assert stats.drafted > 0 and (target != draft or stats.accepted > 0)
    chain = decode(target, batch_size, specdec.ModelDrafter(noisy(draft)))
    assert (stats.accepted, stats.draft_calls) == (chain.speculation.accepted, chain.speculation.draft_calls)


# --- Processors, rows that end, sampling


class OnlyAfter(LogitsProcessor):
    """After token t only tokens of the other parity are allowed; has no answer for a text that breaks this."""

    def __init__(self, prompt_length: int) -> None:
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        text = input_ids[:, self.prompt_length - 1 :]
        assert bool(((text[:, 1:] + text[:, :-1]) % 2 == 1).all()), "a forbidden text"
        return scores.masked_fill((torch.arange(scores.shape[1]) + text[:, -1:]) % 2 == 0, float("-inf"))


@pytest.mark.parametrize("kind", ["static", "dynamic", "eagle", "auto"])
def test_processors_see_the_path_to_each_node(kind: str) -> None:
    """A repetition penalty and forbidden n-grams, the same for draft and target: the likeliest path is right."""
    target, inputs = tiny("llama"), prompts(3)
    arguments = {**inputs, "max_new_tokens": 40, "repetition_penalty": 1.7, "no_repeat_ngram_size": 2}
    expected = target.generate(**arguments, do_sample=False)
    assert not torch.equal(expected, target.generate(**inputs, max_new_tokens=40, do_sample=False))
    drafter = TreeDrafter(target, **KINDS[kind])
    out = specdec.generate(
        target, **arguments, do_sample=False, drafter=drafter, num_draft_tokens=3, return_dict_in_generate=True
    )
    assert torch.equal(out.sequences, expected)
    assert out.speculation.acceptance_rate > (0.999 if kind == "static" else 0.9)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("kind", ["static", "dynamic", "without_replacement"])
def test_constraints_are_asked_about_allowed_texts_only(kind: str, do_sample: bool) -> None:
    target, draft, inputs = tiny("llama"), tiny("llama", noise=0.02), prompts(2)
    settings = {**KINDS[kind], "children": "best"} if kind in KINDS else {"widths": [3, 2], "children": kind}
    processor = OnlyAfter(inputs["input_ids"].shape[1])
    arguments = {**inputs, "max_new_tokens": 24, "logits_processor": [processor], "do_sample": do_sample}
    out = specdec.generate(
        target,
        **arguments,
        drafter=TreeDrafter(draft, **settings),
        num_draft_tokens=3,
        return_dict_in_generate=True,
        generator=torch.Generator().manual_seed(1),
    )
    assert out.speculation.accepted > 0
    if not do_sample:
        assert torch.equal(out.sequences, target.generate(**arguments))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_end_early(kind: str) -> None:
    target, inputs = tiny("llama"), prompts(3)
    free = target.generate(**inputs, max_new_tokens=40, do_sample=False)
    eos = [int(free[0, -30]), int(free[-1, -12])]
    arguments = {**inputs, "max_new_tokens": 40, "do_sample": False, "eos_token_id": eos, "pad_token_id": 0}
    expected = target.generate(**arguments)
    assert (expected[:, -1] == 0).any()
    drafter = TreeDrafter(tiny("llama", noise=0.02), **KINDS[kind])
    assert torch.equal(specdec.generate(target, **arguments, drafter=drafter, num_draft_tokens=5), expected)


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 5])
def test_never_overshoots(max_new_tokens: int) -> None:
    target = tiny("llama")
    arguments = {**prompts(3), "max_new_tokens": max_new_tokens, "do_sample": False}
    for settings in ({"widths": [2] * 4}, {"num_nodes": 20}):
        out = specdec.generate(target, **arguments, drafter=TreeDrafter(target, **settings), num_draft_tokens=6)
        assert torch.equal(out, target.generate(**arguments))


def test_a_draft_with_a_shorter_context() -> None:
    target = tiny("llama")
    config = type(target.config)(**{**target.config.to_dict(), "max_position_embeddings": 30})
    draft = type(target)(config).to(torch.float64).eval()
    draft.load_state_dict(target.state_dict())
    arguments = {**prompts(2), "max_new_tokens": 40, "do_sample": False}
    out = specdec.generate(target, **arguments, drafter=TreeDrafter(draft), num_draft_tokens=4)
    assert torch.equal(out, target.generate(**arguments))


@pytest.mark.parametrize("settings", [{}, {"widths": [2, 2], "children": "iid"}])
def test_a_broken_draft_gets_a_typed_error(settings: dict[str, Any]) -> None:
    broken = type(tiny("llama"))(tiny("llama").config).to(torch.float64)
    with torch.no_grad():
        broken.lm_head.weight.mul_(float("nan"))
    with pytest.raises(specdec.DrafterError, match="outside"):
        specdec.generate(
            tiny("llama"),
            **prompts(2),
            drafter=TreeDrafter(broken, **settings),
            num_draft_tokens=3,
            do_sample=True,
            max_new_tokens=9,
        )


@pytest.mark.parametrize("settings", [{}, {"children": "best"}, {"widths": [3, 2], "children": "iid"}])
def test_the_same_seed_gives_the_same_text(settings: dict[str, Any]) -> None:
    drafter = TreeDrafter(tiny("llama", noise=0.02), **settings)
    texts = [
        specdec.generate(
            tiny("llama"),
            **prompts(2),
            drafter=drafter,
            num_draft_tokens=3,
            do_sample=True,
            max_new_tokens=30,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (1, 1, 2)
    ]
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])


def test_what_is_drawn_when() -> None:
    """Drawn children in sampling calls only, and in shapes that nothing drawn has decided."""
    sampling, greedy = [
        DecodeState(ids, ids, torch.ones_like(ids).bool(), 60, 96, Sampler((), do_sample, 1), 0)
        for ids in [prompts(1)["input_ids"]]
        for do_sample in (True, False)
    ]
    for settings, law in (
        ({}, specdec.Law.WITHOUT_REPLACEMENT),
        ({"widths": [2, 1]}, specdec.Law.WITHOUT_REPLACEMENT),
        ({"acceptance": [0.4, 0.1], "children": "iid"}, specdec.Law.IID),
        ({"children": "best"}, specdec.Law.GIVEN),
        ({"acceptance": "auto", "children": "best"}, specdec.Law.GIVEN),
    ):
        drafter = TreeDrafter(tiny("llama"), **settings)
        with torch.inference_mode():
            assert drafter.start(sampling).propose(sampling, [3]).law is law
            assert drafter.start(greedy).propose(greedy, [3]).law is specdec.Law.GIVEN


# --- Learning, refusals


def test_acceptance_by_rank_is_counted() -> None:
    """Against a count by hand of paths through one shape, for rows with different limits."""
    inputs = prompts(2)
    state = DecodeState(
        inputs["input_ids"], inputs["input_ids"], inputs["attention_mask"].bool(), 60, 96, Sampler((), False, 2), None
    )
    planner = LearningPlanner(num_nodes=6, num_ranks=3, law=specdec.Law.GIVEN, device=state.device)
    before = list(planner.acceptance)
    shape = planner.plan(state, [2, 1], 2).shape
    paths = [[shape.level(1)[1], -1], [shape.level(1)[0], -1]]
    second = [n for n, p in enumerate(shape.parents) if p == paths[0][0]]
    paths[0][1] = second[0] if second else -1
    path = torch.tensor(paths)
    acceptance = specdec.Acceptance(path, (path >= 0).sum(1), torch.zeros(2, dtype=torch.int64))
    for _ in range(8):
        planner.plan(state, [2, 1], 2)
        planner.learn(acceptance)
    children = shape.num_children
    # Row 0 was at the root, then at its child (if that has children) and, at depth 2, at its limit; row 1 at the root.
    tried = [[children[0], children[paths[0][0] + 1]], [children[0]]]
    hits = [[1, 0 if second else None], [0]]
    for rank in range(3):
        visits = 8 * sum(c > rank for row in tried for c in row)
        accepted = 8 * sum(h == rank for row in hits for h in row)
        assert planner.acceptance[rank] == pytest.approx((accepted + 6 * before[rank]) / (visits + 6))


BAD: list[dict[str, Any]] = [
    {"widths": [2, 0]},
    {"widths": []},
    {"widths": [VOCAB_SIZE + 1]},
    {"parents": [0, -1]},
    {"parents": [-1, 3]},
    {"widths": [2], "parents": [-1]},
    {"widths": [2], "num_nodes": 3},
    {"widths": [2], "children": "sampled"},
    {"children": "iid"},
    {"num_nodes": 0},
    {"num_nodes": 10**6},
    {"num_nodes": 4.0},
    {"expand": 0},
    {"branch": -1},
    {"acceptance": "best"},
    {"acceptance": [0.9, 0.9]},
    {"acceptance": [0.1], "branch": 2},
    {"acceptance": [0.001] * (VOCAB_SIZE + 1)},
    {"acceptance": "auto", "expand": 2},
    {"min_confidence": 1.0},
    {"min_confidence": -0.1},
]


@pytest.mark.parametrize("settings", BAD)
def test_impossible_trees_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(specdec.OptionError):
        TreeDrafter(tiny("llama"), **settings)


def test_impossible_bounds_are_refused() -> None:
    for bound in (1.0, -0.5, float("nan"), True):
        with pytest.raises(specdec.OptionError, match="min_confidence"):
            specdec.ModelDrafter(tiny("llama"), min_confidence=bound)
