"""Mutants of acceptance over large vocabularies: verify/parts.py, verify/blocks.py, verify/choice.py."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_PARTS, _BLOCKS, _CHOICE = "verify/parts.py", "verify/blocks.py", "verify/choice.py"
_TESTS = "tests/verify/test_parts.py"
_SAME = [f"{_TESTS}::test_commits_what_the_rule_does"]
_DRAWN = [
    f"{_TESTS}::test_drawn_inverts_the_same_sum",
    f"{_TESTS}::test_drawn_never_draws_weight_zero_or_from_no_distribution",
]

PARTS = [
    Mutant(
        "in parts: the residual's q is one position early",
        _PARTS,
        "else _places(q, part, at)",
        "else _places(q, part, (at - 1).clamp(min=0))",
        _SAME,
    ),
    Mutant(
        "in parts: the bonus token comes from a residual",
        _PARTS,
        "ended = (count == valid.sum(1))[stops]",
        "ended = (count > valid.sum(1))[stops]",
        _SAME,
    ),
    Mutant(
        "in parts: every part begins with the first node's coin",
        _PARTS,
        "torch.where(valid, ratio.clamp(max=1.0), 0.0), rows, first)",
        "torch.where(valid, ratio.clamp(max=1.0), 0.0), rows, 0)",
        _SAME,
    ),
    Mutant(
        "in parts: what earlier parts accepted is not counted",
        _PARTS,
        "found.stop(rows[part], first + at,",
        "found.stop(rows[part], at,",
        _SAME,
    ),
    Mutant(
        "in parts: the next token's coin is another row's",
        _PARTS,
        "self.coins.categorical(weights, rows[part]))",
        "self.coins.categorical(weights, rows[part].flip(0)))",
        _SAME,
    ),
    Mutant(
        "in parts: a chain goes on behind its gap",
        _PARTS,
        "proposal.valid.cumprod(1).bool()",
        "torch.ones_like(proposal.valid)",
        _SAME,
    ),
    Mutant(
        "in parts: rows that are far apart are taken for neighbours",
        _PARTS,
        "if rows[-1] - rows[0] == len(rows) - 1:",
        "if rows[-1] - rows[0] >= len(rows) - 1:",
        _SAME,
    ),
    Mutant(
        "in parts: what q could not draw is accepted",
        _PARTS,
        "(valid & (q_x > 0)).cumprod(1).bool()",
        "valid",
        [f"{_TESTS}::test_a_token_that_q_cannot_draw_ends_the_chain"],
    ),
    Mutant(
        "in parts: rows of q are taken for the nodes' in order",
        _PARTS,
        "if all(index[row] == nodes for row in going):",
        "if len(nodes) > 0:",
        [f"{_TESTS}::test_rows_of_q_in_any_order_and_a_wider_q"],
    ),
    Mutant(
        "in parts: a q that is no distribution is believed",
        _PARTS,
        "found.unfair[rows] |= (valid",
        "found.unfair[rows] &= (valid",
        [f"{_TESTS}::test_what_is_no_distribution_is_told"],
    ),
    Mutant(
        "in parts: the given token stays in its residual",
        _PARTS,
        "here.scatter(1, other, here.gather(1, other) * 0) if is_given",
        "here.clone() if is_given",
        _SAME,
    ),
]

BLOCKS = [
    Mutant(
        "in blocks: the vocabulary's last, short block is not searched for the largest",
        _BLOCKS,
        "    if tail.shape[-1]:",
        "    if not tops.numel():",
        [f"{_TESTS}::test_largest_is_argmax"],
    ),
    Mutant(
        "in blocks: the vocabulary's last, short block is never drawn from",
        _BLOCKS,
        "        if tail.shape[1]:",
        "        if not sums.numel():",
        _DRAWN,
    ),
    Mutant(
        "in blocks: a draw inside a block begins behind it",
        _BLOCKS,
        "before = F.pad(cdf, (1, 0)).gather(1, block)",
        "before = cdf.gather(1, block)",
        _DRAWN,
    ),
    Mutant(
        "in blocks: weights that are no distribution give a token",
        _BLOCKS,
        "usable = (total > 0) & torch.isfinite(total)",
        "usable = torch.ones_like(total, dtype=torch.bool)",
        _DRAWN,
    ),
    Mutant(
        "in blocks: a block of no weight is drawn from",
        _BLOCKS,
        "return torch.where(beyond.any(1), beyond.to(torch.int8).argmax(1), last)",
        "return (torch.where(beyond.any(1), beyond.to(torch.int8).argmax(1), last) - 1).clamp(min=0)",
        _DRAWN,
    ),
]

CHOICE = [
    Mutant(
        "one position alone is judged in parts",
        _CHOICE,
        'device.type == "cpu" and is_large and columns > 1',
        'device.type == "cpu" and is_large',
        ["tests/test_large_vocabulary.py"],
    ),
    Mutant(
        "many numbers or a large vocabulary are enough for parts",
        _CHOICE,
        "numbers >= _LEAST_NUMBERS and vocab_size >= _LEAST_VOCAB",
        "numbers >= _LEAST_NUMBERS or vocab_size >= _LEAST_VOCAB",
        ["tests/test_large_vocabulary.py"],
    ),
]

MUTANTS = [*PARTS, *BLOCKS, *CHOICE]
