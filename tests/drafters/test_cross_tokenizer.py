"""Drafts of another tokenizer: the output is the target's, and what is drafted is what the draft says."""

from __future__ import annotations

import copy
from typing import Any

import families
import pytest
import torch
from drafters.tongues import CHARACTERS, TONGUES, byte_level, characters, renamed, unigram, word_pieces
from models import prompts, tiny
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerFast
from transformers.generation import logits_process as hf

import specdec
from specdec.drafters.cross_tokenizer import IntersectionSession, TextSession
from specdec.drafters.shared_vocabulary import SharedVocabulary
from specdec.drafters.spelling import Spelling
from specdec.verify.coins import Purpose, inverse_cdf, uniform

PAIRS = [
    ("bytes", "unigram"),
    ("unigram", "bytes with BOS"),
    ("bytes with BOS", "word pieces"),
    ("word pieces", "bytes"),
]
METHODS = ["text", "intersection"]


def speaker(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> PreTrainedModel:
    """A random model of a tokenizer's size, its embeddings a little larger."""
    return tiny("llama", vocab_size=len(tokenizer) + 5, **changes)


def cross(draft: PreTrainedModel, mine: Any, other: Any, method: Any) -> specdec.CrossTokenizerDrafter:
    return specdec.CrossTokenizerDrafter(draft, target_tokenizer=mine, draft_tokenizer=other, method=method)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_equals_generate(target: str, draft: str, method: str, batch_size: int) -> None:
    """Random text: broken characters, special tokens, ids that no tokenizer has."""
    mine, other = TONGUES[target](), TONGUES[draft]()
    model = speaker(mine)
    arguments = {**prompts(batch_size), "max_new_tokens": 24, "do_sample": False}
    drafter = cross(speaker(other, seed=1), mine, other, method)
    out = specdec.generate(model, **arguments, drafter=drafter, num_draft_tokens=4, return_dict_in_generate=True)
    assert torch.equal(out.sequences, model.generate(**arguments))
    assert out.speculation.drafted > 0


def wordy(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its two special tokens, which are no text."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.get_output_embeddings().weight[:2] = 0
    return model


TARGET = wordy(tiny("llama"))
OTHER = characters(seed=1)
assert TARGET.config.vocab_size == CHARACTERS + 2


def with_renamed_draft(noise: float, method: str, family: str = "llama", **asked: Any) -> tuple[Any, Any]:
    """What a draft gives under other ids, and what the same draft gives as a ModelDrafter."""
    if family == "llama":
        target, draft = TARGET, wordy(tiny("llama", noise=noise))
    else:
        target, draft = wordy(families.family(family)), wordy(families.family(family, noise=noise))
    asked = {**prompts(3), "num_draft_tokens": 4, "max_new_tokens": 40, "return_dict_in_generate": True, **asked}
    seeds = [{"generator": torch.Generator().manual_seed(5)} if asked.get("do_sample") else {} for _ in range(2)]
    foreign = cross(renamed(draft, characters(), OTHER), characters(), OTHER, method)
    one = specdec.generate(target, **asked, **seeds[0], drafter=foreign)
    two = specdec.generate(target, **asked, **seeds[1], drafter=specdec.ModelDrafter(draft))
    return one, two


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_drafts_what_the_draft_says(method: str, noise: float) -> None:
    """Where each token has one spelling, a draft under other ids drafts what it drafts under the target's."""
    one, two = with_renamed_draft(noise, method, do_sample=False)
    assert torch.equal(one.sequences, two.sequences)
    assert one.speculation.accepted == two.speculation.accepted
    assert one.speculation.drafted == two.speculation.drafted
    assert (one.speculation.acceptance_rate == 1) == (noise == 0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_tokens_that_the_draft_cannot_read(batch_size: int) -> None:
    """Padding of the target's embeddings, behind drafts that were accepted: there is nothing new to feed."""
    target = copy.deepcopy(tiny("llama", vocab_size=101))
    with torch.no_grad():
        target.get_output_embeddings().weight[96:] *= 1.2
    draft = renamed(target, characters(), OTHER)
    for seed in range(3):
        asked = {**prompts(batch_size, seed=seed), "max_new_tokens": 40, "do_sample": False}
        out = specdec.generate(
            target, **asked, drafter=cross(draft, characters(), OTHER, "intersection"), num_draft_tokens=4
        )
        expected = target.generate(**asked)
        assert torch.equal(out, expected)
        assert (expected[:, -40:] >= 96).any()


@pytest.mark.parametrize("method", METHODS)
def test_stops_where_the_draft_is_unsure(method: str) -> None:
    """As the same draft does under the target's ids."""
    draft = wordy(tiny("llama", noise=0.02))
    asked = {**prompts(3), "num_draft_tokens": 4, "max_new_tokens": 40, "do_sample": False}
    drafted = []
    for bound in (0.5, 0.9):
        foreign = specdec.CrossTokenizerDrafter(
            renamed(draft, characters(), OTHER),
            target_tokenizer=characters(),
            draft_tokenizer=OTHER,
            method=method,
            min_confidence=bound,
        )
        own = specdec.ModelDrafter(draft, min_confidence=bound)
        one, two = (
            specdec.generate(TARGET, **asked, drafter=drafter, return_dict_in_generate=True)
            for drafter in (foreign, own)
        )
        assert torch.equal(one.sequences, TARGET.generate(**asked_of(asked)))
        assert one.speculation.accepted > 0
        if method == "intersection":  # text drafts a token more than it is asked for
            assert one.speculation.drafted == two.speculation.drafted
            assert one.speculation.accepted == two.speculation.accepted
        drafted.append(one.speculation.drafted)
    assert drafted[0] > drafted[1] > 0


def asked_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """What transformers knows of them."""
    return {name: value for name, value in arguments.items() if name != "num_draft_tokens"}


def test_samples_what_the_draft_samples() -> None:
    """With the same coins the intersection draws and accepts the same tokens, processors included."""
    one, two = with_renamed_draft(
        0.05, "intersection", do_sample=True, temperature=0.7, top_k=20, repetition_penalty=1.2
    )
    assert torch.equal(one.sequences, two.sequences)
    assert one.speculation.accepted == two.speculation.accepted > 0


@pytest.mark.parametrize(
    ("family", "method"), [("mistral", "text"), ("mistral", "intersection"), ("mamba2", "intersection")]
)
def test_other_memories(family: str, method: str) -> None:
    """Rings that were written over are read again; recurrent states follow a text that only grows."""
    one, two = with_renamed_draft(0.05, method, family, do_sample=False)
    assert torch.equal(one.sequences, two.sequences)
    assert one.speculation.accepted == two.speculation.accepted > 0


def test_a_ring_that_is_cut_back_far() -> None:
    """Long drafts that are rejected: without the new beginning the draft would read what later tokens left."""
    one, two = with_renamed_draft(0.05, "text", "mistral", do_sample=False, num_draft_tokens=16)
    assert one.speculation.accepted == two.speculation.accepted > 0


def test_rows_that_end_early() -> None:
    free = TARGET.generate(**prompts(3), max_new_tokens=40, do_sample=False)
    eos = [int(free[0, -30]), int(free[2, -20])]
    expected = TARGET.generate(**prompts(3), max_new_tokens=40, do_sample=False, eos_token_id=eos, pad_token_id=0)
    for method in METHODS:
        drafter = cross(renamed(tiny("llama", noise=0.02), characters(), OTHER), characters(), OTHER, method)
        out = specdec.generate(
            TARGET, **prompts(3), drafter=drafter, max_new_tokens=40, do_sample=False, eos_token_id=eos, pad_token_id=0
        )
        assert torch.equal(out, expected)


def test_a_draft_with_a_shorter_context() -> None:
    config = type(TARGET.config)(**{**TARGET.config.to_dict(), "max_position_embeddings": 30})
    draft = type(TARGET)(config).to(torch.float64).eval()
    draft.load_state_dict(TARGET.state_dict())
    arguments = {**prompts(2), "max_new_tokens": 40, "do_sample": False}
    for method in METHODS:
        drafter = cross(renamed(draft, characters(), OTHER), characters(), OTHER, method)
        out = specdec.generate(TARGET, **arguments, drafter=drafter, return_dict_in_generate=True)
        assert torch.equal(out.sequences, TARGET.generate(**arguments))
        assert out.speculation.drafted > 0


class Interpreter:
    """Alg. 4 of arXiv:2502.05202, one row, no cache: the draft's distribution over what both vocabularies have."""

    def __init__(self, target: PreTrainedModel, draft: PreTrainedModel, mine: Any, other: Any, warpers: Any) -> None:
        self.target, self.draft, self.warpers = target, draft, warpers
        self.shared = SharedVocabulary(Spelling(mine), Spelling(other))
        self.prefix = [other.bos_token_id]

    def p(self, tokens: list[int]) -> Tensor:
        ids = torch.tensor([tokens])
        return self.warpers(ids, self.target(ids).logits[:, -1].float()).softmax(-1)[0]

    def q(self, tokens: list[int]) -> Tensor:
        own = [*self.prefix, *(piece for t in tokens for piece in self.shared.pieces(t))]
        logits = self.draft(torch.tensor([own])).logits[0, -1].float()
        wide = torch.full((1, self.target.config.vocab_size), float("-inf"))
        for mine, other in self.shared.to_draft.items():
            wide[0, mine] = logits[other]
        return self.warpers(torch.tensor([tokens]), wide).softmax(-1)[0]

    def run(self, prompt: list[int], new: int, depth: int, seed: int, row: int) -> tuple[list[int], int]:
        tokens, accepted, end = list(prompt), 0, len(prompt) + new
        while len(tokens) < end:
            length, proposal, q = len(tokens), [], []

            def coin(purpose: Purpose, node: int, length: int = length) -> Tensor:
                return uniform(seed, torch.tensor([row]), torch.tensor([length]), int(purpose), node)

            for node in range(0 if length == len(prompt) else min(depth, end - length - 1)):
                q.append(self.q(tokens + proposal))
                proposal.append(int(inverse_cdf(q[-1][None], coin(Purpose.DRAFT, node))))
            for node, x in enumerate(proposal):
                p = self.p(tokens)
                if not coin(Purpose.ACCEPT, node) < min(1.0, float(p[x] / q[node][x])):
                    residual = (p - q[node]).clamp(min=0)
                    break
                tokens.append(x)
                accepted += 1
            else:
                residual = self.p(tokens)
            tokens.append(int(inverse_cdf(residual[None], coin(Purpose.NEXT_TOKEN, 0))))
        return tokens[:end], accepted


def related(target: PreTrainedModel, mine: Any, other: Any) -> PreTrainedModel:
    """A draft of fewer, renumbered tokens: shared ones have the target's rows, so that it agrees often."""
    shared = SharedVocabulary(Spelling(mine), Spelling(other))
    draft = speaker(other, seed=3)
    draft = copy.deepcopy(draft)
    noisy = speaker(mine, noise=0.02)
    state = {n: w for n, w in noisy.state_dict().items() if "embed" not in n and "lm_head" not in n}
    draft.load_state_dict(state, strict=False)
    with torch.no_grad():
        for a, b in shared.to_draft.items():
            draft.model.embed_tokens.weight[b] = noisy.model.embed_tokens.weight[a]
            draft.lm_head.weight[b] = noisy.lm_head.weight[a]
    return draft


MINE, THEIRS = byte_level(100), byte_level(30, bos=True)


@pytest.mark.parametrize("warped", [False, True])
@torch.no_grad()
def test_equals_the_interpreter(warped: bool) -> None:
    """Sampled tokens, from an implementation that shares nothing but the coins and the table of shared tokens."""
    target = speaker(MINE)
    draft = related(target, MINE, THEIRS)
    options: dict[str, Any] = {"temperature": 0.7, "top_k": 30, "top_p": 0.95} if warped else {"top_k": 0}
    warpers = [hf.TemperatureLogitsWarper(0.7), hf.TopKLogitsWarper(30), hf.TopPLogitsWarper(0.95)] if warped else []
    out = specdec.generate(
        target,
        **prompts(2),
        **options,
        drafter=cross(draft, MINE, THEIRS, "intersection"),
        num_draft_tokens=3,
        do_sample=True,
        max_new_tokens=24,
        generator=torch.Generator().manual_seed(5),
        return_dict_in_generate=True,
    )
    seed = int(torch.randint(-(2**63), 2**63 - 1, (), generator=torch.Generator().manual_seed(5)))
    interpreter, total = Interpreter(target, draft, MINE, THEIRS, LogitsProcessorList(warpers)), 0
    for row in range(2):
        prompt = prompts(2)["input_ids"][row][prompts(2)["attention_mask"][row].bool()].tolist()
        expected, accepted = interpreter.run(prompt, 24, 3, seed, row)
        total += accepted
        assert out.sequences[row][-24 - len(prompt) :].tolist() == expected
    assert out.speculation.accepted == total > 0
    assert out.speculation.acceptance_rate < 0.95


class Biased(IntersectionSession):
    """Declares the draft's distribution without the renormalisation's own share: half of it is somewhere else."""

    def _choose(self, state: Any, scores: Tensor, q: list[Tensor], node: int) -> Tensor:
        token = super()._choose(state, scores, q, node)
        if q:
            q[-1] = (q[-1] + torch.ones_like(q[-1]) / q[-1].shape[-1]) / 2
        return token


def deviation(monkeypatch: pytest.MonkeyPatch, session: type[IntersectionSession]) -> float:
    """The p-value of a G-test of the second and third token of 2,000 rows, against the target's exact law."""
    from scipy.stats import chi2

    monkeypatch.setattr("specdec.drafters.cross_tokenizer.IntersectionSession", session)
    target, rows = speaker(MINE), 2000
    prompt = torch.tensor([[7, 8, 9, 7, 8]])
    out = specdec.generate(
        target,
        prompt.repeat(rows, 1),
        drafter=cross(related(target, MINE, THEIRS), MINE, THEIRS, "intersection"),
        num_draft_tokens=2,
        do_sample=True,
        top_k=4,
        max_new_tokens=3,
        generator=torch.Generator().manual_seed(11),
    )
    observed = torch.unique(out[:, 5:], dim=0, return_counts=True)
    counts = {tuple(o.tolist()): int(n) for o, n in zip(*observed, strict=True)}
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        ids = torch.tensor([[*prompt[0].tolist(), *outcome] for outcome in law])
        probs = hf.TopKLogitsWarper(4)(ids, target(ids).logits[:, -1].float()).softmax(-1)
        law = {
            (*o, int(t)): w * float(row[t])
            for (o, w), row in zip(law.items(), probs, strict=True)
            for t in row.nonzero()[:, 0]
        }
    assert set(counts) <= set(law)
    often = {o: rows * w for o, w in law.items() if rows * w >= 5}
    rest = rows - sum(often.values()), rows - sum(counts.get(o, 0) for o in often)
    cells = [(counts.get(o, 0), e) for o, e in often.items()] + ([(rest[1], rest[0])] if rest[0] > 1 else [])
    assert len(cells) > 10
    statistic = sum(2 * o * float(torch.tensor(o / e).log()) for o, e in cells if o)
    return float(chi2.sf(statistic, len(cells) - 1))


@torch.no_grad()
def test_the_law_of_sampled_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert deviation(monkeypatch, IntersectionSession) > 1e-6
    assert deviation(monkeypatch, Biased) < 1e-6, "a q that tokens were not drawn from goes unnoticed"


def test_q_is_over_the_targets_ids() -> None:
    """Nothing outside of the shared tokens, all of it in sum."""
    seen: list[specdec.Proposal] = []
    target = speaker(MINE)
    drafter = cross(related(target, MINE, THEIRS), MINE, THEIRS, "intersection")
    start = drafter.start

    def watched(state: specdec.DecodeState) -> Any:
        session = start(state)
        propose = session.propose
        session.propose = lambda state, limit: (seen.append(propose(state, limit)), seen[-1])[1]
        return session

    drafter.start = watched  # type: ignore[method-assign]
    specdec.generate(target, **prompts(2), drafter=drafter, do_sample=True, top_k=0, max_new_tokens=12)
    shared = torch.tensor(list(SharedVocabulary(Spelling(MINE), Spelling(THEIRS)).to_draft))
    drafted = [p for p in seen if p.num_nodes]
    assert drafted
    for proposal in drafted:
        assert proposal.q is not None and proposal.q.shape[-1] == target.config.vocab_size
        assert torch.allclose(proposal.q[..., shared].sum(-1), torch.ones(()))
        assert torch.allclose(proposal.q.sum(-1), torch.ones(()))


def test_nothing_allowed_is_shared() -> None:
    """Processors that leave no token of the intersection end a chain, not the call."""
    drafter = cross(speaker(THEIRS, seed=1), MINE, THEIRS, "intersection")
    longest = [t for t in range(len(MINE)) if t not in drafter._shared.to_draft][-4:]
    arguments = {**prompts(2), "max_new_tokens": 8, "prefix_allowed_tokens_fn": lambda _, __: longest}
    target = speaker(MINE)
    out = specdec.generate(target, **arguments, do_sample=False, drafter=drafter)
    assert torch.equal(out, target.generate(**arguments, do_sample=False))


def test_auto() -> None:
    """Greedy calls take the intersection where nearly all of the prompt is shared, sampled ones where half of it is."""
    started: list[str] = []

    def method(mine: Any, other: Any, ids: list[int], do_sample: bool) -> str:
        drafter = cross(speaker(other, seed=1), mine, other, "auto")
        start = drafter.start
        drafter.start = lambda state: (s := start(state), started.append(type(s).__name__))[0]  # type: ignore[method-assign]
        specdec.generate(speaker(mine), torch.tensor([ids]), drafter=drafter, do_sample=do_sample, max_new_tokens=2)
        return started[-1]

    text, intersection = TextSession.__name__, IntersectionSession.__name__
    shared = SharedVocabulary(Spelling(MINE), Spelling(THEIRS)).to_draft
    known = [t for t in shared if t in Spelling(MINE).ordinary]
    unknown = [t for t in Spelling(MINE).ordinary if t not in shared]
    assert method(MINE, THEIRS, known[:20], do_sample=False) == intersection
    assert method(MINE, THEIRS, known[:18] + unknown[:2], do_sample=False) == text
    assert method(MINE, THEIRS, known[:18] + unknown[:2], do_sample=True) == intersection
    assert method(MINE, THEIRS, known[:9] + unknown[:11], do_sample=True) == text


def test_errors() -> None:
    """Each before any forward, each with what to do instead."""
    model = speaker(MINE)
    with pytest.raises(specdec.DraftMismatchError, match="ModelDrafter"):
        cross(model, MINE, MINE, "auto")
    with pytest.raises(specdec.DraftMismatchError, match="draft_tokenizer has ids up to"):
        cross(speaker(THEIRS), THEIRS, MINE, "auto")
    with pytest.raises(specdec.DraftMismatchError, match="another model's"):
        cross(tiny("llama", vocab_size=2000), MINE, THEIRS, "auto")
    with pytest.raises(specdec.DraftMismatchError, match="target_tokenizer has ids up to"):
        specdec.generate(
            speaker(THEIRS),
            **prompts(1),
            max_new_tokens=4,
            drafter=cross(speaker(unigram()), MINE, unigram(), "text"),
        )
    with pytest.raises(specdec.OptionError, match="'text', 'intersection' or 'auto'"):
        cross(model, THEIRS, MINE, "words")
    with pytest.raises(specdec.OptionError, match="target_tokenizer must be"):
        cross(model, "gpt2", MINE, "auto")
    mamba = families.family("mamba2")
    with pytest.raises(specdec.UnsupportedModelError, match="method='intersection'"):
        cross(mamba, MINE, characters(), "text")
    with pytest.raises(specdec.UnsupportedModelError, match="decoder-only"):
        cross(families.family("t5"), MINE, characters(), "auto")
    bloom = families.family("bloom")
    drafter = cross(bloom, byte_level(30, bos=True), characters(), "text")
    with pytest.raises(specdec.UnsupportedModelError, match="one row at a time"):
        specdec.generate(speaker(THEIRS), **prompts(2), max_new_tokens=4, drafter=drafter)
    upper = PreTrainedTokenizerFast(tokenizer_object=_only("A", "B"))
    lower = PreTrainedTokenizerFast(tokenizer_object=_only("a", "b", "c"))
    with pytest.raises(specdec.DraftMismatchError, match="no token in common"):
        cross(TARGET, upper, lower, "intersection")
    assert cross(TARGET, upper, lower, "auto").coverage == 0


def _only(*words: str) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))


def test_a_tokenizer_that_cannot_say() -> None:
    """No unknown token where one would be needed: such rows propose nothing, the others go on."""
    upper = PreTrainedTokenizerFast(tokenizer_object=_only("A", "B"))
    arguments = {**prompts(2), "max_new_tokens": 8, "do_sample": False}
    drafter = cross(tiny("llama", seed=1), characters(), upper, "text")
    out = specdec.generate(TARGET, **arguments, drafter=drafter)
    assert torch.equal(out, TARGET.generate(**arguments))
    assert word_pieces() is not upper
