"""Two threads on one model: each output is the one that the call has alone, and nothing is raised."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import families
import pytest
import torch
from faults import snapshots
from torch import Tensor

import specdec

TIMES = 3
NEW_TOKENS = 12
FAMILIES = ("llama", "mistral", "lfm2", "bart")


def together(*works: Callable[[], None]) -> list[BaseException]:
    """Runs them in threads that start at once; what they raised."""
    start, raised = threading.Barrier(len(works)), list[BaseException]()

    def run(work: Callable[[], None]) -> None:
        start.wait()
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive(), "a thread hangs"
    return raised


def draft(name: str) -> specdec.Drafter:
    return specdec.ModelDrafter(families.family(name, families.ARCHITECTURES[name].noise))


SHARED: dict[str, Callable[[str], list[specdec.Drafter]]] = {
    "one drafter": lambda name: [draft(name)] * 2,
    "two drafters": lambda name: [draft(name), specdec.SuffixDrafter(remember=True)],
    "the target's own layers": lambda name: [specdec.EarlyExitDrafter(1), specdec.LayerSkipDrafter([1])],
}


@pytest.mark.parametrize("how", SHARED)
@pytest.mark.parametrize("name", FAMILIES)
def test_two_threads_on_one_model(name: str, how: str) -> None:
    """Rows and texts differ, so that whatever they shared would show."""
    target = families.family(name)
    calls = [families.inputs(name, 1), families.inputs(name, 3, seed=5)]
    alone = [target.generate(**c, max_new_tokens=NEW_TOKENS, do_sample=False) for c in calls]
    before = snapshots.of_model(target)
    outputs: list[list[Tensor]] = [[], []]
    decoders = [specdec.SpeculativeDecoder(d, num_draft_tokens=3) for d in SHARED[how](name)]

    def work(number: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(TIMES):
                out = decoders[number].generate(target, **calls[number], max_new_tokens=NEW_TOKENS, do_sample=False)
                outputs[number].append(out)

        return run

    assert together(work(0), work(1)) == []
    for number in (0, 1):
        assert len(outputs[number]) == TIMES
        assert all(torch.equal(out, alone[number]) for out in outputs[number])
    assert not snapshots.differences(before, snapshots.of_model(target))


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_one_attaches_while_another_generates(name: str) -> None:
    """Before, inside and after the block: transformers' text each time, and nothing of ours stays on the model."""
    target, inputs = families.family(name), families.inputs(name, 3)
    arguments: dict[str, Any] = {**inputs, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    expected = target.generate(**arguments)
    before, outputs = snapshots.of_model(target), list[Tensor]()

    def generates() -> None:
        for number in range(2 * TIMES):
            outputs.append(target.generate(**arguments) if number % 2 else specdec.generate(target, **arguments))

    def attaches() -> None:
        for _ in range(TIMES):
            with specdec.attached(target, draft(name), num_draft_tokens=3):
                outputs.append(target.generate(**arguments))

    raised = together(generates, attaches)
    assert not raised
    assert len(outputs) == 3 * TIMES
    assert all(torch.equal(out, expected) for out in outputs)
    assert not snapshots.differences(before, snapshots.of_model(target))


def test_a_failure_in_one_thread_is_not_the_others() -> None:
    """One call raises amid its text, again and again; the other one's rows are right."""
    target, calls = families.family("llama"), [families.inputs("llama", 1), families.inputs("llama", 3, seed=5)]
    expected = target.generate(**calls[1], max_new_tokens=NEW_TOKENS, do_sample=False)
    decoder, outputs, failures = specdec.SpeculativeDecoder(draft("llama"), num_draft_tokens=3), list[Tensor](), []

    def fails() -> None:
        for number in range(TIMES):
            seen = 0

            def on_commit(_: specdec.Committed, most: int = number + 1) -> None:
                nonlocal seen
                seen += 1
                if seen > most:
                    raise ZeroDivisionError

            try:
                decoder.generate(target, **calls[0], max_new_tokens=NEW_TOKENS, do_sample=False, on_commit=on_commit)
            except ZeroDivisionError:
                failures.append(number)

    def works() -> None:
        for _ in range(TIMES):
            outputs.append(decoder.generate(target, **calls[1], max_new_tokens=NEW_TOKENS, do_sample=False))

    assert not together(fails, works)
    assert len(failures) == TIMES
    assert len(outputs) == TIMES
    assert all(torch.equal(out, expected) for out in outputs)


def test_two_calls_on_one_cache() -> None:
    """A cache that a call is decoding with is refused to another one."""
    target = families.family("llama")
    inputs = families.inputs("llama", 1)
    first = specdec.generate(target, **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    cache, refused = first.past_key_values, []
    arguments = {"input_ids": first.sequences, "max_new_tokens": 8, "do_sample": False}

    def again(_: specdec.Committed) -> None:
        with pytest.raises(specdec.OptionError, match="no finished call"):
            specdec.generate(target, **arguments, past_key_values=cache)
        refused.append(1)

    out = specdec.generate(target, **arguments, past_key_values=cache, on_commit=again)
    assert refused
    assert torch.equal(out, target.generate(**arguments))
