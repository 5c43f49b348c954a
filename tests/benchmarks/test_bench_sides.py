"""What the suite's sides do, on models small enough for every run; nothing here looks at how long it took."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from models import tiny

import specdec
from bench.free import ROUNDS, FreeDrafter
from bench.prompts import MIXED, Tokens, batched, kinds_of, of_length, read
from bench.settings import Models, Settings, pair
from bench.sides import Sides
from bench.static import reason_against
from specdec.bundled import bundled_dir
from specdec.controller import MAX_DRAFT_TOKENS
from specdec.errors import InputError, OptionError

SETTINGS = Settings(prompts=0, new_tokens=8, draft_tokens=4, rounds=1, threads=1)


@pytest.mark.parametrize("count", [0, 1, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_free_drafts_make_a_dozen_rounds_of_one_width_and_change_no_token(count: int, batch_size: int) -> None:
    target, drafter = tiny("llama"), FreeDrafter(count)
    ids = torch.randint(3, 60, (batch_size, 7), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    call = {"max_new_tokens": drafter.new_tokens, "do_sample": False, "eos_token_id": None}
    expected = target.generate(**inputs, **call)
    out = specdec.SpeculativeDecoder(drafter, max(1, count)).generate(
        target, return_dict_in_generate=True, **inputs, **call
    )
    assert torch.equal(out.sequences, expected)
    rounds, seconds = drafter.rounds()
    stats = out.speculation
    assert stats.accepted == 0, "right by chance: take another seed"
    assert rounds == ROUNDS and seconds > 0
    narrower = batch_size * sum(range(count))  # the last ones, where there is no room for all
    assert stats.drafted == batch_size * ROUNDS * count + narrower + (batch_size if count == 1 else 0)


def test_the_longest_prompt_leaves_room_for_the_timed_rounds() -> None:
    sides = Sides(torch.float32, 0.0, new_tokens=4, draft_tokens=4)
    most = FreeDrafter(MAX_DRAFT_TOKENS).new_tokens
    assert sides.longest_prompt + most == sides.target.config.max_position_embeddings
    (only,) = sides.tokens(["x = 1\n" * 2000])
    assert len(only.ids) == sides.longest_prompt
    longer = Sides(torch.float32, 0.0, new_tokens=64, draft_tokens=4)
    assert longer.longest_prompt == longer.target.config.max_position_embeddings - 64


def test_rounds_that_lack_a_row_or_width_are_not_counted() -> None:
    drafter = FreeDrafter(4)
    drafter.times = [(1.0, True), (3.0, False), (10.0, True), (11.0, True)]
    assert drafter.rounds() == (2, 2.0 + 1.0)


def test_prompts_of_files_by_kind(tmp_path: pathlib.Path) -> None:
    asked = [{"category": c, "turns": [f"{c} {i}"]} for c in ("writing", "math") for i in range(3)]
    spec_bench, texts = tmp_path / "question.jsonl", tmp_path / "more.jsonl"
    spec_bench.write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
    texts.write_text('{"prompt": "one"}\n{"prompt": "two"}', encoding="utf-8")
    files = (str(spec_bench), str(texts))
    few = read(Settings(2, 8, 4, 1, 1, prompt_files=files))
    assert [p.domain for p in few] == ["writing", "math", "text", "text"]
    assert len(read(Settings(0, 8, 4, 1, 1, prompt_files=files))) == 8
    assert kinds_of(few, 1) == ["writing", "math", "text", "text"] and kinds_of(few, 2) == [MIXED, "text"]
    with pytest.raises(InputError):
        read(Settings(2, 8, 4, 1, 1, prompt_files=(str(tmp_path / "missing.jsonl"),)))


def test_bundled_prompts_are_code_and_a_batch_gets_as_many_as_it_needs() -> None:
    assert {p.domain for p in read(SETTINGS)} == {"code"} and len(read(SETTINGS)) == 16
    assert len(read(Settings(1, 8, 4, 1, 1), at_least=4)) == 4


def test_contexts_have_exactly_the_length_and_end_with_the_prompt() -> None:
    prompts = [Tokens("a", (1, 2, 3)), Tokens("b", (4, 5)), Tokens("a", tuple(range(10, 30)))]
    filled = of_length(prompts, 8)
    assert [len(p.ids) for p in filled] == [8, 8, 8] and [p.kind for p in filled] == ["a", "b", "a"]
    assert filled[0].ids[-3:] == (1, 2, 3) and filled[1].ids == (*range(27, 30), 1, 2, 3, 4, 5)
    assert filled[2].ids == tuple(range(22, 30)), "the end of a prompt that is longer"
    assert of_length(prompts[:1], 8)[0].ids == (2, 3, 1, 2, 3, 1, 2, 3)


def test_batches_are_padded_at_the_left_and_filled_up_from_the_first_prompts() -> None:
    prompts = [Tokens("a", (1, 2, 3)), Tokens("b", (4,)), Tokens("a", (5, 6))]
    first, second = batched(prompts, 2, pad=9)
    assert first["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert first["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert second["input_ids"].tolist() == [[9, 5, 6], [1, 2, 3]]
    (eight,) = batched(prompts, 8, pad=9)
    assert eight["input_ids"].shape == (8, 3)


def test_a_pair_of_ones_own_is_both_models_of_one_tokenizer(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match="--target and --draft go together"):
        Models(target=str(tmp_path))
    with pytest.raises(OptionError, match="--device"):
        Models(device="nonesuch")
    folder = bundled_dir()
    target, other = str(folder / "pair" / "target"), folder / "other"
    with pytest.raises(OptionError, match="--draft"):
        pair(torch.float32, Models(target, str(tmp_path)))
    if other.is_dir():
        with pytest.raises(OptionError, match="another tokenizer"):
            pair(torch.float32, Models(target, str(other)))


def test_a_baseline_that_cannot_compile_says_why() -> None:
    def broken(**kwargs: object) -> None:
        raise RuntimeError("no C++ compiler\nand a long story")

    assert reason_against(broken, {}) == "RuntimeError: no C++ compiler"
    assert reason_against(lambda **kwargs: None, {}) is None
