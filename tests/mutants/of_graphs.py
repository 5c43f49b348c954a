"""Mutants of specdec/compiled/: the graph of a step, and that of chance."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_CHANCE, _GRAPH, _SAMPLED = "compiled/chance.py", "compiled/graph.py", "compiled/sampled.py"
_TESTS = "tests/compiled/test_chance.py"
_RULE = [f"{_TESTS}::test_commits_what_the_rule_does", f"{_TESTS}::test_draws_what_a_draft_would"]
_LAW = "tests/lossless/test_law_of_chance.py"
_CAPTURED = "tests/compiled/test_captured.py::test_equals_generate"
_LLAMA = [f"{_CAPTURED}[llama-3-model]"]

CHANCE = [
    Mutant(
        "graph of chance: tokens are compared with the ones before",
        _CHANCE,
        "drafted = tokens.roll(-1, 1)",
        "drafted = tokens.roll(1, 1)",
        [_LAW],
    ),
    Mutant(
        "graph of chance: padding is verified",
        _CHANCE,
        "valid = (steps < num_valid[:, None]) & (steps < kept - 1)",
        "valid = (steps < num_valid[:, None] + kept) & (steps < kept - 1)",
        [_LAW],
    ),
    Mutant(
        "graph of chance: every token's q is that of the first",
        _CHANCE,
        "drawn_from = steps.clamp(max=q.shape[1] - 1)",
        "drawn_from = steps * 0",
        [_LAW],
    ),
    Mutant(
        "graph of chance: given tokens have a soft q",
        _CHANCE,
        "q = torch.where(is_given, alone.to(q.dtype), q[:, drawn_from])",
        "q = torch.where(is_given, probs, q[:, drawn_from])",
        [_LAW],
    ),
    Mutant(
        "graph of chance: all processors have the first one's number",
        _CHANCE,
        "setattr(processor, name, numbers[count])",
        "setattr(processor, name, numbers[0])",
        _RULE,
    ),
    Mutant(
        "graph of chance: acceptance and next token share a coin",
        _CHANCE,
        "self.lengths[:, None], int(Purpose.ACCEPT), nodes)",
        "self.lengths[:, None], self.purpose, nodes)",
        _RULE,
    ),
    Mutant(
        "graph of chance: a coin of 0 accepts what has probability 0",
        _CHANCE,
        "int(Purpose.ACCEPT), nodes) < prob",
        "int(Purpose.ACCEPT), nodes) <= prob",
        ["tests/lossless/test_law_of_chance.py"],
    ),
    Mutant(
        "graph of chance: rows end at the slot of the last accepted token",
        _CHANCE,
        "return outcome, starts + acceptance.num_accepted + 1, probs",
        "return outcome, starts + acceptance.num_accepted, probs",
        [_LAW],
    ),
    Mutant(
        "graph of chance: a broken drafter is believed",
        _CHANCE,
        "broken = broken | ((known != drafted) & valid).any(1)",
        "broken = broken & False",
        [f"{_TESTS}::test_a_broken_drafter_is_told"],
    ),
    Mutant(
        "graph of chance: all draft nodes share a coin",
        _SAMPLED,
        "purpose = self._draft[node] = torch.tensor([Purpose.DRAFT, node], device=self._device)",
        "purpose = self._draft[node] = torch.tensor([Purpose.DRAFT, 0], device=self._device)",
        _RULE,
    ),
    Mutant(
        "graph of chance: temperature is forgotten",
        _SAMPLED,
        "self._numbers = torch.tensor(recipe.numbers, dtype=torch.float32, device=device)",
        "self._numbers = torch.ones(len(recipe.numbers), dtype=torch.float32, device=device)",
        _RULE,
    ),
]

GRAPH = [
    Mutant(
        "graph: a draft is compared with the choice behind it",
        _GRAPH,
        "num_accepted = ((follows == choice) & is_drafted)",
        "num_accepted = ((tokens[:, keep] == choice) & is_drafted)",
        _LLAMA,
    ),
    Mutant(
        "graph: padding behind a row's chain is verified",
        _GRAPH,
        "is_drafted = torch.arange(choice.shape[1], device=device) < num_valid[:, None]",
        "is_drafted = torch.arange(choice.shape[1], device=device) <= num_valid[:, None]",
        ["tests/compiled/test_rounds.py::test_padding_is_not_accepted_though_it_would_be_right"],
    ),
    Mutant(
        "graph: drafts behind a rejection are accepted",
        _GRAPH,
        "is_drafted).to(torch.int64).cumprod(1).sum(1)",
        "is_drafted).to(torch.int64).sum(1)",
        _LLAMA,
    ),
    Mutant(
        "graph: a row ends at the slot of its last accepted token",
        _GRAPH,
        "starts + keep[0] + num_accepted + 1, logits",
        "starts + keep[0] + num_accepted, logits",
        _LLAMA,
    ),
    Mutant(
        "graph: a window sees the slot it writes first, whoever asks",
        _GRAPH,
        "seen = (place < 0)[:, None, :] |",
        "seen = (place <= 0)[:, None, :] |",
        [*_LLAMA, "tests/compiled/test_captured_trees.py"],
    ),
    Mutant(
        "graph: what lies behind the window is seen",
        _GRAPH,
        "(kin & (place < width)[:, None, :])",
        "(kin | (place >= width)[:, None, :])",
        _LLAMA,
    ),
    Mutant(
        "graph: a sliding window is one token too wide",
        _GRAPH,
        "(offsets[:, :, None] - position[:, None, :] < size)",
        "(offsets[:, :, None] - position[:, None, :] <= size)",
        [f"{_CAPTURED}[gpt_oss-1-model]"],
    ),
    Mutant(
        "graph: positions are slots, not a tree's depths",
        _GRAPH,
        "positions = starts[:, None] + offsets\n",
        "positions = slots\n",
        ["tests/compiled/test_captured_trees.py"],
    ),
    Mutant(
        "graph: scores are not scaled",
        "compiled/attention.py",
        "scale = dim**-0.5 if scaling is None else scaling",
        "scale = 1.0",
        _LLAMA,
    ),
    Mutant(
        "graph: a sink takes no weight",
        "compiled/attention.py",
        "weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]",
        "weights = scores.softmax(-1)",
        [f"{_CAPTURED}[gpt_oss-1-model]"],
    ),
]

_ARENA, _RECORDED, _SHAPES = "compiled/arena.py", "compiled/recorded.py", "compiled/shapes.py"
_OF_RECORDED, _OF_ARENA = "tests/compiled/test_recorded.py", "tests/compiled/test_arena.py"
RECORDED = [
    Mutant(
        "recording: tokens are not copied where they are the same tensor",
        _RECORDED,
        "            if i in fresh:\n",
        "            if i in fresh and not place.equal(place):\n",
        [f"{_OF_RECORDED}::test_what_is_fresh_may_be_written_to_and_what_is_not_may_be_another"],
    ),
    Mutant(
        "recording: constants are copied once",
        _RECORDED,
        "elif tensor is not self._held[i]:",
        "elif self._held[i] is None:",
        [f"{_OF_RECORDED}::test_what_is_fresh_may_be_written_to_and_what_is_not_may_be_another"],
    ),
    Mutant(
        "recording: outputs are handed out where the next replay writes",
        _RECORDED,
        "return tuple(output.clone() for output in self._outputs)",
        "return tuple(output for output in self._outputs)",
        [f"{_OF_RECORDED}::test_outputs_outlive_the_next_replay"],
    ),
    Mutant(
        "recording: one of another cache is replayed",
        _RECORDED,
        "tuple((tensor.data_ptr(), tensor.shape) for tensor in memory)",
        "tuple(tensor.shape for tensor in memory)",
        [f"{_OF_RECORDED}::test_a_recording_is_of_one_memory_and_shape"],
    ),
    Mutant(
        "recording: a replay is not compared with the call",
        _RECORDED,
        "if not same(outputs, self(first, fresh)):",
        "if not self(first, fresh):",
        [f"{_OF_RECORDED}::test_a_replay_that_does_something_else_is_not_kept"],
    ),
    Mutant(
        "recording: what a replay writes is not looked at",
        _RECORDED,
        "is_right = bool(written.any()) and same([right[written]], [part[written]])",
        "is_right = True",
        [f"{_OF_RECORDED}::test_a_replay_that_does_something_else_is_not_kept"],
    ),
    Mutant(
        "recording: what a bad replay wrote is left",
        _RECORDED,
        "_call(self._function, places, memory)  # what was written is not to be trusted",
        "pass",
        [f"{_OF_RECORDED}::test_a_replay_that_does_something_else_is_not_kept"],
    ),
    Mutant(
        "recording: what cannot be recorded is tried again",
        _RECORDED,
        "                self._is_off = True\n",
        "                self._is_off = False\n",
        [f"{_OF_RECORDED}::test_what_cannot_be_recorded_is_called_as_it_is"],
    ),
    Mutant(
        "arena: what somebody looks at is lent again",
        _ARENA,
        "return _holders(block) == _ALONE",
        "return _holders(block) >= _ALONE",
        [f"{_OF_ARENA}::test_what_somebody_looks_at_is_not_lent"],
    ),
    Mutant(
        "arena: what an earlier cache held is left in it",
        _ARENA,
        "block.zero_()",
        "block.add_(0)",
        [f"{_OF_ARENA}::test_the_same_again_once_nobody_looks_and_all_zeros"],
    ),
    Mutant(
        "arena: all is kept for ever",
        _ARENA,
        "if kept <= most:",
        "if kept >= 0:",
        [f"{_OF_ARENA}::test_little_is_kept"],
    ),
    Mutant(
        "a cache that grows leaves behind what it has",
        "cache/layers.py",
        "new[:, :, : old.shape[2]] = old",
        "new[:, :, : old.shape[2]] = 0",
        [f"{_OF_ARENA}::test_a_growing_cache_keeps_what_it_has"],
    ),
    Mutant(
        "kernels that give other logits are used",
        _SHAPES,
        "if not is_right:",
        "if False:",
        ["tests/compiled/test_shapes.py::test_kernels_that_give_other_logits"],
    ),
    Mutant(
        "what bad kernels wrote is left",
        _SHAPES,
        "outputs = self._program(*arguments)  # what was written is not to be trusted",
        "pass",
        ["tests/compiled/test_shapes.py::test_kernels_that_give_other_logits"],
    ),
    Mutant(
        "a cache whose rows are more than there were grows to the old number",
        "compiled/runner.py",
        "shapes = [(rows, heads,",
        "shapes = [(batch_size, heads,",
        [f"{_OF_ARENA}::test_more_rows_than_there_were"],
    ),
]

_PRODUCTS = "compiled/products.py"
_OF_PRODUCTS = ["tests/compiled/test_products.py::test_products"]
PRODUCTS = [
    Mutant(
        "products: inputs behind the last four are left out",
        _PRODUCTS,
        "    for (; k < K; ++k) {\n        add(k);\n    }\n",
        "",
        _OF_PRODUCTS,
    ),
    Mutant(
        "products: each part of the inputs begins anew",
        _PRODUCTS,
        "if (accum || begin > 0)",
        "if (accum)",
        _OF_PRODUCTS,
    ),
    Mutant(
        "products: numbers behind the last eight of a row are not converted",
        _PRODUCTS,
        "                    to[k] = static_cast<float>(from[k]);\n",
        "                    to[k] = 0;\n",
        _OF_PRODUCTS,
    ),
    Mutant(
        "products: where they cannot be compiled torch's rivals are next",
        "compiled/build.py",
        "((OPTIONS, True), (OPTIONS, False), (WITH_RIVALS, True))",
        "((OPTIONS, True), (WITH_RIVALS, True), (WITH_RIVALS, False))",
        ["tests/compiled/test_products.py::test_inductor_s_own_where_ours_cannot_be_compiled"],
    ),
    Mutant(
        "products: inductor keeps them after a failed build",
        _PRODUCTS,
        "            inductor.micro_gemm_configs = before\n",
        "            pass\n",
        ["tests/compiled/test_products.py::test_inductor_is_left_as_it_was"],
    ),
]

MUTANTS = [*CHANCE, *GRAPH, *RECORDED, *PRODUCTS]
