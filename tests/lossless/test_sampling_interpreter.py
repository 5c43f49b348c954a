"""Sampled output equals that of an uncached, one-token-at-a-time interpreter driven by the same coins.

The interpreter shares nothing with the loop but the coins: no cache, no window, no mask, no batch, the
acceptance rule written from the paper for one token at a time, HF's processors called as HF calls them.
"""

from __future__ import annotations

import pytest
import torch
from models import PENALTY_KNOWS_PADDING, prompts, tiny
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel
from transformers.generation import logits_process as hf

import specdec
from specdec.verify.coins import Purpose, inverse_cdf, uniform

NEW_TOKENS = 40
DEPTH = 3
WARPERS = {
    "plain": ({}, LogitsProcessorList()),
    "warped": (
        {"temperature": 0.7, "top_k": 20, "top_p": 0.95},
        LogitsProcessorList([hf.TemperatureLogitsWarper(0.7), hf.TopKLogitsWarper(20), hf.TopPLogitsWarper(0.95)]),
    ),
    "penalised": (
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_p": 0.02},
        LogitsProcessorList(
            [
                hf.RepetitionPenaltyLogitsProcessor(1.3),
                hf.NoRepeatNGramLogitsProcessor(2),
                hf.MinPLogitsWarper(0.02),
            ]
        ),
    ),
}


class Interpreter:
    """Chain rejection sampling (Alg. 1, arXiv:2211.17192), one row, no cache."""

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel,
        processors: LogitsProcessorList,
        seed: int,
        request: int,
    ):
        self.target, self.draft, self.processors = target, draft, processors
        self.seed, self.request = seed, request

    def distribution(self, model: PreTrainedModel, tokens: list[int]) -> Tensor:
        ids = torch.tensor([tokens])
        scores = model(ids).logits[:, -1].float()
        return self.processors(ids, scores).softmax(-1)[0]

    def coin(self, length: int, purpose: Purpose, node: int) -> Tensor:
        return uniform(self.seed, torch.tensor([self.request]), torch.tensor([length]), int(purpose), node)

    def run(self, prompt: list[int]) -> tuple[list[int], int]:
        tokens, accepted = list(prompt), 0
        end = len(prompt) + NEW_TOKENS
        while len(tokens) < end:
            length = len(tokens)
            depth = 0 if length == len(prompt) else min(DEPTH, end - length - 1)
            proposal, q = [], []
            for node in range(depth):
                q.append(self.distribution(self.draft, tokens + proposal))
                proposal.append(int(inverse_cdf(q[-1][None], self.coin(length, Purpose.DRAFT, node))))
            for node, x in enumerate(proposal):
                p = self.distribution(self.target, tokens)
                if self.coin(length, Purpose.ACCEPT, node) < min(1.0, float(p[x] / q[node][x])):
                    tokens.append(x)
                    accepted += 1
                    continue
                residual = (p - q[node]).clamp(min=0)
                break
            else:
                residual = self.distribution(self.target, tokens)
            tokens.append(int(inverse_cdf(residual[None], self.coin(length, Purpose.NEXT_TOKEN, 0))))
        return tokens[:end], accepted


def seed_drawn_by_generate(seed: int) -> int:
    """generate() draws the seed of its coins from the generator that it is given."""
    return int(torch.randint(-(2**63), 2**63 - 1, (), generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("warper", WARPERS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@torch.no_grad()
def test_equals_the_interpreter(architecture: str, warper: str, batch_size: int) -> None:
    if warper == "penalised" and batch_size > 1 and not PENALTY_KNOWS_PADDING:
        pytest.skip("this transformers penalises the padding token in left-padded rows; the interpreter has no padding")
    target, draft = tiny(architecture), tiny(architecture, noise=0.05)
    inputs = prompts(batch_size)
    options, processors = WARPERS[warper]
    out = specdec.generate(
        target,
        **inputs,
        drafter=draft,
        num_draft_tokens=DEPTH,
        do_sample=True,
        **{"top_k": 0, **options},
        max_new_tokens=NEW_TOKENS,
        generator=torch.Generator().manual_seed(5),
        return_dict_in_generate=True,
    )
    accepted = 0
    for row in range(batch_size):
        keep = inputs["attention_mask"][row].bool()
        prompt = inputs["input_ids"][row][keep].tolist()
        interpreter = Interpreter(target, draft, processors, seed_drawn_by_generate(5), row)
        expected, taken = interpreter.run(prompt)
        accepted += taken
        assert out.sequences[row][-NEW_TOKENS - len(prompt) :].tolist() == expected
    assert 0.2 < out.speculation.acceptance_rate < 0.98
    assert out.speculation.accepted == accepted


def test_the_same_seed_gives_the_same_text_whatever_the_batch() -> None:
    """A row's coins depend on its request number only; alone or beside others it samples the same."""
    target, inputs = tiny("llama"), prompts(3)
    arguments = {"drafter": tiny("llama", noise=0.05), "num_draft_tokens": 3, "do_sample": True, "max_new_tokens": 30}
    together = specdec.generate(target, **inputs, **arguments, generator=torch.Generator().manual_seed(1))
    alone = specdec.generate(target, inputs["input_ids"][:1], **arguments, generator=torch.Generator().manual_seed(1))
    assert torch.equal(together[:1], alone)


def test_seeding() -> None:
    """torch.manual_seed decides the output as in transformers; calls in a row differ; greedy draws nothing."""
    target, inputs = tiny("llama"), prompts(1)
    arguments = {**inputs, "drafter": specdec.NgramDrafter(), "max_new_tokens": 20}
    torch.manual_seed(3)
    first = specdec.generate(target, **arguments, do_sample=True)
    second = specdec.generate(target, **arguments, do_sample=True)
    torch.manual_seed(3)
    again = specdec.generate(target, **arguments, do_sample=True)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    specdec.generate(target, **arguments, do_sample=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rule", ["rejection", "block"])
@pytest.mark.parametrize("kind", ["model", "ngram", "none"])
def test_marginal_of_the_second_token(kind: str, rule: str) -> None:
    """G-test end to end: 3,000 rows of one prompt, second and third new token against exact enumeration."""
    from scipy.stats import chi2

    target = tiny("llama")
    n = 3000
    prompt = torch.tensor([[7, 8, 9, 7, 8]])
    drafter = {"model": tiny("llama", noise=0.05), "ngram": specdec.NgramDrafter(min_ngram=1), "none": None}[kind]
    out = specdec.generate(
        target,
        prompt.repeat(n, 1),
        drafter=drafter,
        num_draft_tokens=2,
        rule=rule,
        do_sample=True,
        top_k=4,
        max_new_tokens=3,
        generator=torch.Generator().manual_seed(11),
    )
    observed: dict[tuple[int, ...], int] = {}
    for row in out[:, 5:].tolist():
        observed[tuple(row)] = observed.get(tuple(row), 0) + 1
    expected = _law(target, prompt, top_k=4, depth=3)
    assert set(observed) <= set(expected)
    statistic, cells, rest_o, rest_e = 0.0, 0, 0, 0.0
    for outcome, probability in expected.items():
        o, e = observed.get(outcome, 0), n * probability
        if e < 5:
            rest_o, rest_e = rest_o + o, rest_e + e
            continue
        statistic += 2 * (o * torch.tensor(o / e).log().item() if o else 0.0)
        cells += 1
    if rest_e > 0 and rest_o > 0:
        statistic += 2 * rest_o * torch.tensor(rest_o / rest_e).log().item()
        cells += 1
    assert cells > 10
    assert chi2.sf(statistic, cells - 1) > 1e-6


@torch.no_grad()
def _law(target: PreTrainedModel, prompt: Tensor, top_k: int, depth: int) -> dict[tuple[int, ...], float]:
    """The exact joint law of the next `depth` tokens, by enumeration of the target alone."""
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(depth):
        longer: dict[tuple[int, ...], float] = {}
        for outcome, probability in law.items():
            ids = torch.cat([prompt, torch.tensor([outcome], dtype=torch.int64)], 1)
            scores = hf.TopKLogitsWarper(top_k)(ids, target(ids).logits[:, -1].float())
            for token, p in enumerate(scores.softmax(-1)[0].tolist()):
                if p > 0:
                    longer[(*outcome, token)] = probability * p
        law = longer
    return law
