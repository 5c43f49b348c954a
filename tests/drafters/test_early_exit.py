"""EarlyExitDrafter: the target's own first layers, on its own cache, and nothing of it changed."""

from __future__ import annotations

import copy
import gc
import sys
import threading
import weakref
from typing import Any

import families
import pytest
import torch
from models import prompts, tiny
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import specdec
from specdec.cache import RollbackCache
from specdec.drafters.early_exit import chosen_exit, cost_share, expected_speedup
from specdec.drafters.layers import decoder_layers, with_layers
from specdec.drafters.own_layers import OwnLayersDrafter

NEW_TOKENS = 40


class Everything(OwnLayersDrafter):
    """Drafts with all layers: what it proposes must be what the target says."""

    def layers(self, state: Any) -> range:
        return range(state.target.num_layers)


def decode(target: PreTrainedModel, drafter: specdec.Drafter, batch_size: int = 3, **kwargs: Any) -> Any:
    arguments = {"num_draft_tokens": 4, "max_new_tokens": NEW_TOKENS, "do_sample": False, **kwargs}
    return specdec.generate(target, **prompts(batch_size), drafter=drafter, return_dict_in_generate=True, **arguments)


def reference(target: PreTrainedModel, batch_size: int = 3, **kwargs: Any) -> torch.Tensor:
    return target.generate(**prompts(batch_size), max_new_tokens=NEW_TOKENS, do_sample=False, **kwargs)


def fresh(num_layers: int = 4) -> LlamaForCausalLM:
    """A model that no other test knows."""
    torch.manual_seed(1)
    config = LlamaConfig(**{**tiny("llama").config.to_dict(), "num_hidden_layers": num_layers})
    return LlamaForCausalLM(config).to(torch.float64).eval()


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[RollbackCache]:
    """Every cache that is made."""
    made: list[RollbackCache] = []
    original = RollbackCache.__init__

    def noted(self: RollbackCache, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(RollbackCache, "__init__", noted)
    return made


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_all_layers_agree_with_the_target(architecture: str) -> None:
    """The drafts see the committed prefix in the target's cache as the target does: every one is accepted."""
    target = tiny(architecture)
    out = decode(target, Everything())
    assert torch.equal(out.sequences, reference(target))
    assert out.speculation.acceptance_rate == 1.0
    assert out.speculation.rounds == -(-(NEW_TOKENS - 1) // 5)


def test_all_layers_of_a_ring_agree_with_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts behind the window's end overwrite nothing that the target still looks at, the token before them included.

    Chains of up to 16 tokens fit into a ring's slack; longer ones show that they are counted.
    """
    monkeypatch.setattr(sys.modules["specdec.generate"], "MAX_DRAFT_TOKENS", 64)
    mistral = families.family("mistral")
    for num_draft_tokens in (4, 30):
        out = decode(mistral, Everything(), num_draft_tokens=num_draft_tokens)
        assert torch.equal(out.sequences, reference(mistral))
        assert out.speculation.acceptance_rate == 1.0


@pytest.mark.parametrize("num_draft_tokens", [1, 16, "auto"])
def test_other_numbers_of_draft_tokens(num_draft_tokens: Any) -> None:
    target = tiny("llama")
    out = decode(target, specdec.EarlyExitDrafter(2), num_draft_tokens=num_draft_tokens)
    assert torch.equal(out.sequences, reference(target))


def test_stops_where_the_exit_is_unsure() -> None:
    """By its own distribution: fewer drafts, more of them right, the same text."""
    target = tiny("llama")
    eager, sure = (
        decode(target, specdec.EarlyExitDrafter(2, min_confidence=bound)).speculation for bound in (0.0, 0.6)
    )
    assert 0 < sure.drafted < eager.drafted
    assert sure.acceptance_rate > eager.acceptance_rate
    assert torch.equal(decode(target, specdec.EarlyExitDrafter(2, min_confidence=0.6)).sequences, reference(target))
    with pytest.raises(specdec.OptionError, match="min_confidence"):
        specdec.LayerSkipDrafter([1], min_confidence=1.0)


def test_rows_leave_one_by_one() -> None:
    target = tiny("llama")
    free = reference(target)[:, -NEW_TOKENS:]
    eos = {"eos_token_id": [int(free[0, 7]), int(free[1, 19])], "pad_token_id": 0}
    assert torch.equal(decode(target, specdec.EarlyExitDrafter(2), **eos).sequences, reference(target, **eos))


@pytest.mark.parametrize("rule", ["rejection", "block"])
@pytest.mark.parametrize("options", [{}, {"top_k": 12}, {"repetition_penalty": 1.3}])
def test_sampling_on_the_targets_cache_is_sampling_with_the_same_model(rule: Any, options: dict[str, Any]) -> None:
    """The same coins give what a ModelDrafter with a cache of its own gives, whose law is proven."""
    target = tiny("llama")
    draft = with_layers(target, range(2))
    texts = []
    for drafter in (specdec.EarlyExitDrafter(2), specdec.ModelDrafter(draft)):
        generator = torch.Generator().manual_seed(3)
        arguments = {"do_sample": True, "top_k": 0, "generator": generator, "rule": rule, **options}
        texts.append(decode(target, drafter, **arguments))
    assert torch.equal(texts[0].sequences, texts[1].sequences)
    assert texts[0].speculation.accepted == texts[1].speculation.accepted > 0


def test_there_is_one_cache_and_one_prefill(caches: list[RollbackCache]) -> None:
    """No second copy of the prefix, and no draft forward wider than a token."""
    target = fresh()
    target.generation_config.pad_token_id = 0
    decode(target, specdec.EarlyExitDrafter(1))  # probes the model class with caches of its own
    caches.clear()
    widths: list[int] = []
    hook = decoder_layers(target)[0].register_forward_hook(lambda m, args, out: widths.append(args[0].shape[1]))
    out = decode(target, specdec.EarlyExitDrafter(1))
    hook.remove()
    assert len(caches) == 1
    stats = out.speculation
    assert stats.draft_calls >= stats.rounds - 1
    assert widths.count(11) == 1
    assert widths.count(1) >= stats.draft_calls
    assert len(widths) == stats.draft_calls + stats.rounds + 1


def snapshot(model: PreTrainedModel) -> Any:
    """What must not change: configs, attributes, hooks, the modules themselves and their weights."""
    modules = [(name, id(module), type(module)) for name, module in model.named_modules()]
    attributes = [{k: v for k, v in vars(m).items() if isinstance(v, (bool, int, str))} for m in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    state = {name: (id(t), t._version, t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    return modules, attributes, hooks, copy.deepcopy(model.config.to_dict()), state


def assert_same(before: Any, after: Any) -> None:
    assert before[:4] == after[:4]
    for name, (place, version, values) in before[4].items():
        assert after[4][name][:2] == (place, version)
        assert torch.equal(values, after[4][name][2])


@pytest.mark.parametrize("exit_layer", [2, "auto"])
def test_nothing_of_the_model_changes(exit_layer: Any) -> None:
    target = fresh()
    target.generation_config.pad_token_id = 0
    reference(target)  # transformers' own marks are set by its own first call
    before = snapshot(target)
    decode(target, specdec.EarlyExitDrafter(exit_layer))
    assert_same(before, snapshot(target))

    class Broken(RuntimeError):
        """Somebody's hook fails."""

    count = 0

    def fails(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == 20:
            raise Broken

    hook = decoder_layers(target)[0].register_forward_hook(fails)
    with pytest.raises(Broken):
        decode(target, specdec.EarlyExitDrafter(exit_layer))
    hook.remove()
    assert_same(before, snapshot(target))
    assert torch.equal(decode(target, specdec.EarlyExitDrafter(exit_layer)).sequences, reference(target))


def test_two_threads_with_two_exits() -> None:
    target = tiny("llama")
    expected = {batch_size: reference(target, batch_size) for batch_size in (1, 3)}
    failures: list[Any] = []

    def work(exit_layer: int, batch_size: int) -> None:
        try:
            for _ in range(3):
                out = decode(target, specdec.EarlyExitDrafter(exit_layer), batch_size)
                if not torch.equal(out.sequences, expected[batch_size]):
                    failures.append((exit_layer, batch_size))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(e, b)) for e, b in ((1, 3), (2, 1), (2, 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_clone_is_made_once_and_again_when_the_model_has_changed() -> None:
    target = fresh()
    first = with_layers(target, range(2))
    assert with_layers(target, range(2)) is first
    assert with_layers(target, range(1)) is not first
    assert {id(p) for p in first.parameters()} < {id(p) for p in target.parameters()}
    with torch.no_grad():
        target.lm_head.weight.mul_(2)  # weights are shared
    assert with_layers(target, range(2)) is first
    target.float()
    assert with_layers(target, range(2)) is first
    assert next(first.parameters()).dtype == torch.float32
    target.lm_head = nn.Linear(32, 96, bias=False)
    second = with_layers(target, range(2))
    assert second is not first
    assert second.lm_head is target.lm_head
    target.model.layers[1] = target.model.layers[3]
    assert with_layers(target, range(2)).model.layers[1] is target.model.layers[3]
    target.train()
    assert with_layers(target, range(2)).training
    target.config._attn_implementation = "eager"
    assert with_layers(target, range(2)).config._attn_implementation == "eager"


def test_a_clone_goes_with_its_model() -> None:
    target = fresh()
    target.generation_config.pad_token_id = 0
    with specdec.attached(target, drafter=specdec.EarlyExitDrafter(2)):
        target.generate(**prompts(1), max_new_tokens=8, do_sample=False)
    gone = weakref.ref(target), weakref.ref(with_layers(target, range(2)))
    del target
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_lists_by_layer_are_cut_and_the_users_are_not() -> None:
    config = LlamaConfig(**{**tiny("llama").config.to_dict(), "num_hidden_layers": 4})
    config.no_rope_layers = [1, 1, 1, 0]
    model = LlamaForCausalLM(config)
    clone = with_layers(model, [0, 3])
    assert clone.config.num_hidden_layers == clone.model.config.num_hidden_layers == 2
    assert clone.config.no_rope_layers == [1, 0]
    assert clone.config is clone.model.config
    assert model.config.no_rope_layers == [1, 1, 1, 0]
    assert model.config.num_hidden_layers == 4


def test_a_compiled_inner_module_is_not_run() -> None:
    """`forward = torch.compile(forward)` is bound to the whole model: the clone runs its own class's."""
    target = fresh()
    target.generation_config.pad_token_id = 0
    expected = reference(target)
    target.forward = torch.compile(target.forward)
    target.model._compiled_call_impl = lambda *_, **__: pytest.fail("all layers would run")
    clone = with_layers(target, range(2))
    assert clone(prompts(1)["input_ids"]).logits.shape[-1] == 96
    target.model._compiled_call_impl = None
    assert torch.equal(decode(target, specdec.EarlyExitDrafter(2)).sequences, expected)


@pytest.mark.parametrize("exit_layer", [0, -1, 2.0, True, "early", None])
def test_no_exit_layer(exit_layer: Any) -> None:
    with pytest.raises(specdec.OptionError, match="exit_layer"):
        specdec.EarlyExitDrafter(exit_layer)


@pytest.mark.parametrize("exit_layer", [3, 7])
def test_an_exit_past_the_end_is_refused_before_any_forward(exit_layer: int) -> None:
    target = tiny("llama")
    hook = target.register_forward_hook(lambda *_: pytest.fail("a forward"))
    try:
        with pytest.raises(specdec.OptionError, match="1 to 2"):
            decode(target, specdec.EarlyExitDrafter(exit_layer))
    finally:
        hook.remove()


def test_models_whose_layers_are_not_one_list_are_refused() -> None:
    odd = fresh()
    odd.model.more = nn.ModuleList(nn.Identity() for _ in range(4))
    with pytest.raises(specdec.UnsupportedModelError, match="2 lists of 4 modules"):
        decode(odd, specdec.EarlyExitDrafter(2))
    hooked = fresh()
    hooked.model.forward = hooked.model.forward  # as accelerate does on a module above the layers
    with pytest.raises(specdec.UnsupportedModelError, match="has been replaced"):
        decode(hooked, specdec.EarlyExitDrafter(2))


def test_the_name_of_transformers(caches: list[RollbackCache]) -> None:
    target = tiny("llama")
    arguments = {**prompts(3), "max_new_tokens": NEW_TOKENS, "do_sample": False}
    out = specdec.generate(
        target, **arguments, assistant_early_exit=2, num_draft_tokens=4, return_dict_in_generate=True
    )
    assert torch.equal(out.sequences, reference(target))
    assert out.speculation.drafted > 0
    with pytest.raises(specdec.OptionError, match="leave one out"):
        specdec.generate(target, **arguments, assistant_early_exit=2, assistant_model=target)
    with pytest.raises(specdec.OptionError, match="exit_layer=3"):
        specdec.generate(target, **arguments, assistant_early_exit=3)
    with pytest.raises(specdec.UnsupportedOptionError, match="EarlyExitDrafter"):
        target.generate(**arguments, assistant_early_exit=2, custom_generate=specdec.SpeculativeDecoder())
    named = copy.copy(target)
    named.generation_config = copy.deepcopy(target.generation_config)
    named.generation_config.assistant_early_exit = 2
    out = specdec.generate(named, **arguments, num_draft_tokens=4, return_dict_in_generate=True)
    assert out.speculation.drafted > 0


def test_expected_speedup() -> None:
    """Theorem 3.8 of arXiv:2211.17192, and its limits."""
    alpha, cost, drafted = 0.8, 0.05, 8
    theorem = (1 - alpha ** (drafted + 1)) / ((1 - alpha) * (drafted * cost + 1))
    assert expected_speedup(alpha, cost, drafted) == pytest.approx(
        max((1 - alpha ** (g + 1)) / ((1 - alpha) * (g * cost + 1)) for g in range(1, 9))
    )
    assert expected_speedup(alpha, cost, drafted) >= theorem
    assert expected_speedup(1.0, 0.5, 8) == pytest.approx(9 / 5)
    assert expected_speedup(0.2, 0.5) == 1.0, "what does not pay is not made to"


def test_auto_chooses_the_exit_that_pays() -> None:
    """Layers that add nothing to the stream are left out: the exit stands in front of them."""
    target = fresh(8)
    tokens = prompts(1, length=40)["input_ids"]
    with torch.no_grad():
        for layer in target.model.layers[2:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        assert chosen_exit(target, tokens) == 2
        for layer in target.model.layers[1:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    assert chosen_exit(target, tokens) == 1
    assert chosen_exit(target, None) == 2
    layers = decoder_layers(target)
    assert cost_share(target, layers, range(8)) == 1.0
    assert 0.25 < cost_share(target, layers, range(2)) < 0.6
