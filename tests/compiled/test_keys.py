"""Which package belongs to a model: its name follows whatever the graph holds, and nothing else."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fresh import own
from stand_in import StandIn, decode

from specdec.compiled.fingerprint import key_of

pytestmark = pytest.mark.usefixtures("compiler_is_there")


def test_two_loads_of_one_model_have_one_key(tmp_path: pathlib.Path) -> None:
    model = own()
    model.save_pretrained(tmp_path)
    loaded = [type(model).from_pretrained(tmp_path, dtype=torch.float32) for _ in range(2)]
    assert len({key_of(m) for m in (model, *loaded)}) == 1
    assert key_of(model) == key_of(model)
    decode(model, compile=False)
    model.to(torch.float32).requires_grad_(False)
    assert key_of(model) == key_of(loaded[0]), "using it changes nothing"


def in_place(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)


def one_value(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight[17, 5] += 1


def through_data(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.weight.data.mul_(1.5)


def loaded(model: Any) -> None:
    state = own(seed=1).state_dict()
    model.load_state_dict(state)


def replaced(model: Any) -> None:
    model.lm_head.weight = torch.nn.Parameter(-model.lm_head.weight)


def in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        model.model.norm.weight[::2].mul_(3)


def a_buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(0.5)


def swapped(model: Any) -> None:
    """The same values under other names."""
    model.model.layers = torch.nn.ModuleList(reversed(model.model.layers))


WRITES = [in_place, one_value, through_data, loaded, replaced, in_inference_mode, a_buffer, swapped]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_the_key_changes_with_the_weights(write: Callable[[Any], None]) -> None:
    """Also where the model's key is known already, and back again."""
    model, other = own(), own()
    before = key_of(model)
    write(model)
    after = key_of(model)
    assert after != before
    assert key_of(other) == before
    write(other)
    assert key_of(other) == after


def test_a_write_that_is_undone_brings_the_key_back() -> None:
    model = own()
    before, weight = key_of(model), model.lm_head.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
        assert key_of(model) != before
        weight.copy_(kept)
    assert key_of(model) == before


def test_the_key_changes_with_the_dtype() -> None:
    keys = {key_of(own().to(dtype)) for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}
    assert len(keys) == 4
    model = own()
    before = key_of(model)
    assert key_of(model.double()) != before


@pytest.mark.parametrize(("name", "value"), [("rms_norm_eps", 1e-3), ("hidden_act", "gelu"), ("anything_else", 1)])
def test_the_key_changes_with_the_config(name: str, value: Any) -> None:
    """What is read from it in a forward is a part of the graph."""
    model = own()
    before = key_of(model)
    setattr(model.config, name, value)
    assert key_of(model) != before


def test_the_key_changes_with_the_class() -> None:
    model = own()
    before = key_of(model)

    class Other(type(model)):  # type: ignore[misc]
        pass

    model.__class__ = Other
    assert key_of(model) != before


def test_the_key_does_not_change_with_what_a_graph_does_not_read() -> None:
    """Where a model was loaded from, and how it was to attend: a graph has an attention of its own."""
    model = own()
    before = key_of(model)
    model.config._name_or_path = "somewhere/else"
    model.generation_config.max_new_tokens = 7
    assert key_of(model) == before == key_of(own(attention="eager"))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_key_changes_with_the_number_of_threads(threads: Callable[[int], None]) -> None:
    model = own()
    before = key_of(model)
    threads(torch.get_num_threads() + 1)
    assert key_of(model) != before
    threads(torch.get_num_threads() - 1)
    assert key_of(model) == before


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_weights_that_were_changed_get_a_graph_of_their_own(write: Callable[[Any], None], stand_in: StandIn) -> None:
    """A package holds a copy of the weights: the old one would go on giving the old model's text."""
    model = own()
    before = decode(model)
    write(model)
    out = decode(model)
    assert out.speculation.graphs.roles == {"target": "compiled"}
    assert stand_in.builds == 2
    assert write is one_value or not torch.equal(out.sequences, before.sequences)


def an_activation(model: Any) -> None:
    model.model.layers[1].mlp.act_fn = torch.nn.ReLU()


def a_number(model: Any) -> None:
    model.model.layers[1].self_attn.scaling = 2.0


def the_config(model: Any) -> None:
    model.config.num_hidden_layers = 1


@pytest.mark.parametrize("change", [an_activation, a_number, the_config], ids=lambda change: change.__name__)
def test_a_model_that_was_changed_otherwise(change: Callable[[Any], None], stand_in: StandIn) -> None:
    """What decides the output besides weights is followed from call to call, too."""
    model = own()
    before = decode(model)
    change(model)
    assert not torch.equal(decode(model).sequences, before.sequences)
