"""Mutants of sampling.py, processors.py and drafters/: what is proposed, and the law that it is said to have."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_MODEL, _PLANS, _TREE = "drafters/model.py", "drafters/plans.py", "drafters/tree_session.py"
_SAMPLING, _PROCESSORS = "sampling.py", "processors.py"
_STRATEGIES = "tests/lossless/test_tree_strategies.py"
_INTERPRETER = "tests/lossless/test_sampling_interpreter.py::test_equals_the_interpreter"
_TREES = "tests/drafters/test_tree.py"
_MIXED = "tests/drafters/test_mixed.py"
_CROSS = "tests/drafters/test_cross_tokenizer.py"

SAMPLING = [
    Mutant(
        "a constraint is asked about what it forbids",
        _SAMPLING,
        "possible = parents.softmax(-1).gather(1, tokens[:, None])[:, 0] > 0",
        "possible = parents.softmax(-1).gather(1, tokens[:, None])[:, 0] >= 0",
        ["tests/test_sampling.py"],
    ),
    Mutant(
        "what a row's processor holds is another row's",
        _SAMPLING,
        "one = for_rows(processor, group.requests, self.batch_size)",
        "one = for_rows(processor, list(range(len(group.requests))), self.batch_size)",
        ["tests/test_equality.py", "tests/test_sampling.py"],
    ),
    Mutant(
        "processors write into the model's logits",
        _SAMPLING,
        "            flat = flat.clone()\n",
        "            flat = flat.view(flat.shape)\n",
        ["tests/test_sampling.py", "tests/equality/test_outputs.py"],
    ),
    Mutant(
        "only the first processor counts",
        _SAMPLING,
        "for processor in self.processors:\n                flat = processor(",
        "for processor in self.processors[:1]:\n                flat = processor(",
        [f"{_INTERPRETER}[llama-warped-1]"],
    ),
    Mutant(
        "a processor that draws random numbers is taken for a function",
        _PROCESSORS,
        "if not _same(first, processor(input_ids, scores.clone())):",
        "if first is None:",
        ["tests/test_sampling.py::test_own_processors_are_asked_twice"],
    ),
    Mutant(
        "a processor that treats rows by their index is not refused",
        _PROCESSORS,
        "        if not alike:\n",
        "        if not alike and batch_size > 99:\n",
        ["tests/test_sampling.py::test_own_processors_are_asked_twice"],
    ),
]

MODEL = [
    Mutant(
        "temperature on one side: q is not what was drawn from",
        _MODEL,
        "q.append(probs)\n        # -1",
        "q.append(scores.mul(0.5).softmax(-1))\n        # -1",
        [f"{_STRATEGIES}::test_chains_that_stop_when_unsure_are_exact", f"{_INTERPRETER}[llama-plain-1]"],
    ),
    Mutant(
        "argmax drafts with a soft q",
        _MODEL,
        "return state.coins().draft(probs, node=node)",
        "return probs.argmax(-1)",
        [f"{_STRATEGIES}::test_chains_that_stop_when_unsure_are_exact", f"{_INTERPRETER}[llama-plain-1]"],
    ),
    Mutant(
        "a drawn token is dropped because it was unlikely",
        _MODEL,
        "usable = torch.stack(valid[:depth], 1)",
        "usable = torch.stack(valid[:depth], 1) & (\n"
        "                torch.stack(q, 1).gather(2, torch.stack(tokens, 1)[:, :, None])[:, :, 0].cumprod(1)\n"
        "                >= self._min_confidence\n"
        "            )",
        [f"{_STRATEGIES}::test_chains_that_stop_when_unsure_are_exact"],
    ),
    Mutant(
        "all draft nodes share a coin",
        _MODEL,
        "return state.coins().draft(probs, node=node)",
        "return state.coins().draft(probs, node=0)",
        [f"{_STRATEGIES}::test_chains_that_stop_when_unsure_are_exact", f"{_INTERPRETER}[llama-plain-1]"],
    ),
    Mutant(
        "the draft's cache keeps one rejected token",
        _MODEL,
        "self._cache.commit(self._pending + num_drafted)",
        "self._cache.commit(self._pending + num_drafted + 1)",
        [f"{_INTERPRETER}[llama-plain-3]", "tests/drafters/test_model.py"],
    ),
    Mutant(
        "the draft takes its last token for read though it was never fed",
        _MODEL,
        "self._commit([min(a, self._fed) for a in num_accepted], torch.clamp(acceptance.num_accepted, max=self._fed))",
        "self._commit(list(num_accepted), acceptance.num_accepted)",
        ["tests/lossless/test_greedy_equality.py::test_equals_generate"],
    ),
    Mutant(
        "a draft's padding is proposed",
        _MODEL,
        "logits = logits[..., : state.vocab_size]",
        "logits = logits[..., -state.vocab_size :]",
        [
            "tests/lossless/test_shipped_bugs.py::test_padded_vocabularies",
            "tests/drafters/test_model.py::test_padded_vocabularies",
        ],
    ),
    Mutant(
        "a chain goes on past the draft's own context",
        _MODEL,
        "return min(max(limit), self._runner.max_positions - max(state.host_ends(self._runner.layout.level)))",
        "return max(limit)",
        ["tests/lossless/test_greedy_equality.py::test_a_draft_with_a_shorter_context_stops_drafting"],
    ),
    Mutant(
        "the bound on confidence is each token's own",
        "drafters/confidence.py",
        "self._product = self._product * probs.amax(-1)",
        "self._product = probs.amax(-1)",
        ["tests/drafters/test_tree.py::test_chains_end_where_the_draft_is_unsure"],
    ),
]

TREES = [
    Mutant(
        "sampled siblings are sorted by their probability",
        _PLANS,
        "drawn = torch.stack(tokens, 1)\n",
        "drawn = torch.stack(tokens, 1)\n"
        "        if depth == 1:\n"
        "            drawn = drawn.gather(1, probs[:, 0].gather(1, drawn.clamp(min=0)).argsort(1, descending=True))\n",
        [f"{_STRATEGIES}::test_sampled_trees_are_exact"],
    ),
    Mutant(
        "duplicates among i.i.d. siblings are dropped",
        _PLANS,
        "worth = torch.where((drawn < 0) & is_sane[:, parents], NEVER, worth)",
        "twin = (drawn[:, :, None] == drawn[:, None, :]) & (parents[:, None] == parents)\n"
        "        twin = twin & (torch.arange(len(nodes)) < torch.arange(len(nodes))[:, None])\n"
        "        worth = torch.where(((drawn < 0) & is_sane[:, parents]) | twin.any(2), NEVER, worth)",
        [f"{_STRATEGIES}::test_sampled_trees_are_exact"],
    ),
    Mutant(
        "siblings are drawn with replacement though they say without",
        _PLANS,
        "if self._law is Law.WITHOUT_REPLACEMENT:",
        "if self._law is Law.GIVEN:",
        [_STRATEGIES],
    ),
    Mutant(
        "siblings are drawn without replacement though they say i.i.d.",
        _PLANS,
        "if self._law is Law.WITHOUT_REPLACEMENT:",
        "if self._law is Law.IID:",
        [f"{_STRATEGIES}::test_sampled_trees_are_exact"],
    ),
    Mutant(
        "a sampled node is dropped because it was unlikely",
        _PLANS,
        "worth = (values + probs.amax(-1).log())[:, parents]",
        "worth = (values[:, parents] + probs[:, parents].gather(2, drawn.clamp(min=0)[:, :, None])[:, :, 0].log())",
        [f"{_STRATEGIES}::test_sampled_trees_are_exact"],
    ),
    Mutant(
        "a node's q is that of the parent before",
        _PLANS,
        "index.append(self.layout(d)[1] + first)",
        "index.append((self.layout(d)[1] + first - 1).clamp(min=0))",
        [f"{_STRATEGIES}::test_sampled_trees_are_exact"],
    ),
    Mutant(
        "one draft coin for all siblings",
        _PLANS,
        "token = self._state.coins().draft(weights[:, parent], node=node)",
        "token = self._state.coins().draft(weights[:, parent], node=nodes[0])",
        [f"{_STRATEGIES}::test_sampled_trees_are_exact", f"{_TREES}::test_what_is_drawn_when"],
    ),
    Mutant(
        "a drafted node's position is its number, not its depth",
        "drafters/branches.py",
        "positions=lengths[:, None] - 1 + torch.tensor(self.depths[first:], device=lengths.device)",
        "positions=lengths[:, None] + steps",
        [f"{_TREES}::test_the_target_drafts_for_itself", f"{_TREES}::test_best_first_trees_are_the_best_of_their_size"],
    ),
    Mutant(
        "a drafted node sees its elder siblings",
        "drafters/branches.py",
        "mask=(node < 0)[:, None] | kin",
        "mask=torch.ones_like(kin)",
        [f"{_TREES}::test_the_target_drafts_for_itself", f"{_TREES}::test_best_first_trees_are_the_best_of_their_size"],
    ),
    Mutant(
        "the draft's cache keeps the wrong branch",
        _TREE,
        "self._cache.commit(num_kept, torch.where(steps < num_kept[:, None], places, -1))",
        "self._cache.commit(num_kept, torch.where(steps < num_kept[:, None], steps, -1))",
        [
            f"{_TREES}::test_the_target_drafts_for_itself",
            f"{_TREES}::test_trees_accept_more_than_chains_of_their_depth",
        ],
    ),
    Mutant(
        "a tree's last node is taken for fed",
        _TREE,
        "kept = [max(a - 1, 0) for a in num_accepted]",
        "kept = list(num_accepted)",
        [f"{_TREES}::test_the_target_drafts_for_itself"],
    ),
]

OTHERS = [
    Mutant(
        "an n-gram finds itself",
        "drafters/ngram.py",
        "while self._indexed < length - 1:",
        "while self._indexed < length:",
        ["tests/drafters/test_ngram.py"],
    ),
    Mutant(
        "a loop in the text is not followed beyond its end",
        "drafters/ngram.py",
        "return [tokens[start + i % period] for i in range(limit)]",
        "return tokens[start : start + limit]",
        ["tests/drafters/test_ngram.py"],
    ),
    Mutant(
        "rows beside sampled ones keep the sampled q",
        "drafters/joined.py",
        "q=torch.where(row[:, :, None], q, certain)",
        "q=q + 0 * certain",
        [f"{_MIXED}::test_given_rows_beside_sampled_ones_keep_the_law"],
    ),
    Mutant(
        "sampled tokens that were looked at keep their q",
        "drafters/mixed.py",
        "if serves_all and (self._shares[drafter].proposal.q is None or len(self._shares) == 1):",
        "if serves_all:",
        [f"{_MIXED}::test_several_sampled_proposals_lose_their_q"],
    ),
    Mutant(
        "sampled tokens are taken or left by what was drawn",
        "drafters/mixed.py",
        "if own.q is None or len(sampled) > 1:",
        "if own.q is None:",
        [f"{_MIXED}::test_several_sampled_proposals_lose_their_q"],
    ),
    Mutant(
        "drafters of a mix draw with one coin",
        "drafters/mixed.py",
        "state.draft_stream = 1 + drafter if self._is_free[drafter] else 0",
        "state.draft_stream = 0",
        [f"{_MIXED}::test_drafters_of_a_mix_draw_apart"],
    ),
    Mutant(
        "a mix closes its first session only",
        "drafters/mixed.py",
        "            _close(sessions[1:])",
        "            pass",
        [f"{_MIXED}::test_close_reaches_all"],
    ),
    Mutant(
        "a draft of another tokenizer has its q over its own ids",
        "drafters/cross_tokenizer.py",
        "over_target[:, self._target_ids] = logits[:, self._draft_ids]",
        "over_target[:, self._target_ids] = logits[:, self._draft_ids.sort().values]",
        [f"{_CROSS}::test_q_is_over_the_targets_ids", f"{_CROSS}::test_equals_the_interpreter"],
    ),
    Mutant(
        "a retokenised text keeps what is no longer there",
        "drafters/cross_tokenizer.py",
        "self._inner._cache.cut(kept)\n        self._inner._seen = kept",
        "self._inner._cache.cut(self._inner._seen)",
        [f"{_CROSS}::test_drafts_what_the_draft_says", f"{_CROSS}::test_equals_generate"],
    ),
    Mutant(
        "drafts of the target's own layers are committed to its cache",
        "drafters/own_layers.py",
        "            self._cache.abandon()",
        "            self._cache.commit(self._cache.lengths * 0 + 1)",
        ["tests/lossless/test_self_equality.py::test_equals_generate[gpt_neox-1]"],
    ),
    Mutant(
        "a ring makes no room for the target's own drafts",
        "drafters/own_layers.py",
        "replace(window, num_nodes=window.tokens.shape[1])",
        "window",
        ["tests/drafters/test_early_exit.py::test_all_layers_of_a_ring_agree_with_the_target"],
    ),
    Mutant(
        "lookahead's answers go to another column",
        "drafters/lookahead.py",
        "behind = [answers[end + 1] for end in row.ends]",
        "behind = [answers[end] for end in row.ends]",
        ["tests/drafters/test_lookahead.py"],
    ),
]

MUTANTS = [*SAMPLING, *MODEL, *TREES, *OTHERS]
