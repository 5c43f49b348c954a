"""Mutants of specdec/verify/: the acceptance rules and the walk over a tree."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_RULES, _TREE = "verify/rules.py", "verify/tree.py"
_LAW = "tests/lossless/test_exact_law.py"
_SCALAR = "tests/verify/test_rules.py"
_CHAINS = [f"{_LAW}::test_chains", f"{_LAW}::test_chains_of_differing_lengths"]
_TREES = [f"{_LAW}::test_trees", f"{_LAW}::test_trees_that_differ_between_rows"]

CHAINS = [
    Mutant(
        "the ratio is inverted",
        _RULES,
        "return p_x / q_x, (proposal.valid & (q_x > 0))",
        "return q_x / p_x, (proposal.valid & (q_x > 0))",
        _CHAINS,
    ),
    Mutant(
        "every token's q is that of the first",
        _RULES,
        "gather(1, proposal.q_index * q.shape[2] + proposal.tokens)",
        "gather(1, proposal.q_index * 0 + proposal.tokens)",
        _CHAINS,
    ),
    Mutant(
        "a chain goes on behind a token that q could not draw",
        _RULES,
        "(proposal.valid & (q_x > 0)).cumprod(1).bool()",
        "proposal.valid.cumprod(1).bool()",
        ["tests/verify/test_absent.py"],
    ),
    Mutant(
        "the residual is p",
        _RULES,
        "rest = (here - _pick(q, drawn_from)).clamp(min=0.0)",
        "rest = here",
        _CHAINS,
    ),
    Mutant(
        "the residual is reversed",
        _RULES,
        "rest = (here - _pick(q, drawn_from)).clamp(min=0.0)",
        "rest = (_pick(q, drawn_from) - here).clamp(min=0.0)",
        _CHAINS,
    ),
    Mutant(
        "the residual is |p - q|",
        _RULES,
        "rest = (here - _pick(q, drawn_from)).clamp(min=0.0)",
        "rest = (here - _pick(q, drawn_from)).abs()",
        _CHAINS,
    ),
    Mutant(
        "the residual is one-hot",
        _RULES,
        "weights = torch.where(ended[:, None], here, _normalise(rest, otherwise=here))",
        "one = F.one_hot(rest.argmax(-1), rest.shape[1]).to(rest.dtype)\n"
        "    weights = torch.where(ended[:, None], here, _normalise(one, otherwise=here))",
        _CHAINS,
    ),
    Mutant(
        "the residual's q is one position early",
        _RULES,
        "rejected = num_accepted.clamp(max=num_nodes - 1)",
        "rejected = (num_accepted - 1).clamp(min=0)",
        _CHAINS,
    ),
    Mutant(
        "the residual's p is one position early",
        _RULES,
        "here = _pick(p, num_accepted)\n",
        "here = _pick(p, (num_accepted - 1).clamp(min=0))\n",
        _CHAINS,
    ),
    Mutant(
        "a token that was not drawn stays in its residual",
        _RULES,
        "rest = here.scatter(1, token, here.gather(1, token) * 0)  # NaN stays NaN",
        "rest = here",
        _CHAINS,
    ),
    Mutant(
        "the bonus token is one position early",
        _RULES,
        "weights = torch.where(ended[:, None], here,",
        "weights = torch.where(ended[:, None], _pick(p, (num_accepted - 1).clamp(min=0)),",
        _CHAINS,
    ),
    Mutant(
        "the bonus token comes from q",
        _RULES,
        "weights = torch.where(ended[:, None], here,",
        "weights = torch.where(ended[:, None], here if q is None else _pick(q, drawn_from),",
        _CHAINS,
    ),
    Mutant(
        "a short row's last acceptance counts as a rejection",
        _RULES,
        "ended = num_accepted == valid.sum(1)",
        "ended = num_accepted == num_nodes",
        _CHAINS,
    ),
    Mutant(
        "where nothing is left the residual is 0 / 0",
        _RULES,
        "return torch.where(total > 0, rest / total, otherwise)",
        "return rest / total",
        [_SCALAR, f"{_LAW}::test_trees"],
    ),
    Mutant(
        "a narrow draft vocabulary is padded in front",
        _RULES,
        "F.pad(q, (0, missing)) if missing",
        "F.pad(q, (missing, 0)) if missing",
        [f"{_LAW}::test_draft_vocabulary_of_another_size"],
    ),
    Mutant(
        "acceptance behind a rejected token",
        _TREE,
        "num_accepted = accepted.to(torch.int64).cumprod(1).sum(1)",
        "num_accepted = accepted.to(torch.int64).sum(1)",
        _CHAINS,
    ),
]

GREEDY = [
    Mutant(
        "ties are broken to the last",
        _RULES,
        "choice = largest(logits)[..., None]",
        "choice = logits.shape[-1] - 1 - largest(logits.flip(-1))[..., None]",
        [f"{_SCALAR}::test_greedy_ties_go_to_the_first_index", f"{_LAW}::test_greedy"],
    ),
    Mutant(
        "greedy takes padding for drafts",
        _RULES,
        "accepted_prefix((proposal.tokens == choice[:, :-1]) & proposal.valid)",
        "accepted_prefix(proposal.tokens == choice[:, :-1])",
        [_SCALAR],
    ),
    Mutant(
        "greedy compares a draft with what follows it",
        _RULES,
        "accepted_prefix((proposal.tokens == choice[:, :-1]) & proposal.valid)",
        "accepted_prefix((proposal.tokens == choice[:, 1:]) & proposal.valid)",
        [_SCALAR],
    ),
    Mutant(
        "greedy's next token is that of the chain's end",
        _RULES,
        "return Acceptance(path, num_accepted, choice.gather(1, num_accepted[:, None]).squeeze(1))",
        "return Acceptance(path, num_accepted, choice[:, -1])",
        [_SCALAR],
    ),
    Mutant(
        "greedy compares a tree's node with the root's choice",
        _RULES,
        "accepted = proposal.tokens == choice.gather(1, proposal.parents + 1)",
        "accepted = proposal.tokens == choice[:, :1]",
        [_SCALAR],
    ),
]

TREES = [
    Mutant(
        "siblings with and without replacement are swapped",
        _RULES,
        "if proposal.law is Law.WITHOUT_REPLACEMENT:",
        "if proposal.law is Law.IID:",
        _TREES,
    ),
    Mutant(
        "the siblings' law is forgotten",
        _RULES,
        "if proposal.law is Law.WITHOUT_REPLACEMENT:",
        "if False:",
        _TREES,
    ),
    Mutant(
        "only the next elder sibling is left out of q",
        _RULES,
        "q_here = _without(q_here, proposal.tokens, children[:, :, :rank])",
        "q_here = _without(q_here, proposal.tokens, children[:, :, max(0, rank - 1) : rank])",
        [f"{_LAW}::test_trees"],
    ),
    Mutant(
        "what the elder siblings had stays missing from q's sum",
        _RULES,
        "return _normalise(q.scatter(2, token, keep), otherwise=q)",
        "return q.scatter(2, token, keep)",
        _TREES,
    ),
    Mutant(
        "every sibling is compared with p, not with what is left of it",
        _RULES,
        "prob = (r_x / q_x).clamp(max=1.0)",
        "prob = (p.gather(2, token[:, :, None]).squeeze(2) / q_x).clamp(max=1.0)",
        _TREES,
    ),
    Mutant(
        "every sibling's residual is that of p",
        _RULES,
        "rest = (residual - q_here).clamp(min=0.0)",
        "rest = (p - q_here).clamp(min=0.0)",
        _TREES,
    ),
    Mutant(
        "residuals between siblings are not normalised",
        _RULES,
        "torch.where(has_child[:, :, None], _normalise(rest, otherwise=residual), residual)",
        "torch.where(has_child[:, :, None], rest, residual)",
        _TREES,
    ),
    Mutant(
        "a given sibling stays in the residual",
        _RULES,
        "rest = residual.scatter(2, token[:, :, None], r_x[:, :, None] * 0)  # NaN stays NaN",
        "rest = residual",
        _TREES,
    ),
    Mutant(
        "a tree's next token comes from p",
        _RULES,
        "coins.categorical(_pick(residual, end))",
        "coins.categorical(_pick(p, end))",
        _TREES,
    ),
    Mutant(
        "a tree's next token is the root's",
        _RULES,
        "coins.categorical(_pick(residual, end))",
        "coins.categorical(residual[:, 0])",
        _TREES,
    ),
    Mutant(
        "siblings beyond q's support take part",
        _RULES,
        "has_child = has_child & (q_x > 0)",
        "has_child = has_child & (q_x >= 0)",
        [_SCALAR],
    ),
    Mutant(
        "siblings are verified from the youngest on",
        _TREE,
        "rank = (elder & (nodes[None, :] < nodes[:, None])).sum(-1)",
        "rank = (elder & (nodes[None, :] > nodes[:, None])).sum(-1)",
        [_SCALAR, *_TREES],
    ),
    Mutant(
        "siblings that are not there keep a place",
        _TREE,
        "(proposal.parents[:, :, None] == proposal.parents[:, None, :]) & proposal.valid[:, None, :]",
        "(proposal.parents[:, :, None] == proposal.parents[:, None, :])",
        [_SCALAR, *_TREES],
    ),
    Mutant(
        "the walk goes to the youngest accepted child",
        _TREE,
        "first = taken.to(torch.int8).argmax(-1, keepdim=True)",
        "first = taken.shape[-1] - 1 - taken.flip(-1).to(torch.int8).argmax(-1, keepdim=True)",
        [_SCALAR, *_TREES],
    ),
    Mutant(
        "a walk that ended goes on from the root",
        _TREE,
        "slot = torch.where(alive, node + 1, slot)",
        "slot = node.clamp(min=-1) + 1",
        [_SCALAR, *_TREES],
    ),
]

BLOCK = [
    Mutant(
        "block: the joint ratio is not clamped",
        _RULES,
        "joint.append((joint[-1] * ratio[:, i]).clamp(max=1.0))",
        "joint.append(joint[-1] * ratio[:, i])",
        _CHAINS,
    ),
    Mutant(
        "block: the ratio is clamped before the product",
        _RULES,
        "joint.append((joint[-1] * ratio[:, i]).clamp(max=1.0))",
        "joint.append(joint[-1] * ratio[:, i].clamp(max=1.0))",
        _CHAINS,
    ),
    Mutant(
        "block: the first rejection ends it",
        _RULES,
        "num_accepted = torch.where(accepted, steps[1:], 0).amax(1)",
        "num_accepted = accepted.to(torch.int64).cumprod(1).sum(1)",
        _CHAINS,
    ),
    Mutant(
        "block: accepted tokens are counted",
        _RULES,
        "num_accepted = torch.where(accepted, steps[1:], 0).amax(1)",
        "num_accepted = accepted.to(torch.int64).sum(1)",
        _CHAINS,
    ),
    Mutant(
        "block: the residual lacks its factor",
        _RULES,
        "residual = (reach[:, :, None] * wide_p - q_next).clamp(min=0.0)",
        "residual = (wide_p - q_next).clamp(min=0.0)",
        _CHAINS,
    ),
    Mutant(
        "block: h without - P",
        _RULES,
        "mass / (mass + 1 - reach).clamp(",
        "mass / (mass + 1).clamp(",
        _CHAINS,
    ),
    Mutant(
        "block: h is P everywhere",
        _RULES,
        "h = torch.where(is_end, reach, mass /",
        "h = torch.where(is_end | True, reach, mass /",
        _CHAINS,
    ),
    Mutant(
        "block: all rows are as long as the longest",
        _RULES,
        "length = valid.sum(1)  # [B]",
        "length = torch.full_like(valid.sum(1), num_nodes)",
        _CHAINS,
    ),
    Mutant(
        "block: the next token comes from p",
        _RULES,
        "weights = torch.where(use_p, _pick(wide_p, num_accepted), _pick(residual, num_accepted))",
        "weights = _pick(wide_p, num_accepted)",
        _CHAINS,
    ),
    Mutant(
        "block: soft q for tokens that were not drawn",
        _RULES,
        "q = F.one_hot(proposal.tokens, wide_p.shape[2]).to(wide_p.dtype)",
        "q = wide_p[:, :-1]",
        _CHAINS,
    ),
    Mutant(
        "block: steps back silently from a broken distribution",
        _RULES,
        "torch.where(broken, -1, coins.categorical(weights))",
        "coins.categorical(weights)",
        [_SCALAR],
    ),
]

MUTANTS = [*CHAINS, *GREEDY, *TREES, *BLOCK]
