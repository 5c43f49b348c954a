"""The models, and who answers their generate(): in the long run transformers as well, the tests' control."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, tiny
from transformers import PreTrainedModel
from transformers_suite.sides import Side, Writer

import specdec

LLAMA_LIKE = ("qwen3", "phi3")  # to generate() another llama: left to the long run
CONTROL = pytest.param("control", marks=pytest.mark.long)  # says something of transformers and of the test only


@pytest.fixture(params=[CONTROL, "model", "ngram"])
def side(request: pytest.FixtureRequest) -> Side:
    """transformers, or specdec with one of two kinds of drafter."""
    return Side(request.param)


@pytest.fixture(params=[CONTROL, "specdec"])
def bare_side(request: pytest.FixtureRequest) -> Side:
    """For calls that name their own drafter (assistant_model=, prompt_lookup_num_tokens=)."""
    return Side(request.param)


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.long) if n in LLAMA_LIKE else n for n in ARCHITECTURES])
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model)  # tests change generation configs, the tiny models are shared


@pytest.fixture
def model(architecture: str, side: Side) -> Iterator[PreTrainedModel]:
    """A tiny model of every architecture, its generate() answered by the side."""
    target = _copy(tiny(architecture))
    with side.attach(target, tiny(architecture, noise=0.02)):
        yield target


@pytest.fixture
def bare_model(architecture: str, bare_side: Side) -> Iterator[PreTrainedModel]:
    """As `model`, without a drafter."""
    target = _copy(tiny(architecture))
    with bare_side.attach(target, tiny(architecture, noise=0.02)):
        yield target


@pytest.fixture
def llama(side: Side) -> Iterator[PreTrainedModel]:
    """One architecture, for what does not depend on it."""
    target = _copy(tiny("llama"))
    with side.attach(target, tiny("llama", noise=0.02)):
        yield target


@pytest.fixture
def bare_llama(bare_side: Side) -> Iterator[PreTrainedModel]:
    """As `llama`, without a drafter."""
    target = _copy(tiny("llama"))
    with bare_side.attach(target, tiny("llama", noise=0.02)):
        yield target


@pytest.fixture(scope="session")
def pair() -> Any:
    # float64, so that both sides compute the same argmax.
    return specdec.bundled_pair(torch.float64)


def _writer(side: Side, pair: Any) -> Iterator[Writer]:
    target, draft, tokenizer = pair
    before = copy.deepcopy(target.generation_config), copy.deepcopy(draft.generation_config)
    with side.attach(target, draft):
        yield Writer(target, draft, tokenizer)
    target.generation_config, draft.generation_config = before


@pytest.fixture
def writer(side: Side, pair: Any) -> Iterator[Writer]:
    """The bundled pair, the target's generate() answered by the side."""
    yield from _writer(side, pair)


@pytest.fixture
def bare_writer(bare_side: Side, pair: Any) -> Iterator[Writer]:
    """As `writer`, without a drafter."""
    yield from _writer(bare_side, pair)
