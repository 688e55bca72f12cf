"""The cheapest whole numbers of units. Pure: a problem and limits in, counts with a proven bound out.

Branch and bound over the counts alone, on the linear relaxation that HiGHS solves again from where it was: a step takes
a fraction of a millisecond, and every relaxation rounded up is a fleet that does. Where that takes too many steps,
HiGHS's own search goes on from the best fleet so far; benchmarks/provision.py compares.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd, inf

import numpy as np
from numpy.typing import NDArray

from maveriq_planner.provisioning.highs import Relaxation, Row, search
from maveriq_planner.provisioning.problem import Array, Problem, model_of
from maveriq_planner.provisioning.routing import Routing, balanced

WHOLE = 1e-6  # from a whole number, as HiGHS takes it
_EXACT = 1e-9  # relative: what adding floats up may cost
_FINEST = 10_000  # prices are looked at in parts of so many


@dataclass(frozen=True, slots=True)
class Limits:
    seconds: float
    clock: Callable[[], float]
    """Seconds since whenever."""
    steps: int = 400
    """Of our own search, before HiGHS's takes over."""


@dataclass(frozen=True, slots=True)
class Mix:
    counts: Array  # [U], whole
    objective: float
    bound: float
    """No fleet costs less."""
    routing: Routing | None = None
    """Where it was worked out already."""

    @property
    def gap(self) -> float:
        """Share of the objective by which a cheaper fleet might exist; 0: there is none."""
        return max(0.0, 1 - self.bound / self.objective) if self.objective > 0 else 0.0


def cheapest(problem: Problem, limits: Limits, known: Iterable[Array] = ()) -> Mix | None:
    """
    Args:
        known: fleets that do, to begin with.

    Returns:
        None: no fleet within the caps does, or none was found within the limits.
    """
    kept = _undominated(problem)
    mix = _Search(problem.take(kept), limits).run([fleet[kept] for fleet in known if fleet.sum() == fleet[kept].sum()])
    if mix is None or len(kept) == problem.num_units:
        return mix
    counts = np.zeros(problem.num_units)
    counts[kept] = mix.counts
    return Mix(counts, mix.objective, mix.bound, mix.routing and mix.routing.among(kept, problem.num_units))


@dataclass(slots=True)
class _Open:
    """Fleets that are still looked for between bounds of their whole columns."""

    bound: float
    lower: Array
    upper: Array


class _Search:
    def __init__(self, problem: Problem, limits: Limits) -> None:
        self._problem = problem
        self._limits = limits
        self._until = limits.clock() + limits.seconds
        self._step = _smallest_difference(problem)
        self._best: Array | None = None
        self._cost = inf
        self._added: list[Row] = []
        self._routing: Routing | None = None

    def run(self, known: Iterable[Array]) -> Mix | None:
        begun = (*known, *self._with_spares())
        self._begin_with(begun)
        model = model_of(self._problem, budget=self._cost)
        relaxation = Relaxation(model)
        root = _Open(-inf, np.zeros(model.num_whole), model.upper[: model.num_whole])
        open_ = [root]
        for step in range(self._limits.steps * (10 if self._problem.spare else 1)):
            if step and self._limits.clock() > self._until:  # one look at least: it finds a fleet, mostly
                break
            if open_:
                open_ += self._look(relaxation, open_.pop())
                continue
            broken = self._broken()
            if not broken:
                break
            self._add(relaxation, broken)
            self._begin_with(begun)
            open_ = [root]
        if open_:
            return self._handed_over(max(0.0, min(one.bound for one in open_)), begun)
        return None if self._best is None else Mix(self._best, self._cost, self._cost, self._routing)

    def _add(self, relaxation: Relaxation, rows: Sequence[Row]) -> None:
        relaxation.add(rows)
        self._added += rows

    def _begin_with(self, known: Iterable[Array]) -> None:
        self._best, self._cost = None, inf
        for fleet in known:
            self._keep(fleet)

    def _broken(self) -> list[Row]:
        """Rows that the best fleet breaks: HiGHS's tolerances let next to nothing of a unit serve a whole bucket."""
        if self._best is None:
            return []
        if self._problem.spare:
            return self._after_losses(self._best) or []
        routing = self._routing = balanced(self._problem, self._best)
        if routing is None or routing.busiest <= 1 + WHOLE:
            return []
        return [np.minimum(routing.worth / routing.needed, 1.0)]

    def _with_spares(self) -> Iterator[Array]:
        """Fleets that do with one more of each kind: those of one kind, and the cheapest without spares."""
        problem = self._problem
        if not problem.spare:
            return
        for unit in np.flatnonzero(np.isfinite(problem.load).all(axis=1)).tolist():
            alone = np.zeros(problem.num_units)
            alone[unit] = max(1.0, np.ceil(problem.load[unit].sum() - WHOLE)) + 1
            yield alone
        plain = cheapest(replace(problem, spare=False), replace(self._limits, seconds=self._limits.seconds / 4))
        if plain is not None:
            yield plain.counts + (plain.counts > 0)

    def _look(self, relaxation: Relaxation, at: _Open) -> list[_Open]:
        """What is left to look at there."""
        point = relaxation.solve(at.lower, at.upper) if self._improves(at.bound) else None
        if point is None or not self._improves(point.objective):
            return []
        whole = (np.abs(point.whole - np.rint(point.whole)) <= WHOLE).all()
        fleet = np.ceil(point.whole[: self._problem.num_units] - WHOLE) + 0.0
        looked_at = self._problem.spare and self._problem.objective(fleet) < self._cost
        broken = self._after_losses(fleet) if looked_at else None
        if broken is not None:
            self._add(relaxation, broken)
            self._keep(fleet + (fleet > 0))  # one more of each does
            if whole:
                return [_Open(point.objective, at.lower, at.upper)] if broken else []
        else:
            self._keep(fleet)
        return _branches(self._problem, point.whole, at, point.objective)

    def _after_losses(self, fleet: Array) -> list[Row] | None:
        """Rows that a fleet breaks when it loses one unit, of the first loss that does; None: it breaks none."""
        problem = self._problem
        used = np.flatnonzero(fleet > 0)
        for unit in used[np.argsort(-problem.price[used])].tolist():  # what costs most is missed most, mostly
            left = fleet.copy()
            left[unit] -= 1
            routing = balanced(problem, left)
            if routing is None:
                return []
            if routing.busiest > 1 + WHOLE:
                return _rows(problem, routing)
        return None

    def _keep(self, fleet: Array) -> None:
        """Unless it is over a cap, or dearer."""
        problem, cost = self._problem, self._problem.objective(fleet)
        if cost < self._cost and (problem.of_pools(fleet) <= problem.caps + WHOLE).all():
            self._best, self._cost = fleet, cost

    def _improves(self, bound: float) -> bool:
        """Whether something at least the smallest difference cheaper may lie above the bound."""
        return self._cost == inf or bound < self._cost - self._step + _EXACT * max(1.0, self._cost)

    def _handed_over(self, bound: float, known: Iterable[Array]) -> Mix | None:
        """What HiGHS's own search makes of the time that is left."""
        while (left_s := self._until - self._limits.clock()) > 0:
            found = search(model_of(self._problem, losses=True, budget=self._cost), left_s, self._start(), self._added)
            bound = max(bound, min(found.bound, self._cost))
            if found.best is not None:
                self._keep(np.round(found.best.whole[: self._problem.num_units]) + 0.0)
            broken = self._broken()
            if not broken:
                break
            self._added += broken
            self._begin_with(known)
        if self._best is not None and self._broken():
            more = self._best + (self._best > 0)
            self._begin_with(known)
            self._keep(more)
        return None if self._best is None else Mix(self._best, self._cost, min(bound, self._cost))

    def _start(self) -> Array | None:
        if self._best is None or not self._problem.spare:
            return self._best
        return np.concatenate([self._best, np.minimum(self._best, 1.0)])


def _rows(problem: Problem, routing: Routing) -> list[Row]:
    """w y - w_u z_u >= needed, scaled to 1, for each kind that may lose one; no w need be more, as y is whole."""
    worth = np.minimum(routing.worth / routing.needed, 1.0)
    found: list[Row] = []
    for unit in range(problem.num_units):
        row = np.concatenate([worth, np.zeros(problem.num_units)])
        row[problem.num_units + unit] = -worth[unit]
        found.append(row)
    return found


def _branches(problem: Problem, values: Array, at: _Open, bound: float) -> list[_Open]:
    """Two halves without the point, the likelier last; none where it is whole."""
    away = np.abs(values - np.rint(values))
    broken = np.flatnonzero(away > WHOLE)
    if not len(broken):
        return []
    counts = broken[broken < problem.num_units]
    if len(counts) == len(broken):  # which kinds there are at all, where spares make that matter, comes first
        j = counts[np.argmax((problem.price[counts] + _EXACT) * away[counts])]
    else:
        j = broken[np.argmax(away[broken])]
    upper, lower = at.upper.copy(), at.lower.copy()
    upper[j], lower[j] = np.floor(values[j]), np.ceil(values[j])
    down, up = _Open(bound, at.lower, upper), _Open(bound, lower, at.upper)
    return [down, up] if values[j] % 1 > 0.5 or j >= problem.num_units else [up, down]


def _smallest_difference(problem: Problem) -> float:
    """By which costs of two fleets differ at least; prices are sums of money, with few decimals."""
    if problem.change is not None:
        return _EXACT
    parts = problem.price * _FINEST
    whole = np.round(parts)
    if (np.abs(parts - whole) > 1e-6).any() or whole.max(initial=0) <= 0:
        return _EXACT
    return gcd(*(int(part) for part in whole)) / _FINEST


def _undominated(problem: Problem) -> NDArray[np.intp]:
    """Units that no other replaces everywhere at no higher price, without end."""
    every = np.arange(problem.num_units, dtype=np.intp)
    if problem.change is not None or problem.num_units == 1:
        return every
    price, load = problem.price, problem.load
    endless = np.isinf(problem.caps[problem.pools])
    better = (price[:, None] <= price) & (load[:, None, :] <= load).all(axis=2) & endless[:, None]
    same = better & better.T
    better &= ~same | (every[:, None] < every)  # of equals the first stays
    return every[~better.any(axis=0)]
