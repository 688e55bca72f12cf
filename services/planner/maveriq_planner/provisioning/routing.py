"""Which unit serves which bucket, with the counts decided. Pure: problem and counts in, shares out.

Of all ways the one in which the busiest kind of unit has most left: what a fleet has over is spread, not left to one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maveriq_planner.provisioning.highs import minimum
from maveriq_planner.provisioning.problem import Array, Model, Problem, Rows


@dataclass(frozen=True, slots=True)
class Routing:
    shares: Array  # [U, B]
    busiest: float
    """Load by count of the kind that has least left; above 1: the counts do not bear it."""
    worth: Array  # [U]
    """w, by which any counts y that bear the load have w y >= needed (LP duality); tight at these."""
    needed: float

    def among(self, kept: NDArray[np.intp], num_units: int) -> "Routing":
        """Of so many units, of which these were looked at; the others serve nothing."""
        shares, worth = np.zeros((num_units, self.shares.shape[1])), np.zeros(num_units)
        shares[kept], worth[kept] = self.shares, self.worth
        return Routing(shares, self.busiest, worth, self.needed)


def balanced(problem: Problem, counts: Array) -> Routing | None:
    """None: a bucket has nobody."""
    used = np.flatnonzero(counts > 0)
    usable = np.isfinite(problem.load) & (counts > 0)[:, None]
    if not usable.any(axis=0).all():
        return None
    found = _by_one(problem, counts, used) if len(used) == 1 else _by_many(problem, counts, used, usable)
    if found is None:
        return None
    shares, worth = found
    priced = np.where(usable, problem.load, 0.0) * worth[:, None]
    value = np.where(usable, priced, np.inf).min(axis=0)  # of each bucket, by the cheapest of `used`
    for unit in np.flatnonzero(counts <= 0).tolist():  # the most that others may be worth without lowering that
        able = np.isfinite(problem.load[unit])
        worth[unit] = (value[able] / problem.load[unit, able]).max(initial=0.0)
    busiest = float(utilisation(problem, counts, shares).max())
    return Routing(shares, busiest, worth, float(value.sum()))


def _by_one(problem: Problem, counts: Array, used: NDArray[np.intp]) -> tuple[Array, Array]:
    shares, worth = np.zeros(problem.load.shape), np.zeros(problem.num_units)
    shares[used] = 1.0
    worth[used] = 1.0 / counts[used]
    return shares, worth


def _by_many(
    problem: Problem, counts: Array, used: NDArray[np.intp], usable: NDArray[np.bool_]
) -> tuple[Array, Array] | None:
    num_units, num_buckets = problem.load.shape
    units, buckets = np.nonzero(usable)
    found = minimum(_busiest_least(problem, counts, used, units, buckets))
    if found is None:
        return None
    shares, worth = np.zeros((num_units, num_buckets)), np.zeros(num_units)
    shares[units, buckets] = np.maximum(found.values[1:], 0.0)
    shares /= shares.sum(axis=0)
    worth[used] = np.maximum(-found.duals[num_buckets:], 0.0) / counts[used]
    return shares, worth


def _busiest_least(
    problem: Problem, counts: Array, used: NDArray[np.intp], units: NDArray[np.intp], buckets: NDArray[np.intp]
) -> Model:
    num_units, num_buckets = problem.load.shape
    x = 1 + np.arange(len(units))
    row_of = np.zeros(num_units, dtype=np.intp)
    row_of[used] = np.arange(len(used))
    rows = Rows()
    rows.add(num_buckets, 1.0, 1.0, (buckets, x, np.ones(len(x))))
    busy = problem.load[units, buckets] / counts[units]
    first = np.zeros(len(used), dtype=np.intp)
    rows.add(len(used), -np.inf, 0.0, (row_of[units], x, busy), (np.arange(len(used)), first, np.full(len(used), -1.0)))
    cost = np.zeros(1 + len(x))
    cost[0] = 1.0
    return rows.model(cost, np.full(len(cost), np.inf), 0)


def utilisation(problem: Problem, counts: Array, shares: Array) -> Array:
    """[U]: load by count; 0 where there is none of it."""
    load = np.where(shares > 0, problem.load, 0.0)
    worked = (load * shares).sum(axis=1)
    busy: Array = np.where(worked > 0, worked / np.maximum(counts, 1e-300), 0.0)
    return busy
