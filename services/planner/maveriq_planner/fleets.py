"""The best fleet for requests of the sizes that an intent tells. Pure: intent, space and what is free in, fleet out.

The cheapest whole numbers of replicas (provisioning/fleet_mix.py) and who serves whom, as `maveriq provision` has them,
of one configuration of each GPU type, as a lane is a type's; and the cheapest fleet of each type alone. Objectives that
add up over replicas are proven. Those that multiply them with latency have for the cost of a replica what it would take
with all requests alike, and the fleet of them whose own prediction is best. Every part holds the intent's longest
request, so that any replica may answer any request.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from maveriq.contracts import Candidate, Fragment, Intent, Objective, PlannedFleet
from maveriq_planner.arrays import Array
from maveriq_planner.columns import columns_of
from maveriq_planner.fleet_routes import routes_of
from maveriq_planner.fleet_units import Units, sized, units_of
from maveriq_planner.listing import candidates_of
from maveriq_planner.provision import solve
from maveriq_planner.provisioning.fleet_mix import Limits
from maveriq_planner.provisioning.problem import Problem
from maveriq_planner.provisioning.workload import Demand, demand_of_histogram
from maveriq_planner.search import judge
from maveriq_planner.space import Space

TIME_LIMIT_S = 1.0  # a handful of kinds of unit take milliseconds
_LEAST_S = 0.02  # of one search of several
_ADD_UP = (Objective.MIN_PRICE, Objective.MIN_MEMORY)
_TIMES_LATENCY = (Objective.MIN_COST, Objective.MIN_GPU_COST)
BY_SIZE = (*_ADD_UP, *_TIMES_LATENCY)  # objectives under which GPU types share requests
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class _Mix:
    """Replicas of one configuration of each type."""

    units: Units
    counts: Array  # [U]
    shares: Array  # [U, B]


def fleet_of(
    intent: Intent, space: Space, fragments: Sequence[Fragment], clock: Callable[[], float]
) -> PlannedFleet | None:
    """
    Args:
        fragments: what was free when the intent was admitted.
        clock: seconds since whenever, for the time limit.

    Returns:
        None: no histogram, an objective that nothing here counts, or nothing that is free serves all sizes.

    Raises:
        ProvisioningRefused: what was found does not pass its check.
    """
    histogram = intent.workload.histogram
    if histogram is None or intent.objective not in BY_SIZE or intent.replicas is not None:
        return None
    plain = replace(space, families=(), fragments=())  # a pipeline of several types has no lane of its own
    demand = demand_of_histogram(histogram).at(intent.workload.request_rate_per_s)
    demand = demand.within(intent.workload.context_tokens or space.facts.max_context_tokens)
    units = units_of(intent, plain, fragments, demand)
    if units is None:
        return None
    shared, bound = _shared(units, clock() + TIME_LIMIT_S, clock)
    mixes = (*_alone(units), *(() if shared is None else (shared,)))
    told = [fleet for fleet in (_told(intent, plain, demand, mix) for mix in mixes) if _affordable(intent, fleet)]
    if not told:
        return None
    best = min(told, key=lambda fleet: fleet.score * (1 + _ROUNDING * len(fleet.parts)))
    single_score = min((fleet.score for fleet in told if not fleet.is_shared), default=None)
    proven = bound if intent.objective in _ADD_UP and np.isfinite(bound) else None
    return best.model_copy(update={"single_score": single_score, "bound": proven})


def only_fleet(
    intent: Intent, space: Space, fragments: Sequence[Fragment], clock: Callable[[], float]
) -> PlannedFleet | None:
    """Where no configuration meets the intent for the mean request: what meets it for requests of each size.

    Over what is free, else over what comes back too, as an intent may wait. None also where requests in flight are
    bounded: fleets are planned for clients that do not wait for each other.
    """
    if intent.workload.concurrency is not None:
        return None
    emptied = [one.model_copy(update={"free_bytes": one.free_bytes + one.held_bytes}) for one in fragments]
    return fleet_of(intent, space, fragments, clock) or fleet_of(intent, space, emptied, clock)


def _alone(units: Units) -> Iterator[_Mix]:
    """Of each type that serves all sizes by itself the cheapest."""
    cost, needed = _cost_alone(units), _needed_alone(units)
    for kind in dict.fromkeys(units.gpu_types):
        mine = np.array([i for i, name in enumerate(units.gpu_types) if name == kind], dtype=np.intp)
        one = mine[np.argmin(cost[mine])][None]
        if np.isfinite(cost[one[0]]):
            yield _Mix(units.take(one), needed[one], np.ones((1, units.load.shape[1])))


def _needed_alone(units: Units) -> Array:
    needed: Array = np.maximum(1.0, np.ceil(units.load.sum(axis=1) - _ROUNDING))
    return needed


def _cost_alone(units: Units) -> Array:
    """[U]; infinity: it does not serve all sizes, or there is not enough of it."""
    needed = _needed_alone(units)
    cost: Array = np.multiply(needed, units.costs, out=np.full(len(needed), np.inf), where=needed <= units.caps)
    return cost


def _shared(units: Units, until: float, clock: Callable[[], float]) -> tuple[_Mix | None, float]:
    """One configuration of each type that is in it; and what none costs less than.

    Where the cheapest has several of a type, each of these is tried as the only one, and the cheapest alone.
    """
    problem = Problem(units.costs, units.load, most=units.caps)
    solved = solve(problem, Limits(max(_LEAST_S, until - clock()), clock))
    if solved is None:
        return None, np.inf
    used = np.flatnonzero((solved.mix.counts > 0) & (solved.shares.sum(axis=1) > 0))
    kinds = units.gpu_types
    of_kinds = Counter(kinds[unit] for unit in used.tolist())
    kind, several = of_kinds.most_common(1)[0]
    if several == 1:
        return _Mix(units.take(used), solved.mix.counts[used], solved.shares[used]), solved.mix.bound
    every = np.arange(len(kinds))
    alike = np.array([each == kind for each in kinds])
    rivals = {*used[alike[used]].tolist(), int(every[alike][np.argmin(_cost_alone(units)[alike])])}
    tried = [_shared(units.take(every[~alike | (every == one)]), until, clock)[0] for one in sorted(rivals)]
    found = [mix for mix in tried if mix is not None]
    return min(found, key=lambda mix: float(mix.units.costs @ mix.counts), default=None), solved.mix.bound


def _affordable(intent: Intent, fleet: PlannedFleet) -> bool:
    num_gpus = sum(part.configuration.num_gpus * part.replicas for part in fleet.parts)
    most, price = intent.max_price_per_hour, fleet.price_per_hour
    within = most is None or (price is not None and price <= most * (1 + _ROUNDING))
    return within and (intent.max_gpus is None or num_gpus <= intent.max_gpus)


def _told(intent: Intent, space: Space, demand: Demand, mix: _Mix) -> PlannedFleet:
    parts = [_part(intent, space, demand, mix, unit) for unit in range(len(mix.counts))]
    units, price = mix.units, float((mix.units.columns.price_per_hour * mix.counts).sum())
    return PlannedFleet(
        parts=tuple(parts),
        routes=routes_of(demand, units.gpu_types, mix.shares, units.costs[:, None] * units.load),
        score=_score(intent, demand, mix, parts), price_per_hour=None if np.isnan(price) else price,
    )  # fmt: skip


def _score(intent: Intent, demand: Demand, mix: _Mix, parts: Sequence[Candidate]) -> float:
    """As the objective counts it: what all replicas take, where it says so times the mean request's latency."""
    if intent.objective in _ADD_UP:
        return float(mix.units.costs @ mix.counts)
    rates = mix.shares @ demand.rate_per_s
    e2e_ms = np.array([part.prediction.e2e_ms for part in parts])
    taken = np.array([part.score for part in parts]) / e2e_ms
    return float(rates @ e2e_ms / rates.sum() * taken.sum())


def _part(intent: Intent, space: Space, demand: Demand, mix: _Mix, unit: int) -> Candidate:
    """One unit as a candidate, predicted for the mean of what it is to serve."""
    asked = sized(intent, demand, demand.rate_per_s * mix.shares[unit])
    asked = asked.model_copy(update={"replicas": int(mix.counts[unit])})
    columns = columns_of(asked, space)
    assert columns is not None, "what serves all sizes serves their mean"
    judged = judge(asked, columns.take(mix.units.rows[unit : unit + 1]))
    (candidate,) = candidates_of(judged, np.zeros(1, dtype=np.intp))
    return candidate.model_copy(update={"mixable": ()})  # a part of other types would have no lane
