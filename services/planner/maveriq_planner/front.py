"""What no other configuration beats in every respect. Pure: figures in, the Pareto front out."""

import numpy as np

from maveriq_planner.columns import Chosen
from maveriq_planner.estimate import Array


def pareto(costs: Array) -> Chosen:
    """Rows of costs [N, D], smaller is better, that no other row beats in one and equals in the rest; ascending.

    Of equal rows the first stays.
    """
    left = np.lexsort(costs.T[::-1])  # whoever beats a row comes before it
    ordered = costs[left]
    left = left[np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])] if len(left) else left
    front: list[int] = []
    while len(left):
        best = left[0]
        front.append(int(best))
        left = left[(costs[left] < costs[best]).any(axis=1)]
    return np.sort(np.array(front, dtype=np.intp))


def thinned(costs: Array, most: int) -> Chosen:
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
