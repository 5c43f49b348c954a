"""The edge: arguments, outputs, refusals, and what is left behind after an error."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import VOCAB_SIZE, prompts, tiny
from transformers import GenerationConfig, LogitsProcessor

import specdec

TARGET = tiny("llama")
DRAFT = tiny("llama", noise=0.02)
INPUTS = prompts(2)


class Forwards:
    """Counts the target's forwards."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *_: Any) -> None:
        self.count += 1


@pytest.fixture
def forwards() -> Any:
    counter = Forwards()
    handle = TARGET.register_forward_hook(counter)
    yield counter
    handle.remove()


def test_return_types() -> None:
    """A tensor, or transformers' output class with statistics, as target.generate() would."""
    plain = specdec.generate(TARGET, **INPUTS, drafter=DRAFT, max_new_tokens=5)
    assert isinstance(plain, torch.Tensor)
    out = specdec.generate(TARGET, **INPUTS, drafter=DRAFT, max_new_tokens=5, return_dict_in_generate=True)
    assert isinstance(out, type(TARGET.generate(**INPUTS, max_new_tokens=1, return_dict_in_generate=True)))
    assert torch.equal(out.sequences, plain)
    assert isinstance(out.speculation, specdec.SpeculationStats)


def test_generation_config_object_and_default_length() -> None:
    """A GenerationConfig works as in transformers, and is not changed."""
    config = GenerationConfig(max_new_tokens=7, do_sample=False, pad_token_id=0)
    before = config.to_dict()
    out = specdec.generate(TARGET, **INPUTS, generation_config=config, drafter=DRAFT)
    assert torch.equal(out, TARGET.generate(**INPUTS, generation_config=config))
    assert config.to_dict() == before


def test_positional_inputs_without_a_mask() -> None:
    ids = INPUTS["input_ids"][:1]
    out = specdec.generate(TARGET, ids, drafter=specdec.NgramDrafter(), max_new_tokens=9)
    assert torch.equal(out, TARGET.generate(ids, max_new_tokens=9))


def test_num_return_sequences() -> None:
    """Several samples of one prompt are rows of their own, with coins of their own."""
    out = specdec.generate(
        TARGET, INPUTS["input_ids"][:1], drafter=DRAFT, do_sample=True, num_return_sequences=3, max_new_tokens=12
    )
    assert out.shape[0] == 3
    assert len({tuple(row.tolist()) for row in out}) == 3


def test_decoder_is_reusable() -> None:
    decoder = specdec.SpeculativeDecoder(DRAFT, num_draft_tokens=3, rule="block")
    for _ in range(2):
        out = decoder.generate(TARGET, **INPUTS, max_new_tokens=10)
        assert torch.equal(out, TARGET.generate(**INPUTS, max_new_tokens=10))


def test_on_commit_sees_every_token_in_order() -> None:
    seen: dict[int, list[int]] = {0: [], 1: []}
    accepted = 0

    def collect(part: specdec.Committed) -> None:
        nonlocal accepted
        seen[part.request] += part.tokens
        accepted += part.num_accepted
        assert part.num_accepted <= len(part.tokens)

    out = specdec.generate(
        TARGET, **INPUTS, drafter=DRAFT, num_draft_tokens=4, max_new_tokens=20, on_commit=collect,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert [seen[0], seen[1]] == out.sequences[:, INPUTS["input_ids"].shape[1] :].tolist()
    assert accepted <= out.speculation.accepted


class CustomProcessor(LogitsProcessor):
    """Forbids the token before last: a pure function of the prefix."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.scatter(1, input_ids[:, -2:-1], float("-inf"))


def test_a_users_own_processor() -> None:
    arguments = {**INPUTS, "max_new_tokens": 30, "logits_processor": [CustomProcessor()]}
    out = specdec.generate(TARGET, **arguments, drafter=DRAFT, num_draft_tokens=4)
    assert torch.equal(out, TARGET.generate(**arguments))


BAD_CALLS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "misspelled": ({"max_new_token": 5}, specdec.OptionError, "max_new_tokens"),
    "misspelled own": ({"num_draft_token": 5}, specdec.OptionError, "num_draft_tokens"),
    "zero drafts": ({"num_draft_tokens": 0}, specdec.OptionError, "from 1 to"),
    "negative drafts": ({"num_draft_tokens": -2}, specdec.OptionError, "from 1 to"),
    "fractional drafts": ({"num_draft_tokens": 2.5}, specdec.OptionError, "from 1 to"),
    "float drafts": ({"num_draft_tokens": 2.0}, specdec.OptionError, "from 1 to"),
    "paged": ({"cache_implementation": "paged"}, specdec.UnsupportedOptionError, "cache_implementation"),
    "mask list": ({"input_ids": torch.tensor([[1, 2]]), "attention_mask": [[1, 1]]}, specdec.InputError, "tensor"),
    "rule": ({"rule": "typical"}, specdec.OptionError, "rejection"),
    "no drafter": ({"drafter": "model"}, specdec.OptionError, "there is no drafter"),
    "a class": ({"drafter": specdec.NgramDrafter}, specdec.OptionError, "Drafter"),
    "id too large": ({"input_ids": torch.tensor([[1, VOCAB_SIZE]])}, specdec.InputError, "vocabulary"),
    "id negative": ({"input_ids": torch.tensor([[1, -1]])}, specdec.InputError, "vocabulary"),
    "empty": ({"input_ids": torch.empty(1, 0, dtype=torch.int64)}, specdec.InputError, "empty"),
    "no rows": ({"input_ids": torch.empty(0, 4, dtype=torch.int64)}, specdec.InputError, "empty"),
    "text": ({"input_ids": "def f():"}, specdec.InputError, "tokenize"),
    "1D": ({"input_ids": torch.tensor([1, 2])}, specdec.InputError, "batch"),
    "right-padded": (
        {"input_ids": torch.tensor([[1, 2, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])},
        specdec.InputError,
        "padding_side='left'",
    ),
    "all padding": (
        {"input_ids": torch.tensor([[0, 0], [1, 2]]), "attention_mask": torch.tensor([[0, 0], [1, 1]])},
        specdec.InputError,
        "all padding",
    ),
    "mask shape": (
        {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.tensor([[1]])},
        specdec.InputError,
        "shape",
    ),
    "too long": ({"max_new_tokens": 250}, specdec.InputError, "256"),
    "beams": ({"num_beams": 2}, specdec.UnsupportedOptionError, "num_beams"),
    "attentions": (
        {"output_attentions": True, "return_dict_in_generate": True},
        specdec.UnsupportedOptionError,
        "output_attentions",
    ),
    "quantised cache": ({"cache_implementation": "quantized"}, specdec.UnsupportedOptionError, "quantized"),
    "offloaded cache": ({"cache_implementation": "offloaded"}, specdec.UnsupportedOptionError, "offloaded"),
    "stop strings without tokenizer": ({"stop_strings": ["x"]}, specdec.OptionError, "tokenizer="),
    "assistant beside drafter": ({"assistant_model": DRAFT}, specdec.OptionError, "Leave one out"),
    "lookup beside drafter": ({"prompt_lookup_num_tokens": 3}, specdec.OptionError, "Leave one out"),
    "two drafters": (
        {"drafter": None, "assistant_model": DRAFT, "prompt_lookup_num_tokens": 3},
        specdec.OptionError,
        "leave one out",
    ),
    "negative prompt": (
        {"negative_prompt_ids": torch.tensor([[1, 2]])},
        specdec.UnsupportedOptionError,
        "negative_prompt_ids",
    ),
    "hidden states of chunks": (
        {"return_dict_in_generate": True, "output_hidden_states": True, "prefill_chunk_size": 4},
        specdec.UnsupportedOptionError,
        "prefill_chunk_size",
    ),
    "no streamer": ({"streamer": 3}, specdec.OptionError, "put and end"),
    "chunks of nothing": ({"prefill_chunk_size": 0}, specdec.OptionError, "prefill_chunk_size"),
    "assistant's name": ({"drafter": None, "assistant_model": "gpt2"}, specdec.OptionError, "assistant_model"),
    "early exit beside": ({"assistant_early_exit": 2}, specdec.OptionError, "assistant_early_exit"),
    "early exit at the end": ({"drafter": None, "assistant_early_exit": 3}, specdec.OptionError, "exit_layer=3"),
    "guidance": ({"guidance_scale": 2.0}, specdec.UnsupportedOptionError, "guidance_scale"),
    "synced": ({"synced_gpus": True}, specdec.UnsupportedOptionError, "synced_gpus"),
    "config as dict": ({"generation_config": {"top_k": 3}}, specdec.OptionError, "GenerationConfig"),
    "embeddings' width": ({"inputs_embeds": torch.zeros(1, 2, 31)}, specdec.InputError, "32"),
    "embeddings' shape": ({"inputs_embeds": torch.zeros(2, 32)}, specdec.InputError, "float tensor"),
    "positions' length": (
        {"input_ids": torch.tensor([[1, 2, 3]]), "position_ids": torch.tensor([[0, 1]])},
        specdec.InputError,
        "position_ids",
    ),
    "target": ({"target": torch.nn.Linear(1, 1)}, specdec.OptionError, "transformers model"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_is_refused_before_any_forward(case: str, forwards: Forwards) -> None:
    """A clear error of its own type, no forward, nothing changed, and the next call works."""
    changes, error, words = BAD_CALLS[case]
    arguments: dict[str, Any] = {"drafter": DRAFT, "max_new_tokens": 5, **INPUTS, **changes}
    if "input_ids" in changes and "attention_mask" not in changes:
        del arguments["attention_mask"]
    target = arguments.pop("target", TARGET)
    rng = torch.get_rng_state()
    config, generation_config = copy.deepcopy(TARGET.config), TARGET.generation_config.to_dict()
    with pytest.raises(error, match=words):
        specdec.generate(target, **arguments)
    assert forwards.count == 0
    assert torch.equal(torch.get_rng_state(), rng)
    assert json.dumps(TARGET.config.to_dict(), default=str) == json.dumps(config.to_dict(), default=str)
    assert TARGET.generation_config.to_dict() == generation_config
    assert specdec.generate(TARGET, **INPUTS, drafter=DRAFT, max_new_tokens=1).shape[1] == 12


def test_an_argument_overrules_the_checkpoints_config() -> None:
    """What the error of the test below advises works."""
    target = copy.deepcopy(TARGET)
    target.generation_config.num_beams = 2
    target.generation_config.guidance_scale = 2.0
    arguments = {**INPUTS, "num_beams": 1, "guidance_scale": None, "max_new_tokens": 6}
    assert torch.equal(specdec.generate(target, **arguments, drafter=DRAFT), target.generate(**arguments))


def test_a_checkpoints_own_notes_are_no_options() -> None:
    """Some carry keys in their generation_config that transformers does not define, and ignores."""
    target = copy.deepcopy(TARGET)
    target.generation_config.chat_format = "chatml"
    out = specdec.generate(target, **INPUTS, drafter=DRAFT, max_new_tokens=6)
    assert torch.equal(out, target.generate(**INPUTS, max_new_tokens=6))


def test_reads_of_constraints_are_counted() -> None:
    """A constraint costs one read for the proposal's shape and one a depth, above one a forward."""
    calls = {
        name: specdec.generate(
            TARGET, **prompts(1), drafter=DRAFT, num_draft_tokens=3, max_new_tokens=16, return_dict_in_generate=True,
            logits_processor=processors,
        ).speculation
        for name, processors in {"none": [], "own": [CustomProcessor()]}.items()
    }  # fmt: skip
    assert calls["none"].host_syncs == calls["none"].rounds + 1
    own = calls["own"]
    assert own.rounds < own.host_syncs - (own.rounds + 1) <= own.rounds * (1 + 3)


@pytest.mark.parametrize("model", [TARGET, DRAFT])
def test_a_ragged_prefill_computes_one_row_of_logits_each(model: Any) -> None:
    """Logits of a large vocabulary at every position between the rows' ends would be the prefill's largest tensor."""
    specdec.generate(TARGET, **prompts(1), drafter=DRAFT, max_new_tokens=1)  # the probe's own forwards are over
    widths: list[int] = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
    try:
        specdec.generate(TARGET, **prompts(3, length=40), drafter=DRAFT, num_draft_tokens=2, max_new_tokens=6)
    finally:
        handle.remove()
    assert max(widths) <= 3


def test_right_padding_without_a_mask_is_refused() -> None:
    """transformers infers the mask from pad tokens; a row that ends in padding is caught there as well."""
    ids = torch.tensor([[5, 6, 7], [5, 6, 0]])
    with pytest.raises(specdec.InputError, match="left"):
        specdec.generate(TARGET, ids, drafter=DRAFT, max_new_tokens=3)


def test_a_checkpoint_config_that_cannot_be_honoured_is_named() -> None:
    """What comes from the model's own generation_config is refused as well, never ignored."""
    target = copy.deepcopy(TARGET)
    target.generation_config.num_beams = 4
    with pytest.raises(specdec.UnsupportedOptionError, match="num_beams=4"):
        specdec.generate(target, **INPUTS, drafter=DRAFT, max_new_tokens=3)


class Boom(Exception):
    """An error of the user's code."""


class Raises:
    """Something of the user's that fails at its n-th call."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, *arguments: Any) -> Any:
        self.after -= 1
        if self.after < 0:
            raise Boom("boom")
        return arguments[-1]


def _failing(kind: str, after: int) -> dict[str, Any]:
    if kind == "processor":
        return {"logits_processor": [type("P", (LogitsProcessor,), {"__call__": Raises(after)})()]}
    if kind == "on_commit":
        return {"on_commit": Raises(after)}

    class Session(specdec.DraftSession):
        closed = False

        def propose(self, state: specdec.DecodeState, limit: Any) -> specdec.Proposal:
            Raises(0)() if len(state.host_tokens[0]) > 11 + after else None
            return specdec.Proposal.chain(state.tokens[:, :1])

        def close(self) -> None:
            Session.closed = True

    class Failing(specdec.Drafter):
        def start(self, state: specdec.DecodeState) -> specdec.DraftSession:
            return Session()

    return {"drafter": Failing(), "session": Session}


def test_a_failed_call_leaves_its_generator_as_it_was() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    with pytest.raises(Boom, match="boom"):
        specdec.generate(
            TARGET, **INPUTS, drafter=DRAFT, do_sample=True, generator=generator, max_new_tokens=9, on_commit=Raises(2)
        )
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("kind", ["processor", "on_commit", "drafter"])
def test_after_an_exception_everything_is_as_before(kind: str, after: int) -> None:
    failing = _failing(kind, after)
    session = failing.pop("session", None)
    expected = TARGET.generate(**INPUTS, max_new_tokens=20)
    rng, config = torch.get_rng_state(), TARGET.config.to_dict()
    arguments = {"drafter": DRAFT, "num_draft_tokens": 3, "do_sample": True, "max_new_tokens": 20, **INPUTS, **failing}
    with pytest.raises(Boom, match="boom"):
        specdec.generate(TARGET, **arguments)
    assert session is None or session.closed
    assert torch.equal(torch.get_rng_state(), rng)
    assert TARGET.config.to_dict() == config
    out = specdec.generate(TARGET, **INPUTS, drafter=DRAFT, num_draft_tokens=3, max_new_tokens=20)
    assert torch.equal(out, expected)


def _proposer(make: Callable[[specdec.DecodeState, int], specdec.Proposal]) -> specdec.Drafter:
    class Session(specdec.DraftSession):
        def propose(self, state: specdec.DecodeState, limit: Any) -> specdec.Proposal:
            return make(state, max(limit))

    class Custom(specdec.Drafter):
        def start(self, state: specdec.DecodeState) -> specdec.DraftSession:
            return Session()

    return Custom()


def _ids(token: int) -> Callable[[specdec.DecodeState, int], specdec.Proposal]:
    return lambda state, depth: specdec.Proposal.chain(torch.full((state.batch_size, depth), token))


BROKEN: dict[str, tuple[Callable[[specdec.DecodeState, int], specdec.Proposal], str]] = {
    "id -1": (_ids(-1), "outside"),
    "id V": (_ids(VOCAB_SIZE), "outside"),
    "dtype": (lambda s, d: specdec.Proposal.chain(torch.zeros(s.batch_size, d, dtype=torch.int32)), "dtype"),
    "batch": (lambda s, d: specdec.Proposal.chain(torch.zeros(s.batch_size + 1, d, dtype=torch.int64)), "shape"),
    "too many": (lambda s, d: specdec.Proposal.chain(torch.zeros(s.batch_size, d + 1, dtype=torch.int64)), "at most"),
    "nothing": (lambda s, d: None, "no Proposal"),
    "q no distribution": (
        lambda s, d: specdec.Proposal.chain(
            torch.zeros(s.batch_size, 1, dtype=torch.int64), q=torch.full((s.batch_size, 1, VOCAB_SIZE), 0.5)
        ),
        "no distribution",
    ),
    "q_index": (
        lambda s, d: dataclasses.replace(
            specdec.Proposal.chain(
                torch.zeros(s.batch_size, 1, dtype=torch.int64), q=torch.eye(VOCAB_SIZE)[:1].repeat(s.batch_size, 1, 1)
            ),
            q_index=torch.full((s.batch_size, 1), 7),
        ),
        "q_index",
    ),
    "q missing": (
        lambda s, d: specdec.Proposal(
            torch.zeros(s.batch_size, 1, dtype=torch.int64),
            torch.full((s.batch_size, 1), -1),
            torch.ones(s.batch_size, 1, dtype=torch.bool),
            depth=1, width=1, law=specdec.Law.IID,
        ),
        "q",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_drafter_gets_a_typed_error(case: str) -> None:
    make, words = BROKEN[case]
    with pytest.raises(specdec.DrafterError, match=words):
        specdec.generate(TARGET, **INPUTS, drafter=_proposer(make), num_draft_tokens=3, max_new_tokens=20)


def test_a_processor_that_gives_nan_is_not_laid_to_the_drafter() -> None:
    """It breaks the distribution that drafts are sampled from as well."""

    class Poison(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores * float("nan") if input_ids.shape[1] > INPUTS["input_ids"].shape[1] else scores

    with pytest.raises(specdec.NumericalError, match="check the logits processors"):
        specdec.generate(
            TARGET, **INPUTS, drafter=DRAFT, num_draft_tokens=3, do_sample=True, logits_processor=[Poison()],
            max_new_tokens=20,
        )  # fmt: skip


@pytest.mark.parametrize("token", [2, 50])
def test_an_always_wrong_drafter_costs_speed_only(token: int) -> None:
    out = specdec.generate(TARGET, **INPUTS, drafter=_proposer(_ids(token)), num_draft_tokens=3, max_new_tokens=30)
    assert torch.equal(out, TARGET.generate(**INPUTS, max_new_tokens=30))


def test_nan_probabilities_raise() -> None:
    """NaN logits end a sampled call with a typed error instead of an arbitrary token."""

    class Poison(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores * float("nan") if input_ids.shape[1] > 13 else scores

    with pytest.raises(specdec.NumericalError, match="NaN"):
        specdec.generate(TARGET, **INPUTS, do_sample=True, logits_processor=[Poison()], max_new_tokens=20)


def test_finished_rows_are_padded_as_in_transformers() -> None:
    """Without a pad token, transformers pads with the first EOS id."""
    target = copy.deepcopy(TARGET)
    target.generation_config.pad_token_id = None
    free = target.generate(**INPUTS, max_new_tokens=30)
    arguments = {**INPUTS, "max_new_tokens": 30, "eos_token_id": [int(free[0, 20]), 3]}
    expected = target.generate(**arguments)
    assert len({int((row == free[0, 20]).sum()) for row in expected}) > 1
    assert torch.equal(specdec.generate(target, **arguments, drafter=DRAFT, num_draft_tokens=4), expected)


def test_a_gap_in_a_chain_ends_it() -> None:
    """Nodes behind an invalid one are not there, whatever their own flag says."""

    def gapped(state: specdec.DecodeState, depth: int) -> specdec.Proposal:
        tokens = torch.full((state.batch_size, depth), 3)
        return specdec.Proposal.chain(tokens, (torch.arange(depth) != 0).expand_as(tokens))

    out = specdec.generate(
        TARGET, **INPUTS, drafter=_proposer(gapped), num_draft_tokens=3, max_new_tokens=20, return_dict_in_generate=True
    )
    assert torch.equal(out.sequences, TARGET.generate(**INPUTS, max_new_tokens=20))
    assert out.speculation.drafted == 0


def test_eos_as_a_tensor() -> None:
    eos = TARGET.generate(**INPUTS, max_new_tokens=20)[0, -8:-6]
    arguments = {**INPUTS, "max_new_tokens": 20, "eos_token_id": eos, "pad_token_id": 0}
    assert torch.equal(specdec.generate(TARGET, **arguments, drafter=DRAFT), TARGET.generate(**arguments))
