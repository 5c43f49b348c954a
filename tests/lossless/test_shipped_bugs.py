"""Bugs that other systems shipped, one named test each (docs/faults.md has the list).

Most use a drafter that knows the target's text, so that whole blocks are accepted, and that can be told to be wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import families
import pytest
import torch
from equality.letters import letters
from models import PENALTY_KNOWS_PADDING, VOCAB_SIZE, prompts, tiny
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

import specdec

TARGET = tiny("llama")
PROMPT = 11
DEPTH = 4


class Oracle(specdec.Drafter):
    """Proposes a known text; `is_wrong` says at which steps another token.

    Args:
        texts: [B, P + N] what the target writes.
        prompt_length: P.
        is_wrong: gets the number of new tokens at which a token would stand.
    """

    def __init__(
        self, texts: Tensor, prompt_length: int = PROMPT, is_wrong: Callable[[int], bool] = lambda _: False
    ) -> None:
        self._new, self._is_wrong = texts[:, prompt_length:].tolist(), is_wrong

    def start(self, state: specdec.DecodeState) -> specdec.DraftSession:
        session = specdec.DraftSession()
        session.propose = self._propose  # type: ignore[method-assign]
        return session

    def guess(self, row: int, step: int) -> int:
        token = self._new[row][step] if step < len(self._new[row]) else 3
        return (token + 1) % VOCAB_SIZE if self._is_wrong(step) else token

    def _propose(self, state: specdec.DecodeState, limit: Sequence[int]) -> specdec.Proposal:
        done = [len(t) - p for t, p in zip(state.host_tokens, state.prompt_lengths, strict=True)]
        steps = range(max(limit))
        rows = [[self.guess(r, n + s) for s in steps] for r, n in zip(state.host_requests, done, strict=True)]
        return specdec.Proposal.chain(torch.tensor(rows))


def decoded(
    target: PreTrainedModel, drafter: specdec.Drafter, least_accepted: int = 1, **arguments: Any
) -> specdec.SpeculativeOutput:
    """What specdec returns, of a call in which blocks were accepted."""
    out = specdec.generate(
        target, drafter=drafter, num_draft_tokens=DEPTH, return_dict_in_generate=True,
        **{"do_sample": False, **arguments},
    )  # fmt: skip
    assert isinstance(out, specdec.SpeculativeOutput)
    assert out.speculation is not None
    assert out.speculation.accepted >= least_accepted
    return out


def plain_logits(target: PreTrainedModel, sequence: Tensor, new: int) -> Tensor:
    """[new, V] what one forward over a row without padding gives before each of its last tokens."""
    with torch.no_grad():
        return target(sequence[None]).logits[0, -new - 1 : -1]


def without_padding(sequences: Tensor, row: int) -> Tensor:
    return sequences[row, int((prompts(3)["attention_mask"][row] == 0).sum()) :]


@pytest.mark.parametrize("place", [1, 3, 4, 5, 6])
def test_eos_inside_an_accepted_block(place: int) -> None:
    """What is accepted behind EOS is no output."""
    free = TARGET.generate(**prompts(1), max_new_tokens=16)
    eos = int(free[0, PROMPT + place])
    arguments = {**prompts(1), "max_new_tokens": 16, "eos_token_id": eos}
    out = decoded(TARGET, Oracle(free), **arguments, least_accepted=0).sequences
    assert torch.equal(out, TARGET.generate(**arguments))
    assert out.shape[1] <= PROMPT + place + 1


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("most", [1, 2, 4, 5, 6, 9])
def test_max_new_tokens_overshoot(most: int, batch_size: int) -> None:
    """However blocks fall: no token too many, neither returned nor published."""
    texts = TARGET.generate(**prompts(batch_size), max_new_tokens=20)
    published = [0] * batch_size

    def on_commit(part: specdec.Committed) -> None:
        published[part.request] += len(part.tokens)

    out = decoded(
        TARGET, Oracle(texts), least_accepted=0, **prompts(batch_size), max_new_tokens=most, on_commit=on_commit
    )
    assert torch.equal(out.sequences, texts[:, : PROMPT + most])
    assert published == [most] * batch_size


@pytest.mark.parametrize("begin", [2, 3, 4, 5])
def test_stop_strings_across_a_block(begin: int) -> None:
    """A string that ends amid a block, begun in the one before: no token behind it."""
    free = TARGET.generate(**prompts(1), max_new_tokens=20)
    words = letters().convert_ids_to_tokens(free[0, PROMPT + begin : PROMPT + begin + 3].tolist())
    arguments = {**prompts(1), "max_new_tokens": 20, "stop_strings": ["".join(words)], "tokenizer": letters()}
    expected = TARGET.generate(**arguments)
    assert expected.shape[1] <= PROMPT + begin + 3
    out = decoded(TARGET, Oracle(free), **arguments)
    assert torch.equal(out.sequences, expected)


PREFIX_RULES: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.8},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2, "prefix_allowed_tokens_fn": lambda _, __: [7, 8, 9, 10, 11]},
    "min_new_tokens": {"min_new_tokens": 13},
    "min_length": {"min_length": PROMPT + 13},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (3, 1.2)},
}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("rule", PREFIX_RULES)
def test_penalties_that_see_only_the_last_accepted_token(rule: str, batch_size: int) -> None:
    """Each place of a block has a prefix of its own, of the length that it would have alone."""
    if rule == "repetition_penalty" and batch_size > 1 and not PENALTY_KNOWS_PADDING:
        pytest.skip("this transformers penalises the padding token in left-padded rows")
    free = TARGET.generate(**prompts(batch_size), max_new_tokens=24)
    arguments = {**prompts(batch_size), "max_new_tokens": 24, "eos_token_id": int(free[0, PROMPT + 6])}
    arguments |= PREFIX_RULES[rule]
    expected = TARGET.generate(**arguments)
    out = decoded(TARGET, Oracle(expected), **arguments, least_accepted=4)
    assert torch.equal(out.sequences, expected)


@pytest.mark.parametrize("size", [VOCAB_SIZE - 16, VOCAB_SIZE + 32])
@pytest.mark.parametrize("do_sample", [False, True])
def test_padded_vocabularies(do_sample: bool, size: int) -> None:
    """A draft whose matrices are padded to another size neither proposes padding nor breaks anything."""
    draft, own = copy.deepcopy(tiny("llama", vocab_size=size)), TARGET.state_dict()
    with torch.no_grad():  # the target itself, with fewer tokens or with padding that is as likely as a token
        for name, parameter in draft.named_parameters():
            parameter[: len(own[name])] = own[name][: len(parameter)]
    assert draft.config.vocab_size == size
    inputs = prompts(3)
    inputs["input_ids"] = inputs["input_ids"] % (VOCAB_SIZE - 20)
    for seed in range(3):
        torch.manual_seed(seed)
        out = decoded(TARGET, specdec.ModelDrafter(draft), **inputs, max_new_tokens=24, do_sample=do_sample)
        assert int(out.sequences.max()) < VOCAB_SIZE
        if not do_sample:
            assert torch.equal(out.sequences, TARGET.generate(**inputs, max_new_tokens=24))


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE, VOCAB_SIZE + 1, 2**40])
@pytest.mark.parametrize("do_sample", [False, True])
def test_out_of_range_ids(do_sample: bool, token: int) -> None:
    """In a prompt or a proposal: a typed error, and never the embedding of another token."""
    ids = prompts(1)["input_ids"].clone()
    ids[0, 3] = token
    with pytest.raises(specdec.InputError, match="outside the target's vocabulary"):
        specdec.generate(TARGET, ids, max_new_tokens=4)

    class Outside(Oracle):
        def guess(self, row: int, step: int) -> int:
            return token if step == 3 else super().guess(row, step)

    texts = TARGET.generate(**prompts(1), max_new_tokens=9)
    with pytest.raises(specdec.DrafterError, match="token id outside"):
        decoded(TARGET, Outside(texts), **prompts(1), max_new_tokens=9, do_sample=do_sample)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_zeroed_keys_that_still_enter_the_softmax(architecture: str) -> None:
    """Rows that accept differently: a slot that a row has not filled has no weight at all, not that of a zero key."""
    target = tiny(architecture)
    texts = target.generate(**prompts(3), max_new_tokens=24)

    class Ragged(Oracle):
        def guess(self, row: int, step: int) -> int:
            token = super().guess(row, step)
            return token if step % (row + 2) else (token + 1) % VOCAB_SIZE

    out = decoded(target, Ragged(texts), **prompts(3), max_new_tokens=24, output_logits=True)
    assert out.logits is not None
    assert torch.equal(out.sequences, texts)
    for row in range(3):
        ours = torch.stack([step[row] for step in out.logits])
        torch.testing.assert_close(
            ours, plain_logits(target, without_padding(texts, row), 24).to(ours), rtol=0, atol=1e-5
        )


def test_the_kv_of_the_bonus_token() -> None:
    """After a block that is accepted wholly its last token has keys and values, and the bonus token gets its own."""
    texts = TARGET.generate(**prompts(1), max_new_tokens=24)
    out = decoded(TARGET, Oracle(texts), **prompts(1), max_new_tokens=24, output_logits=True, least_accepted=16)
    assert out.logits is not None and out.past_key_values is not None
    ours = torch.stack([step[0] for step in out.logits])
    torch.testing.assert_close(ours, plain_logits(TARGET, texts[0], 24).to(ours), rtol=0, atol=1e-5)
    with torch.no_grad():
        plain = TARGET(texts[:, :-1], use_cache=True).past_key_values
    for one, other in zip(out.past_key_values.to_dynamic_cache().layers, plain.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, rtol=0, atol=1e-9)
        torch.testing.assert_close(one.values, other.values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", ["mistral", "cohere2"])
def test_the_sliding_window_after_a_rollback(name: str, every: int) -> None:
    """Rejected tokens have overwritten nothing that a window of 8 still looks at, many windows on."""
    target, inputs = families.family(name), prompts(1)
    texts = target.generate(**inputs, max_new_tokens=60)
    drafter = Oracle(texts, is_wrong=lambda step: step % every == 0)
    out = decoded(target, drafter, **inputs, max_new_tokens=60, output_logits=True, least_accepted=int(every > 1))
    assert torch.equal(out.sequences, texts)
    assert out.logits is not None
    ours = torch.stack([step[0] for step in out.logits])
    torch.testing.assert_close(ours, plain_logits(target, texts[0], 60).to(ours), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_neox"])
def test_tree_positions_under_rope(name: str) -> None:
    """A node's position is its depth, not its place in the window: wrong siblings before it move nothing."""
    target = families.family(name)
    texts = target.generate(**prompts(1), max_new_tokens=25)

    class Forked(Oracle):
        def _propose(self, state: specdec.DecodeState, limit: Sequence[int]) -> specdec.Proposal:
            done, depth = len(state.host_tokens[0]) - state.prompt_lengths[0], min(3, max(limit))
            tokens, parents, above = [], [], -1
            for level in range(depth):
                right = self.guess(0, done + level)
                for wrong in (1, 2):
                    tokens.append((right + wrong) % VOCAB_SIZE)
                    parents.append(above)
                tokens.append(right)
                parents.append(above)
                above = len(tokens) - 1
            valid = torch.ones(1, len(tokens), dtype=torch.bool)
            return specdec.Proposal(torch.tensor([tokens]), torch.tensor([parents]), valid, depth=depth, width=3)

    out = decoded(target, Forked(texts), **prompts(1), max_new_tokens=25, output_logits=True, least_accepted=18)
    assert torch.equal(out.sequences, texts)
    assert out.logits is not None
    ours = torch.stack([step[0] for step in out.logits])
    torch.testing.assert_close(ours, plain_logits(target, texts[0], 25).to(ours), rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_static_cache_overflow(architecture: str) -> None:
    """Buffers grow in time: over the first 64 slots, where a block begins before them and ends behind."""
    target = tiny(architecture)
    for length in (10, 12):
        inputs = prompts(1, length=length)
        texts = target.generate(**inputs, max_new_tokens=60)
        out = decoded(target, Oracle(texts, length), **inputs, max_new_tokens=60, least_accepted=40)
        assert torch.equal(out.sequences, texts)


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_positions_behind_the_contexts_end(architecture: str, offset: int) -> None:
    """No row is fed positions that there are not: the first one runs ahead of the others, to the last of 40.

    They go on asking for drafts of full depth, and this drafter gives them to all rows alike.
    """
    size = {"n_positions": 40} if architecture == "gpt2" else {"max_position_embeddings": 40}
    target, inputs, most = tiny(architecture, **size), prompts(3), 40 - PROMPT
    texts = target.generate(**inputs, max_new_tokens=most)

    class Ahead(Oracle):
        def guess(self, row: int, step: int) -> int:
            token = super().guess(row, step)
            return token if row == 0 and step > offset else (token + 1) % VOCAB_SIZE

    out = decoded(target, Ahead(texts), **inputs, max_new_tokens=most, least_accepted=16)
    assert torch.equal(out.sequences, texts)
    with pytest.raises(specdec.InputError, match="40"):
        specdec.generate(target, **inputs, max_new_tokens=most + 1)


class Steps(BaseStreamer):
    def __init__(self) -> None:
        self.steps: list[list[int]] = []

    def put(self, value: Tensor) -> None:
        self.steps.append(value.tolist())

    def end(self) -> None:
        """Nothing is held back."""


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_last_token_only_being_streamed(batch_size: int) -> None:
    """Of a block each token is streamed, in order, a step a time."""
    texts, streamer = TARGET.generate(**prompts(batch_size), max_new_tokens=20), Steps()
    decoded(TARGET, Oracle(texts), **prompts(batch_size), max_new_tokens=20, streamer=streamer, least_accepted=12)
    assert streamer.steps[1:] == texts[:, PROMPT:].T.tolist()


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_seeds_ignored(rule: Any) -> None:
    """The same seed, the same text; another seed, or another row of the same prompt, another text."""
    arguments: dict[str, Any] = {
        "input_ids": prompts(1)["input_ids"], "num_return_sequences": 2, "max_new_tokens": 16, "do_sample": True,
        "temperature": 3.0, "drafter": tiny("llama", noise=0.02), "num_draft_tokens": DEPTH, "rule": rule,
    }  # fmt: skip

    def by_global(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return specdec.generate(TARGET, **arguments)

    def by_own(seed: int) -> Tensor:
        return specdec.generate(TARGET, **arguments, generator=torch.Generator().manual_seed(seed))

    for draw in (by_global, by_own):
        one = draw(5)
        torch.rand(3)
        assert torch.equal(draw(5), one)
        assert not torch.equal(draw(6), one)
        assert not torch.equal(one[0], one[1])
    torch.manual_seed(5)
    calls = [specdec.generate(TARGET, **arguments) for _ in range(2)]
    assert not torch.equal(*calls), "a second call of a seeded program draws anew"


@pytest.mark.parametrize("drafter", ["early-exit:1", specdec.LayerSkipDrafter([1])], ids=["exit", "skip"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_early_exit_without_finally(after: int, drafter: Any) -> None:
    """An exception amid a draft of fewer layers leaves the target with all of them."""
    layers, calls = len(TARGET.model.layers), 0
    expected = TARGET.generate(**prompts(1), max_new_tokens=12)
    config = TARGET.config.to_dict()

    def fails(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise ZeroDivisionError

    # In the first layer, which drafts and the target share, or between rounds.
    for place in ("layer", "round"):
        calls = 0
        handle = TARGET.model.layers[0].register_forward_hook(fails) if place == "layer" else None
        try:
            with pytest.raises(ZeroDivisionError):
                specdec.generate(
                    TARGET, **prompts(1), drafter=drafter, num_draft_tokens=3, max_new_tokens=12,
                    on_commit=fails if place == "round" else None,
                )  # fmt: skip
        finally:
            if handle is not None:
                handle.remove()
        assert len(TARGET.model.layers) == layers
        assert TARGET.config.to_dict() == config
        assert torch.equal(TARGET.generate(**prompts(1), max_new_tokens=12), expected)
