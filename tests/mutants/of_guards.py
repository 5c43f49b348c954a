"""Mutants of bounds and guards, and the bugs that others shipped which no other file has."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_BOUNDS = "tests/security/test_bounds_held.py"
_SHIPPED = "tests/lossless/test_shipped_bugs.py"
_STORE, _OWN = "compiled/store.py", "drafters/own_layers.py"
_DRAFTING = """            return super().propose(state, limit)
        finally:
            self._cache.abandon()
"""

GUARDS = [
    Mutant(
        "a proposal may have any number of nodes",
        "types.py",
        "if self.num_nodes > MAX_NODES:",
        "if self.num_nodes > 64 * MAX_NODES:",
        [f"{_BOUNDS}::test_a_drafters_own_proposal_is_bounded_as_well"],
    ),
    Mutant(
        "calls may run inside one another deeper than is said",
        "generate.py",
        "if _NESTING.calls >= MOST_NESTED:",
        "if _NESTING.calls > MOST_NESTED:",
        [f"{_BOUNDS}::test_a_drafter_that_calls_itself_without_end"],
    ),
    Mutant(
        "a call that has ended still counts as running",
        "generate.py",
        "_NESTING.calls -= 1",
        "pass",
        [f"{_BOUNDS}::test_a_callback_that_decodes_with_the_same_target"],
    ),
    Mutant(
        "lookahead's n-grams are never forgotten",
        "drafters/jacobi.py",
        "while self._size > self._max_ngrams and len(self._rests) > 1:",
        "while self._size < 0:",
        [f"{_BOUNDS}::test_lookaheads_pool_is_bounded"],
    ),
    Mutant(
        "lookahead's pool miscounts what it forgets",
        "drafters/jacobi.py",
        "self._size -= len(self._rests.pop(next(iter(self._rests))))",
        "self._size -= len(self._rests.pop(next(iter(self._rests)))) + 1",
        [f"{_BOUNDS}::test_lookaheads_pool_is_bounded"],
    ),
    Mutant(
        "lookahead forgets the latest token",
        "drafters/jacobi.py",
        "len(self._rests.pop(next(iter(self._rests))))",
        "len(self._rests.pop(next(reversed(self._rests))))",
        [f"{_BOUNDS}::test_lookaheads_pool_is_bounded"],
    ),
    Mutant(
        "a changed manifest is believed",
        _STORE,
        'if content.pop("digest") != _digest(content) or content["key"]',
        'if not content.pop("digest") or content["key"]',
        ["tests/test_file_fuzz.py::test_a_damaged_manifest"],
    ),
    Mutant(
        "a changed package of the same length is loaded",
        _STORE,
        "status.st_size == package.num_bytes and _sha256(file) == package.sha256",
        "status.st_size == package.num_bytes",
        ["tests/compiled/test_store.py::test_a_package_that_is_not_whole_is_never_found"],
    ),
    Mutant(
        "packages are loaded from a folder that others may write to",
        _STORE,
        "return status.st_uid == os.getuid() and not status.st_mode & 0o022",
        "return status.st_uid == os.getuid()",
        ["tests/compiled/test_store.py::test_a_folder_that_others_may_write_to"],
    ),
    Mutant(
        "what the probe found in one dtype holds for all",
        "probe.py",
        "known = (type(runner.model), runner.dtype, implementation,",
        "known = (type(runner.model), implementation,",
        ["tests/test_probe.py::test_what_it_found_is_of_one_dtype_and_one_attention"],
    ),
    Mutant(
        "what the probe found with one attention holds for all",
        "probe.py",
        "runner.dtype, implementation, runner.device.type",
        "runner.dtype, runner.device.type",
        ["tests/test_probe.py::test_what_it_found_is_of_one_dtype_and_one_attention"],
    ),
    Mutant(
        "the target's config is written while its own layers draft",
        _OWN,
        f"        try:\n{_DRAFTING}",
        f"        config = self._runner.model.config if state.target is None else state.target.model.config\n"
        f"        depth, config.num_hidden_layers = config.num_hidden_layers, 1\n        try:\n{_DRAFTING}"
        f"            config.num_hidden_layers = depth\n",
        [f"{_BOUNDS}::test_the_models_forward_is_the_models_own_during_a_call"],
    ),
]

SHIPPED = [
    Mutant(
        "a row may become one token longer than was asked for",
        "stopping.py",
        "else self.limits.max_new_tokens",
        "else self.limits.max_new_tokens + 1",
        [f"{_SHIPPED}::test_max_new_tokens_overshoot"],
    ),
    Mutant(
        "every node is processed behind the root's prefix",
        "state.py",
        "paths.append(torch.cat([paths[parent + 1], proposal.tokens[row, node : node + 1]]))",
        "paths.append(paths[0])",
        [f"{_SHIPPED}::test_penalties_that_see_only_the_last_accepted_token"],
    ),
    Mutant(
        "hidden keys enter the softmax of long windows, which the probe does not see",
        "window.py",
        "return torch.where(mask, zero, hidden)[:, None]",
        "return torch.where(mask, zero, hidden if mask.shape[-1] < 33 else zero)[:, None]",
        [f"{_SHIPPED}::test_zeroed_keys_that_still_enter_the_softmax"],
    ),
    Mutant(
        "a block's last token has no values",
        "cache/layers.py",
        "self.values[:batch_size, :, start:extent] = value_states",
        "self.values[:batch_size, :, start : extent - (4 < opening.width < 7)] = "
        "value_states[:, :, : opening.width - (4 < opening.width < 7)]",
        [f"{_SHIPPED}::test_the_kv_of_the_bonus_token"],
    ),
    Mutant(
        "a ring is read four slots too early, far into a text",
        "cache/sliding.py",
        "return last[:, None] - (last[:, None] - place) % size",
        "return last[:, None] - (last[:, None] - place) % size - 4 * (last[:, None] >= 40)",
        [f"{_SHIPPED}::test_the_sliding_window_after_a_rollback"],
    ),
    Mutant(
        "a cache does not grow",
        "cache/rollback.py",
        "            self._grow(extent)",
        "            pass",
        [f"{_SHIPPED}::test_static_cache_overflow"],
    ),
    Mutant(
        "drafts beyond a row's limit are fed",
        "loop.py",
        "if proposal.num_nodes == 0 or min(limit) >= proposal.depth:",
        "if proposal.num_nodes == 0 or proposal.is_chain:",
        [f"{_SHIPPED}::test_positions_behind_the_contexts_end"],
    ),
    Mutant(
        "the target's layers are cut for a draft, and put back behind it",
        _OWN,
        f"        try:\n{_DRAFTING}",
        "        model = state.target.model.model\n"
        "        layers, model.layers = model.layers, model.layers[:1]\n"
        "        made = super().propose(state, limit)\n"
        "        model.layers = layers\n"
        "        self._cache.abandon()\n"
        "        return made\n",
        [f"{_SHIPPED}::test_early_exit_without_finally"],
    ),
]

MUTANTS = [*GUARDS, *SHIPPED]
