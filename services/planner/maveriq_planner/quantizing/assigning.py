"""Which layers of a segment get which precision, given how many of each. Pure: one assignment by scipy."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from maveriq_planner.quantizing.pipeline import Array, Indices


def assign(sensitivity: Array, counts: Sequence[int] | Indices) -> tuple[float, list[int]]:
    """Least sensitivity, and the precision of each layer.

    Args:
        sensitivity: [l, B] of the segment's layers.
        counts: of each precision; l in all.
    """
    places = np.repeat(np.arange(len(counts)), counts)
    each = sensitivity[:, places]
    layers, chosen = linear_sum_assignment(each)
    return float(each[layers, chosen].sum()), [int(b) for b in places[chosen]]
