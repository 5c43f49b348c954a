"""Mutants of specdec/verify/coins.py, types.py: the randomness, and the data that travels round the loop."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_COINS, _TYPES = "verify/coins.py", "types.py"
_TESTS = "tests/verify/test_coins.py"
_KEYS = "tests/verify/test_coin_keys.py"
_RULES = "tests/verify/test_rules.py"
_LAW = "tests/lossless/test_exact_law.py"
_GTESTS = "tests/lossless/test_gtests.py"

COINS = [
    Mutant(
        "a coin of 0 accepts what has probability 0",
        _COINS,
        "return self._kept(Purpose.ACCEPT, first + prob.shape[1], rows)[:, first:] < prob",
        "return self._kept(Purpose.ACCEPT, first + prob.shape[1], rows)[:, first:] <= prob",
        [f"{_RULES}::test_a_coin_of_zero_rejects_what_the_target_cannot_say"],
    ),
    Mutant(
        "the next token's coin is that of the first node",
        _COINS,
        "return _inverted(weights, self._kept(Purpose.NEXT_TOKEN, 1, rows)[:, 0])",
        "return _inverted(weights, self._kept(Purpose.ACCEPT, 1, rows)[:, 0])",
        [_KEYS],
    ),
    Mutant(
        "drafts are drawn with the verification's coins",
        _COINS,
        "self._kept(Purpose.DRAFT, node + 1, stream=self.stream)",
        "self._kept(Purpose.ACCEPT, node + 1, stream=self.stream)",
        [_KEYS],
    ),
    Mutant(
        "one coin for all siblings",
        _COINS,
        "nodes = torch.arange(first, first + num_nodes, device=self.requests.device)",
        "nodes = torch.full((num_nodes,), first, device=self.requests.device)",
        [_KEYS],
    ),
    Mutant(
        "the same coins in every round",
        _COINS,
        "self.lengths[:, None], int(purpose), nodes)",
        "self.lengths[:, None] * 0, int(purpose), nodes)",
        [_KEYS],
    ),
    Mutant(
        "coins are named by position: those of a rejected tail come again",
        _COINS,
        "self.lengths[:, None], int(purpose), nodes)",
        "self.lengths[:, None] + nodes, int(purpose))",
        [_KEYS],
    ),
    Mutant(
        "all rows share their coins",
        _COINS,
        "coins = uniform(self.seed, self.requests[:, None],",
        "coins = uniform(self.seed, self.requests[:, None] * 0,",
        [_KEYS],
    ),
    Mutant(
        "the seed is added to the request",
        _COINS,
        "state = _mix(seed * _GOLDEN + _GOLDEN)",
        "state = seed",
        [_TESTS],
    ),
    Mutant(
        "half of the mixing is left out",
        _COINS,
        "x = (x ^ _logical_shift_right(x, 27)) * _MIX_2\n",
        "pass\n",
        [_TESTS],
    ),
    Mutant(
        "shifts drag the sign along",
        _COINS,
        "return (x >> bits) & ((1 << (64 - bits)) - 1)",
        "return x >> bits",
        [_TESTS],
    ),
    Mutant(
        "a token of weight zero can be drawn",
        _COINS,
        "beyond = (cdf > threshold) & (weights > 0)",
        "beyond = cdf >= threshold",
        [_TESTS],
    ),
    Mutant(
        "a coin at the very end draws past the distribution",
        _COINS,
        "threshold = torch.minimum(coin[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))",
        "threshold = coin[:, None] * total * 1.001",
        [_TESTS, f"{_RULES}::test_rejection_over_trees_equals_the_interpreter"],
    ),
    Mutant(
        "weights that are no distribution give a token",
        _COINS,
        "return torch.where(usable.squeeze(1), index, -1)",
        "return index",
        [_TESTS, _RULES],
    ),
]

TYPES = [
    Mutant(
        "the next token is not among the committed ones",
        _TYPES,
        "return out.scatter(1, self.num_accepted[:, None], self.next_token[:, None])",
        "return out",
        [f"{_RULES}::test_layout_of_the_tokens", f"{_LAW}::test_chains"],
    ),
    Mutant(
        "a round that was cut short keeps its next token",
        _TYPES,
        "next_token = torch.where(self.num_accepted > num_accepted, beyond, self.next_token)",
        "next_token = self.next_token",
        [f"{_LAW}::test_rows_that_stay_level"],
    ),
    Mutant(
        "a round that was cut short takes the token before",
        _TYPES,
        "beyond = drafted.gather(1, num_accepted.clamp(max=depth - 1)[:, None])[:, 0]",
        "beyond = drafted.gather(1, (num_accepted - 1).clamp(min=0)[:, None])[:, 0]",
        [f"{_LAW}::test_rows_that_stay_level"],
    ),
    Mutant(
        "a chain goes on behind a gap",
        _TYPES,
        "(nodes - 1).expand_as(self.parents), self.valid.cumprod(1).bool()",
        "(nodes - 1).expand_as(self.parents), self.valid",
        ["tests/test_generate.py::test_a_gap_in_a_chain_ends_it"],
    ),
    Mutant(
        "a q that does not add up is taken",
        _TYPES,
        "fair = (self.q >= 0).all(-1) & ((self.q.sum(-1) - 1).abs() < tolerance)",
        "fair = (self.q >= 0).all(-1)",
        ["tests/test_generate.py::test_a_broken_drafter_gets_a_typed_error"],
    ),
    Mutant(
        "an id outside the vocabulary is another token",
        _TYPES,
        "broken = ((tokens != self.tokens) | (parents != self.parents)) & valid",
        "broken = (parents != self.parents) & valid",
        [
            "tests/lossless/test_shipped_bugs.py::test_out_of_range_ids",
            "tests/test_generate.py::test_a_broken_drafter_gets_a_typed_error",
        ],
    ),
    Mutant(
        "padding that is no token breaks the contract",
        _TYPES,
        "broken = ((tokens != self.tokens) | (parents != self.parents)) & valid",
        "broken = (tokens != self.tokens) | (parents != self.parents)",
        ["tests/compiled/test_chance.py::test_padding_of_a_chain_and_what_drafters_are_told"],
    ),
    Mutant(
        "a tree's first branch goes on behind a node that is not there",
        _TYPES,
        "is_there = is_there & is_child.any(1) & self.valid.gather(1, eldest[:, None])[:, 0]",
        "is_there = is_there & is_child.any(1)",
        [f"{_LAW}::test_the_first_branch_of_a_tree"],
    ),
    Mutant(
        "a row takes one node more than its limit",
        _TYPES,
        "valid = self.valid & (steps < torch.tensor(limit, device=self.tokens.device)[:, None])",
        "valid = self.valid & (steps <= torch.tensor(limit, device=self.tokens.device)[:, None])",
        ["tests/test_models.py::test_equals_generate[mamba2-model-3]", "tests/cache/test_state_machine_windows.py"],
    ),
]

MUTANTS = [*COINS, *TYPES]
