"""Fixed shapes: the target's verify step is one graph, whatever is accepted.

Window, forward, acceptance and commit are traced together: widths and extents are constants, lengths
and tokens are tensors. This is what a compiled fast path needs of the cache; it must stay possible.
"""

from __future__ import annotations

import pytest
import torch
from models import VOCAB_SIZE, prompts, tiny
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from specdec.cache import RollbackCache
from specdec.target import ModelRunner
from specdec.types import Proposal
from specdec.verify import greedy
from specdec.window import Plan, build_window

DRAFT_TOKENS = 4
WIDTH = 1 + DRAFT_TOKENS
CAPACITY = 128
FIXED = Plan(WIDTH, CAPACITY, masked=True, level=False)
STEPS = 20


class Verifier:
    """The eager or compiled verify step over its own cache."""

    def __init__(self, runner: ModelRunner, prompt: Tensor, mask: Tensor) -> None:
        self.runner = runner
        batch_size = len(prompt)
        self.cache: RollbackCache = runner.new_cache(batch_size, CAPACITY)
        self.lengths = mask.sum(1)
        self.tokens = torch.zeros(batch_size, CAPACITY, dtype=torch.int64)
        for b in range(batch_size):
            self.tokens[b, : self.lengths[b]] = prompt[b, mask[b].bool()]
        width = int(self.lengths.max())
        nothing = Proposal.empty(batch_size, prompt.device)
        shape = Plan(width, width, masked=False, level=True)
        window = build_window(self.tokens, self.lengths, self.cache.lengths, nothing, shape)
        self.runner.forward(window, self.cache, keep=width)
        self.cache.commit(self.lengths - 1)  # the last prompt token is fed again, as any pending token

    def step(self, tokens: Tensor, lengths: Tensor, drafted: Tensor) -> tuple[Tensor, Tensor]:
        proposal = Proposal.chain(drafted)
        window = build_window(tokens, lengths, self.cache.lengths, proposal, FIXED)
        logits = self.runner.forward(window, self.cache, keep=WIDTH).logits
        acceptance = greedy(logits, proposal)
        self.cache.commit(window.num_pending + acceptance.num_accepted)
        return acceptance.tokens(proposal), acceptance.num_accepted

    def advance(self, new: Tensor, num_accepted: Tensor) -> None:
        for b, accepted in enumerate(num_accepted.tolist()):
            start = int(self.lengths[b])
            self.tokens[b, start : start + accepted + 1] = new[b, : accepted + 1]
        self.lengths = self.lengths + num_accepted + 1


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
@pytest.mark.parametrize("batch_size", [1, 3])
@torch.no_grad()
def test_verify_step_is_one_graph(backend: str, batch_size: int) -> None:
    target = tiny("llama")
    inputs = prompts(batch_size)
    mask = inputs["attention_mask"]
    answer = target.generate(**inputs, max_new_tokens=STEPS * WIDTH, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    eager = Verifier(ModelRunner(target), inputs["input_ids"], mask)
    compiled = Verifier(ModelRunner(target), inputs["input_ids"], mask)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    step = torch.compile(compiled.step, fullgraph=True, dynamic=False, backend=counter)
    generator = torch.Generator().manual_seed(0)
    accepted: set[int] = set()
    produced = torch.zeros(batch_size, dtype=torch.int64)
    for _ in range(STEPS):
        wrong = torch.randint(0, VOCAB_SIZE, (batch_size, DRAFT_TOKENS), generator=generator)
        right = torch.stack([answer[b, produced[b] : produced[b] + DRAFT_TOKENS] for b in range(batch_size)])
        lucky = torch.randint(0, DRAFT_TOKENS + 1, (batch_size, 1), generator=generator)
        drafted = torch.where(torch.arange(DRAFT_TOKENS) < lucky, right, wrong)
        expected, num_expected = eager.step(eager.tokens, eager.lengths, drafted)
        new, num_new = step(compiled.tokens, compiled.lengths, drafted)
        assert torch.equal(num_new, num_expected)
        for b, n in enumerate(num_expected.tolist()):
            assert torch.equal(new[b, : n + 1], expected[b, : n + 1])
            assert torch.equal(new[b, : n + 1], answer[b, produced[b] : produced[b] + n + 1])
        eager.advance(expected, num_expected)
        compiled.advance(new, num_new)
        produced += num_expected + 1
        accepted.update(num_expected.tolist())
    assert accepted == set(range(DRAFT_TOKENS + 1)), "every amount of acceptance must occur"
    assert counter.frame_count == 1, "a recompilation or a graph break"
    for one, other in zip(eager.cache.layers, compiled.cache.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, rtol=0, atol=1e-5)  # rope is float32 inside
