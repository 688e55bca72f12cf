"""The choice of a fleet as numbers. Pure: prices, loads and caps in, a sparse linear model out.

    min   price y + start s + stop t
    s.t.  sum_u x_ub = 1                    every bucket is served, split freely between units
          sum_b load_ub x_ub <= y_u         no unit is busier than it may be
          y whole, x >= 0, and caps

One unit is the smallest thing rented that serves by itself. With spares (N+1) the rows of x must hold once more for
each kind that loses one unit: its capacity there is y_u - z_u, z_u = 1 where y_u > 0, and x may differ, as requests
are routed anew. By duality that is sum_g w_g (y_g - z_u [g = u]) >= sum_b min_g w_g load_gb for every w >= 0: of these
rows, in y and z alone, a search adds those that it meets broken.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int32]
Entries = tuple[NDArray[np.intp], NDArray[np.intp], Array]
"""Rows, columns and values."""

_NEGLIGIBLE_SHARE = 1e-6  # of a bucket: what a unit that could serve no more of it within any sane cost is left out for


@dataclass(frozen=True, slots=True)
class Change:
    """What leaving a running fleet costs, spread over the hours that the new one is to run."""

    running: Array  # [P]
    start: Array  # [P], money an hour for each more than is running
    stop: Array  # [P]


@dataclass(frozen=True, slots=True)
class Problem:
    """U kinds of unit, B buckets, P pools of things that can be rented."""

    price: Array  # [U], money an hour
    load: Array  # [U, B]; units that a bucket's whole rate keeps busy; inf: cannot serve it
    pool: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, dtype=np.intp))  # [U]; empty: each its own
    most: Array = field(default_factory=lambda: np.zeros(0))  # [P]; inf: no cap; empty: none has
    spare: bool = False
    """N+1: the whole load is served after any one unit was lost."""
    change: Change | None = None

    @property
    def num_units(self) -> int:
        return len(self.price)

    @property
    def pools(self) -> NDArray[np.intp]:
        return self.pool if len(self.pool) else np.arange(self.num_units, dtype=np.intp)

    @property
    def caps(self) -> Array:
        return self.most if len(self.most) else np.full(int(self.pools.max()) + 1, np.inf)

    def of_pools(self, counts: Array) -> Array:
        """[P]"""
        summed: Array = np.bincount(self.pools, weights=counts, minlength=len(self.caps)).astype(np.float64)
        return summed

    def objective(self, counts: Array) -> float:
        cost = float(self.price @ counts)
        if self.change is not None:
            more = self.of_pools(counts) - self.change.running
            cost += float(self.change.start @ np.maximum(more, 0.0) + self.change.stop @ np.maximum(-more, 0.0))
        return cost

    def take(self, units: NDArray[np.intp]) -> "Problem":
        """Of these units alone; pools stay as they are."""
        return Problem(self.price[units], self.load[units], self.pools[units], self.caps, self.spare, self.change)


@dataclass(frozen=True, slots=True)
class Model:
    """Columns: y [U], z [U] with spares, starts and stops [P] with a change, then x."""

    cost: Array
    upper: Array
    """Of columns; all lower bounds are 0."""
    row_lower: Array
    row_upper: Array
    begins: Indices
    """Of each column in `rows` and `values`, and the end."""
    rows: Indices
    values: Array
    num_whole: int
    """The first columns, which must be whole: y, then z."""


def model_of(problem: Problem, *, losses: bool = False, budget: float = np.inf) -> Model:
    """
    Args:
        budget: fleets that cost more are of no interest.
        losses: with spares, x for every loss. Without, x is of the whole fleet alone, which is no more than a bound.
    """
    rows = Rows()
    units, buckets = _useful(problem)
    num_units, num_pools = problem.num_units, len(problem.caps)
    z_at = num_units
    change_at = z_at + (num_units if problem.spare else 0)
    x_at = change_at + (0 if problem.change is None else 2 * num_pools)
    scenarios: Sequence[int | None] = range(num_units) if problem.spare and losses else (None,)
    for number, lost in enumerate(scenarios):
        _add_serving(rows, problem, units, buckets, x_at + number * len(units), None if lost is None else (lost, z_at))
    _add_covering(rows, problem, z_at)
    cost = [problem.price]
    highest = most_needed(problem)
    if problem.change is None and np.isfinite(budget):
        affordable = np.floor(budget / np.maximum(problem.price, 1e-12) * (1 + 1e-9))
        highest = np.minimum(highest, affordable)
    if problem.spare:
        _add_spares(rows, highest, z_at)
        cost.append(np.zeros(num_units))
    _add_caps(rows, problem)
    if problem.change is not None:
        _add_change(rows, problem, problem.change, change_at)
        cost += [problem.change.start, problem.change.stop]
    cost.append(np.zeros(len(units) * len(scenarios)))
    upper = np.full(x_at + len(units) * len(scenarios), np.inf)
    upper[:num_units] = np.minimum(highest, problem.caps[problem.pools])
    upper[z_at:change_at] = 1.0
    return rows.model(np.concatenate(cost), upper, change_at)


def _add_serving(
    rows: "Rows", problem: Problem, units: NDArray[np.intp], buckets: NDArray[np.intp], x_at: int,
    lost: tuple[int, int] | None,
) -> None:  # fmt: skip
    """
    Args:
        lost: the kind that has one unit less, and where z begins.
    """
    num_units, num_buckets = problem.load.shape
    every = np.arange(num_units, dtype=np.intp)
    x = x_at + np.arange(len(units))
    rows.add(num_buckets, 1.0, 1.0, (buckets, x, np.ones(len(x))))
    capacity: list[Entries] = [(units, x, problem.load[units, buckets]), (every, every, np.full(num_units, -1.0))]
    if lost is not None:
        unit, z_at = lost
        capacity.append((np.array([unit], dtype=np.intp), np.array([z_at + unit], dtype=np.intp), np.ones(1)))
    rows.add(num_units, -np.inf, 0.0, *capacity)


def _add_covering(rows: "Rows", problem: Problem, z_at: int) -> None:
    """A bucket that takes next to nothing still needs one unit that can serve it, whatever is lost."""
    finite = np.isfinite(problem.load)
    sets = finite[:, :1] if finite.all() else np.unique(finite, axis=1)
    of_set, able = np.nonzero(sets.T)
    for lost in range(problem.num_units) if problem.spare else (None,):
        entries: list[Entries] = [(of_set, able, np.ones(len(able)))]
        if lost is not None:
            within = np.flatnonzero(sets[lost])
            entries.append((within, np.full(len(within), z_at + lost), np.full(len(within), -1.0)))
        rows.add(sets.shape[1], 1.0, np.inf, *entries)


def _add_spares(rows: "Rows", highest: Array, z_at: int) -> None:
    """y <= highest z and z <= y."""
    num_units = len(highest)
    every, ones = np.arange(num_units), np.ones(num_units)
    rows.add(num_units, -np.inf, 0.0, (every, every, ones), (every, z_at + every, -highest))
    rows.add(num_units, -np.inf, 0.0, (every, every, -ones), (every, z_at + every, ones))


def _add_caps(rows: "Rows", problem: Problem) -> None:
    num_pools = len(problem.caps)
    capped = np.flatnonzero(np.isfinite(problem.caps) & (np.bincount(problem.pools, minlength=num_pools) > 0))
    if not len(capped):
        return
    place = np.full(num_pools, -1)
    place[capped] = np.arange(len(capped))
    inside = np.flatnonzero(place[problem.pools] >= 0)
    rows.add(len(capped), -np.inf, problem.caps[capped], (place[problem.pools[inside]], inside, np.ones(len(inside))))


def _add_change(rows: "Rows", problem: Problem, change: Change, change_at: int) -> None:
    """y of each pool - starts + stops = running."""
    num_pools = len(problem.caps)
    pools, ones = np.arange(num_pools), np.ones(num_pools)
    rows.add(
        num_pools, change.running, change.running,
        (problem.pools, np.arange(problem.num_units), np.ones(problem.num_units)),
        (pools, change_at + pools, -ones), (pools, change_at + num_pools + pools, ones),
    )  # fmt: skip


def most_needed(problem: Problem) -> Array:
    """[U]: more of one kind are of no use, whatever else is rented."""
    whole = np.where(np.isfinite(problem.load), problem.load, 0.0).sum(axis=1)
    needed = np.ceil(whole) + 1.0 + problem.spare
    if problem.change is not None:  # keeping what runs may be cheaper than stopping it
        needed = np.maximum(needed, problem.change.running[problem.pools])
    most: Array = needed
    return most


def _useful(problem: Problem) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of unit and bucket, without those so dear that a whole fleet's cost serves a millionth of the bucket."""
    priced = np.maximum(problem.price, 1e-9)[:, None] * problem.load
    best = priced.min(axis=0)
    enough = best.sum() + problem.price.sum() * (1 + problem.spare)
    keep = np.isfinite(priced) & ((priced * _NEGLIGIBLE_SHARE <= enough) | (priced <= best))
    units, buckets = np.nonzero(keep)
    return units, buckets


class Rows:
    """Rows collected block by block, as (row, column, value)."""

    def __init__(self) -> None:
        self._lower: list[Array] = []
        self._upper: list[Array] = []
        self._entries: list[Entries] = []
        self._count = 0

    def add(
        self, count: int, lower: Array | float, upper: Array | float,
        *entries: Entries,
    ) -> None:  # fmt: skip
        self._lower.append(lower if isinstance(lower, np.ndarray) else np.full(count, lower))
        self._upper.append(upper if isinstance(upper, np.ndarray) else np.full(count, upper))
        self._entries += [(rows + self._count, columns, values) for rows, columns, values in entries]
        self._count += count

    def model(self, cost: Array, upper: Array, num_whole: int) -> Model:
        rows, columns, values = (np.concatenate(part) for part in zip(*self._entries, strict=True))
        order = np.argsort(columns, kind="stable")
        begins = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=len(cost)))])
        return Model(
            cost, upper, np.concatenate(self._lower), np.concatenate(self._upper),
            begins.astype(np.int32), rows[order].astype(np.int32), values[order], num_whole,
        )  # fmt: skip
