"""The acceptance rules for one row and one token at a time, in Python floats, as the papers write them.

All take p and q as lists of distributions (p: root first, then one per node), the row's nodes, the law
of siblings, one coin per node and one for the next token; they return the accepted nodes and the next token.
"""

from __future__ import annotations

from typing import Any

from specdec.types import Law

Rows = list[list[float]]
Row = dict[str, list[Any]]  # tokens, parents, valid and, with q, q_index


def _one_hot(token: int, size: int) -> list[float]:
    return [float(t == token) for t in range(size)]


def _pick(weights: list[float], coin: float) -> int:
    total, so_far = sum(weights), 0.0
    for token, weight in enumerate(weights):
        so_far += weight
        if so_far > coin * total:
            return token
    raise AssertionError("no distribution")


def rejection(p: Rows, q: Rows | None, row: Row, law: Law, nodes: list[float], last: float) -> tuple[list[int], int]:
    """Alg. 1 of arXiv:2211.17192 at every node; siblings in order, each against what its elders left (2305.09781)."""
    here, path = -1, []
    while True:
        left = list(p[here + 1])
        elders: list[int] = []
        for node, parent in enumerate(row["parents"]):
            if parent != here or not row["valid"][node]:
                continue
            x = row["tokens"][node]
            law_of_x = _one_hot(x, len(left)) if q is None else list(q[row["q_index"][node]])
            if law is Law.WITHOUT_REPLACEMENT:
                law_of_x = [0.0 if token in elders else mass for token, mass in enumerate(law_of_x)]
                law_of_x = [mass / sum(law_of_x) for mass in law_of_x]
            if nodes[node] < min(1.0, left[x] / law_of_x[x]):
                here = node
                path.append(node)
                break
            residual = [max(a - b, 0.0) for a, b in zip(left, law_of_x, strict=True)]
            left = [mass / sum(residual) for mass in residual]
            elders.append(x)
        else:
            return path, _pick(left, last)


def block(p: Rows, q: Rows | None, row: Row, law: Law, nodes: list[float], last: float) -> tuple[list[int], int]:
    """Alg. 2 of arXiv:2403.10444, with the paper's names."""
    tokens = [x for x, valid in zip(row["tokens"], row["valid"], strict=True) if valid]
    q = [_one_hot(x, len(p[0])) for x in tokens] if q is None else q
    tau, p_tau, p_i = 0, 1.0, 1.0
    for i, x in enumerate(tokens, start=1):
        p_i = min(1.0, p_i * p[i - 1][x] / q[i - 1][x])
        h = p_i
        if i < len(tokens):
            left = sum(max(p_i * a - b, 0.0) for a, b in zip(p[i], q[i], strict=True))
            h = left / (left + 1 - p_i) if left + 1 - p_i > 0 else 1.0
        if nodes[i - 1] < h:
            tau, p_tau = i, p_i
    weights = p[tau]
    if tau < len(tokens):
        weights = [max(p_tau * a - b, 0.0) for a, b in zip(p[tau], q[tau], strict=True)]
    return list(range(tau)), _pick(weights, last)


def greedy(p: Rows, q: Rows | None, row: Row, law: Law, nodes: list[float], last: float) -> tuple[list[int], int]:
    here, path = -1, []
    while True:
        best = p[here + 1].index(max(p[here + 1]))
        found = [
            node
            for node, parent in enumerate(row["parents"])
            if parent == here and row["valid"][node] and row["tokens"][node] == best
        ]
        if not found:
            return path, best
        here = found[0]
        path.append(here)
