"""What no other configuration beats in every respect. Pure: figures in, the Pareto front out."""

import numpy as np

from maveriq_planner.arrays import Array, Indices


def pareto(costs: Array) -> Indices:
    """Rows of costs [N, D], smaller is better, that no other row beats in one and equals in the rest; ascending.

    Of equal rows the first stays.
    """
    left = _unbeaten_by_one(costs)
    ranks = np.array([np.unique(column, return_inverse=True)[1] for column in costs[left].T], dtype=np.int32)
    order = np.argsort(ranks.sum(axis=0), kind="stable")  # whoever beats a row comes before it
    left, ranks = left[order], ranks[:, order]
    front: list[int] = []
    while len(left):
        front.append(int(left[0]))
        unbeaten = (ranks < ranks[:, :1]).any(axis=0)
        left, ranks = left[unbeaten], ranks[:, unbeaten]
    return np.sort(np.array(front, dtype=np.intp))


def _unbeaten_by_one(costs: Array) -> Indices:
    """Without what one row beats that is good in every respect: most, as a rule. Ascending."""
    if not len(costs):
        return np.zeros(0, dtype=np.intp)
    low = costs.min(axis=0)
    span = costs.max(axis=0) - low
    best = costs[int(((costs - low) / np.where(span > 0, span, 1.0)).sum(axis=1).argmin())]
    return np.flatnonzero((costs < best).any(axis=1) | (costs == best).all(axis=1))


def thinned(costs: Array, most: int) -> Indices:
    """At most `most` rows of a front: the best in each respect, the rest evenly along the first."""
    order = np.argsort(costs[:, 0], kind="stable")
    if len(order) <= most:
        return order
    kept = dict.fromkeys(int(costs[:, i].argmin()) for i in range(costs.shape[1]))
    step = np.linspace(0, len(order) - 1, most).round().astype(np.intp)
    for row in order[step]:
        if len(kept) < most:
            kept.setdefault(int(row))
    return np.array([row for row in order if int(row) in kept], dtype=np.intp)
