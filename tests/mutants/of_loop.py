"""Mutants of the loop and its surroundings: loop.py, decode.py, state.py, stopping.py, streaming.py,
controller.py, costs.py."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_LOOP, _DECODE, _STATE, _STOPPING = "loop.py", "decode.py", "state.py", "stopping.py"
_GREEDY = "tests/lossless/test_greedy_equality.py"
_INTERPRETER = "tests/lossless/test_sampling_interpreter.py"
_GENERATE = "tests/test_generate.py"
_MODELS = "tests/test_models.py"
_TREES = "tests/lossless/test_trees.py"
_RAGGED = f"{_GREEDY}::test_equals_generate[llama-model-3-sdpa]"
_PLAIN = f"{_INTERPRETER}::test_equals_the_interpreter[llama-plain-3]"
_WARPED = f"{_INTERPRETER}::test_equals_the_interpreter[llama-warped-3]"
_REPLAYED = "tests/lossless/test_matrix_sampled.py::test_rules_decide_as_their_plain_readings"
_STOPS = "tests/test_stopping.py"

LOOP = [
    Mutant(
        "no `finally`: a failed call leaves its session open and the model changed",
        _LOOP,
        "        finally:\n            try:\n                self.session.close()",
        "        else:\n            try:\n                self.session.close()",
        [f"{_GENERATE}::test_after_an_exception_everything_is_as_before", "tests/drafters/test_suffix_drafter.py"],
    ),
    Mutant(
        "one draft token more than there is room for",
        _LOOP,
        "self.stopping.max_new_tokens - (n - p) - 1\n",
        "self.stopping.max_new_tokens - (n - p)\n",
        [f"{_GREEDY}::test_up_to_the_last_position", f"{_GREEDY}::test_never_overshoots", _PLAIN],
    ),
    Mutant(
        "rows that must be level take what the fastest accepted",
        _LOOP,
        "acceptance = acceptance.cut(proposal, acceptance.num_accepted.min())",
        "acceptance = acceptance.cut(proposal, acceptance.num_accepted.max())",
        [f"{_MODELS}::test_equals_generate[bloom-model-3]"],
    ),
    Mutant(
        "the bonus token counts as seen",
        _LOOP,
        "kept = cache.retained([p + a for p, a in zip(round_.pending, num_accepted, strict=True)])",
        "kept = cache.retained([p + a + 1 for p, a in zip(round_.pending, num_accepted, strict=True)])",
        [_RAGGED],
    ),
    Mutant(
        "the cache keeps one rejected token",
        _LOOP,
        "cache.commit(window.num_pending + acceptance.num_accepted, None",
        "cache.commit(window.num_pending + acceptance.num_accepted + 1, None",
        [_RAGGED],
    ),
    Mutant(
        "an accepted path is moved from one node before",
        _LOOP,
        "torch.where(acceptance.path >= 0, acceptance.path + 1, -1), (1, 0))",
        "torch.where(acceptance.path >= 0, acceptance.path, -1), (1, 0))",
        [f"{_TREES}::test_greedy_equality"],
    ),
    Mutant(
        "processors on the draft's side only",
        _LOOP,
        "acceptance = rule(scores.softmax(-1), proposal, state.coins())",
        "acceptance = rule(logits.float().softmax(-1), proposal, state.coins())",
        [_WARPED],
    ),
    Mutant(
        "rejection where block verification was asked for",
        _LOOP,
        'rule = block if self.rule == "block" and proposal.is_chain else rejection',
        "rule = rejection",
        [f"{_REPLAYED}[gpt2-model-block]"],
    ),
    Mutant(
        "the compiled graph of rejection where block verification was asked for",
        _LOOP,
        'is_rejection = self.rule == "rejection" or proposal.num_nodes == 0',
        "is_rejection = True",
        ["tests/compiled/test_chance.py::test_block_verification_and_greedy_calls_ask_for_none"],
    ),
    Mutant(
        "the compiled graph's coins are those of the round before",
        _LOOP,
        "last = int_tensor([row[-1:] for row in state.host_tokens], state.device)\n        names",
        "last = int_tensor([row[-2:-1] for row in state.host_tokens], state.device)\n        names",
        ["tests/compiled/test_rounds.py::test_sampling"],
    ),
    Mutant(
        "drafters are told a path in the chain, not in their tree",
        _LOOP,
        "return torch.where(path >= 0, nodes.gather(1, path.clamp(min=0)), -1)",
        "return path",
        ["tests/test_told.py"],
    ),
    Mutant(
        "a broken drafter is believed",
        _LOOP,
        "if any(broken or deepest > depth for deepest, _, broken, *_ in host):",
        "if any(deepest > depth for deepest, _, broken, *_ in host):",
        [f"{_GENERATE}::test_a_broken_drafter_gets_a_typed_error"],
    ),
    Mutant(
        "a text that stops in the middle keeps the trace of what was cut",
        _LOOP,
        "trace.truncate(request, len(output))",
        "pass",
        ["tests/test_told.py"],
    ),
]

CALL = [
    Mutant(
        "the generator is advanced though nothing is sampled",
        _DECODE,
        "seed = _seed(generator) if sampler.do_sample else None",
        "seed = _seed(generator)",
        [f"{_INTERPRETER}::test_seeding"],
    ),
    Mutant(
        "seeds are ignored",
        _DECODE,
        "return int(torch.randint(-(2**63), 2**63 - 1, (), generator=generator, device=device))",
        "return 0",
        ["tests/lossless/test_shipped_bugs.py::test_seeds_ignored", f"{_INTERPRETER}::test_seeding"],
    ),
    Mutant(
        "the generator given is ignored",
        _DECODE,
        "return int(torch.randint(-(2**63), 2**63 - 1, (), generator=generator, device=device))",
        "return int(torch.randint(-(2**63), 2**63 - 1, (), device=device))",
        [_PLAIN, f"{_INTERPRETER}::test_the_same_seed_gives_the_same_text_whatever_the_batch"],
    ),
    Mutant(
        "padding stands in front of short outputs",
        _DECODE,
        "rows = [tokens + [pad] * (longest - len(tokens)) for tokens in new]",
        "rows = [[pad] * (longest - len(tokens)) + tokens for tokens in new]",
        [f"{_GREEDY}::test_eos_inside_an_accepted_block"],
    ),
    Mutant(
        "drafts are verified by models that lose their state in a window",
        _DECODE,
        "if drafter is None or not runner.layout.stepwise:",
        "if True:",
        [f"{_MODELS}::test_equals_generate[mamba-model-1]", f"{_MODELS}::test_equals_generate[jamba-model-1]"],
    ),
]

STATE = [
    Mutant(
        "coins are kept for the next round",
        _STATE,
        "self._coins = self._names = None\n        for row, values",
        "self._names = None\n        for row, values",
        [_PLAIN, "tests/verify/test_coins.py::test_no_key_is_drawn_twice_by_generate"],
    ),
    Mutant(
        "rows that stay get other rows' coins",
        _STATE,
        "self._lengths[index], self.requests[index]",
        "self._lengths[index], self.requests[: len(rows)]",
        ["tests/lossless/test_rows_that_leave.py"],
    ),
    Mutant(
        "a processor sees later drafts",
        _STATE,
        "paths.append(torch.cat([paths[parent + 1], proposal.tokens[row, node : node + 1]]))",
        "paths.append(torch.cat([paths[0], proposal.tokens[row]]))",
        [
            f"{_TREES}::test_a_processor_sees_the_path_to_its_own_node",
            f"{_INTERPRETER}::test_equals_the_interpreter[llama-penalised-1]",
        ],
    ),
    Mutant(
        "a processor sees a node's elder siblings",
        _STATE,
        "paths.append(torch.cat([paths[parent + 1], proposal.tokens[row, node : node + 1]]))",
        "paths.append(torch.cat([paths[0], proposal.tokens[row, : node + 1]]))",
        [f"{_TREES}::test_a_processor_sees_the_path_to_its_own_node"],
    ),
    Mutant(
        "a penalty counts only the last token",
        _STATE,
        "new = tokens[row, self.prompt_lengths[row] : len(self.host_tokens[row])]",
        "new = tokens[row, len(self.host_tokens[row]) - 1 : len(self.host_tokens[row])]",
        [
            f"{_TREES}::test_a_processor_sees_the_path_to_its_own_node",
            f"{_INTERPRETER}::test_equals_the_interpreter[llama-penalised-1]",
        ],
    ),
    Mutant(
        "processors are shown another row's prompt once a row has left",
        _STATE,
        "paths: list[Tensor] = [torch.cat([self.prompt[request], new])]",
        "paths: list[Tensor] = [torch.cat([self.prompt[row], new])]",
        ["tests/lossless/test_rows_that_leave.py"],
    ),
    Mutant(
        "rows that stay count their output from another row's prompt",
        _STATE,
        "self.prompt_lengths = [self.prompt_lengths[r] for r in rows]",
        "self.prompt_lengths = self.prompt_lengths[: len(rows)]",
        ["tests/lossless/test_rows_that_leave.py"],
    ),
    Mutant(
        "the device's copy of a text lacks its newest token",
        _STATE,
        "where = torch.where(steps < num_new[:, None], where, last)",
        "where = torch.where(steps < num_new[:, None] - 1, where, last)",
        [_RAGGED],
    ),
]

STOPPING = [
    Mutant(
        "EOS is looked for at the last token of a block only",
        _STOPPING,
        "stop = next((i for i, t in enumerate(tokens) if t in self.limits.eos_token_ids), None)",
        "stop = len(tokens) - 1 if tokens and tokens[-1] in self.limits.eos_token_ids else None",
        [
            "tests/lossless/test_shipped_bugs.py::test_eos_inside_an_accepted_block",
            f"{_GREEDY}::test_eos_inside_an_accepted_block",
            _STOPS,
        ],
    ),
    Mutant(
        "EOS itself is left out",
        _STOPPING,
        "tokens = tokens[: stop + 1]",
        "tokens = tokens[:stop]",
        [f"{_GREEDY}::test_eos_inside_an_accepted_block", _STOPS],
    ),
    Mutant(
        "the stop string's window is one token too short",
        _STOPPING,
        "windows = [text[max(0, start + length - most) : start + length] for length in lengths]",
        "windows = [text[max(0, start + length - most + 1) : start + length] for length in lengths]",
        ["tests/test_stop_strings.py"],
    ),
    Mutant(
        "stop strings are looked for at the last token of a block only",
        _STOPPING,
        "lengths = range(before + 1, len(self.outputs[row]) + 1)",
        "lengths = range(len(self.outputs[row]), len(self.outputs[row]) + 1)",
        ["tests/lossless/test_shipped_bugs.py::test_stop_strings_across_a_block", "tests/test_stop_strings.py"],
    ),
    Mutant(
        "a stop string that begins in the prompt is not seen",
        _STOPPING,
        "text, start = self._tails[row] + self.outputs[row], len(self._tails[row])",
        "text, start = self.outputs[row], 0",
        ["tests/test_stop_strings.py"],
    ),
    Mutant(
        "the last of two stop strings in a block counts",
        _STOPPING,
        "return min(found, default=None)",
        "return max(found, default=None)",
        ["tests/test_stop_strings.py"],
    ),
    Mutant(
        "the length limit comes before a stop string",
        _STOPPING,
        "if stringed is not None:\n            self._end(row, stringed)\n        elif ended:\n"
        "            self._end(row, len(output))",
        "if ended:\n            self._end(row, len(output))\n        elif stringed is not None:\n"
        "            self._end(row, stringed)",
        ["tests/test_stop_strings.py"],
    ),
    Mutant(
        "a block overshoots the length limit",
        _STOPPING,
        "tokens = tokens[: self.max_new_tokens - len(output)]",
        "tokens = list(tokens)",
        ["tests/test_stop_strings.py::test_a_block_longer_than_what_is_left"],
    ),
    Mutant(
        "rows are published before all criteria have seen them",
        _STOPPING,
        "return min(length, self._column) if self._by_column else length",
        "return length",
        [_STOPS],
    ),
    Mutant(
        "a criterion is shown the last column only",
        _STOPPING,
        "ends = self._ask(column + 1)",
        "ends = self._ask(min(map(len, self.outputs)))",
        [_STOPS],
    ),
    Mutant(
        "only the last token of a round is streamed",
        "streaming.py",
        "self._rows[row] += tokens",
        "self._rows[row] += tokens[-1:]",
        ["tests/lossless/test_shipped_bugs.py::test_the_last_token_only_being_streamed", "tests/test_streaming.py"],
    ),
    Mutant(
        "a step is streamed before the slowest row has it",
        "streaming.py",
        "while self._step < last and all(",
        "while self._step < last and any(",
        ["tests/test_streaming.py"],
    ),
]

CONTROLLER = [
    Mutant(
        "acceptance at a depth counts only where it was accepted",
        "controller.py",
        "was_reached = sum(a >= d - 1 for a in pairs) / rows",
        "was_reached = sum(a >= d for a in pairs) / rows",
        ["tests/test_auto_bounds.py"],
    ),
    Mutant(
        "a draft that does not pay is tried again at once",
        "controller.py",
        "self._wait = self._pause",
        "self._wait = 1",
        ["tests/test_controller.py"],
    ),
    Mutant(
        "a draft that did not pay is never tried again",
        "controller.py",
        "if self._wait > 0 or not self._account.allows(self._costs.of_trying):",
        "if self._wait >= 0:",
        ["tests/test_controller.py"],
    ),
    Mutant(
        "wider steps are taken to cost nothing",
        "controller.py",
        "yield depth, expected * plain / (depth * draft + steps[depth + refed])",
        "yield depth, expected * plain / (depth * draft + plain)",
        ["tests/test_auto_bounds.py"],
    ),
    Mutant(
        "a width timed in one busy moment is taken for its price",
        "costs.py",
        "return len(self._last) >= 3 and not self._is_stale",
        "return not self._is_stale",
        ["tests/test_auto_bounds.py"],
    ),
    Mutant(
        "what a width cost long ago is its price for ever",
        "costs.py",
        "if self._round - recent.round > self._OLD:",
        "if self._round < 0:",
        ["tests/test_auto_bounds.py"],
    ),
    Mutant(
        "no account is kept of what drafting has lost",
        "controller.py",
        "self._account.add(lost)",
        "pass",
        ["tests/test_auto_bounds.py"],
    ),
    Mutant(
        "a decoder forgets what its last call had lost",
        "decode.py",
        "call.debts[alike] = controller.debt",
        "call.debts[alike] = 0.0",
        ["tests/test_debts.py"],
    ),
    Mutant(
        "one call's debt is every call's",
        "decode.py",
        "alike = (type(drafter), len(prompt.ids), sampler.do_sample,",
        "alike = (type(drafter), 0, sampler.do_sample,",
        ["tests/test_debts.py"],
    ),
    Mutant(
        "a debt is for ever",
        "controller.py",
        "_KEPT = 0.9",
        "_KEPT = 1.9",
        ["tests/test_auto_bounds.py::test_a_debt_does_not_keep_good_drafts_away"],
    ),
    Mutant(
        "a debt counts for nothing",
        "controller.py",
        "self.lost = debt",
        "self.lost = 0.0",
        ["tests/test_auto_bounds.py::test_many_short_texts_lose_less_than_one"],
    ),
    Mutant(
        "a drafter of one depth drafts on, whatever it has lost",
        "controller.py",
        "return self._depth if self._account.allows(max(0.0, self._loss)) else 0",
        "return self._depth",
        ["tests/test_auto_bounds.py"],
    ),
    Mutant(
        "a drafter of one depth is never asked whether it pays",
        "decode.py",
        "AutoSwitch(min(depth, MAX_DRAFT_TOKENS), debt)",
        "FixedLength(min(depth, MAX_DRAFT_TOKENS))",
        ["tests/drafters/test_lookahead.py::test_rounds_without_drafts"],
    ),
    Mutant(
        "a processor's NaN is laid to the drafter",
        _LOOP,
        "if any(tokens[accepted] < 0 for _, accepted, _, *tokens in host):",
        "if any(tokens[accepted] < 0 and not broken for _, accepted, broken, *tokens in host):",
        [f"{_GENERATE}::test_a_processor_that_gives_nan_is_not_laid_to_the_drafter"],
    ),
]

MUTANTS = [*LOOP, *CALL, *STATE, *STOPPING, *CONTROLLER]
