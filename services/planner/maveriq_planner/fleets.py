"""The best fleet for requests of the sizes that an intent tells. Pure: intent, space and what is free in, fleet out.

Of each configuration that fits what was free at admission, the highest rate within the SLO for each bucket of the
histogram; then the cheapest whole numbers of replicas (provisioning/fleet_mix.py) and who serves whom, as `maveriq
provision` has them. Every part holds the intent's longest request, so that any replica may answer any request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from maveriq.contracts import Candidate, Fragment, Intent, Objective, PlannedFleet, Workload
from maveriq_planner.arrays import Array, Flags, Indices
from maveriq_planner.columns import Columns, columns_of
from maveriq_planner.fleet_routes import routes_of
from maveriq_planner.listing import candidates_of
from maveriq_planner.provision import Solved, solve
from maveriq_planner.provisioning.fleet_mix import Limits
from maveriq_planner.provisioning.law_throughput import fullest_stage_bytes
from maveriq_planner.provisioning.problem import Problem
from maveriq_planner.provisioning.workload import Demand, demand_of_histogram
from maveriq_planner.replicas import highest_rate_per_ms
from maveriq_planner.search import judge
from maveriq_planner.space import Space

TIME_LIMIT_S = 1.0  # of one search; a handful of kinds of unit take milliseconds
_SLOTS = 2  # the largest numbers of slots that fit, of each way to split: fewer bear no more
_OF_A_BUCKET = 2  # configurations of a type that are cheapest for it


@dataclass(frozen=True, slots=True)
class _Units:
    """U configurations, and what they bear."""

    columns: Columns
    rows: Indices  # [U], of the columns that every workload of this intent has
    costs: Array  # [U], of one replica, as the objective counts
    caps: Array  # [U], replicas that what is free holds
    rates: Array  # [U, B], requests a second of one replica; 0: not within the SLO

    def take(self, chosen: Indices) -> "_Units":
        return _Units(
            self.columns.take(chosen), self.rows[chosen], self.costs[chosen], self.caps[chosen], self.rates[chosen]
        )  # fmt: skip

    @property
    def gpu_types(self) -> list[str]:
        return [self.columns.kind(i).gpu_type for i in range(len(self.rows))]


def fleet_of(
    intent: Intent, space: Space, fragments: Sequence[Fragment], clock: Callable[[], float]
) -> PlannedFleet | None:
    """
    Args:
        fragments: what was free when the intent was admitted.
        clock: seconds since whenever, for the time limit.

    Returns:
        None: no histogram, an objective that is no sum over replicas, or nothing that is free serves all sizes.

    Raises:
        ProvisioningRefused: what was found does not pass its check.
    """
    histogram = intent.workload.histogram
    if histogram is None or intent.objective not in _COSTS or intent.replicas is not None:
        return None
    plain = replace(space, families=(), fragments=())  # a pipeline of several types has no lane of its own
    demand = demand_of_histogram(histogram).at(intent.workload.request_rate_per_s)
    demand = demand.within(intent.workload.context_tokens or space.facts.max_context_tokens)
    units = _units(intent, plain, fragments, demand)
    if units is None:
        return None
    found = _one_of_each_type(units, demand, Limits(TIME_LIMIT_S, clock))
    if found is None:
        return None
    single_cost, (units, solved) = _single_cost(units, demand), found
    if not _affordable(intent, units, solved.mix.counts):
        return None
    return _told(intent, plain, demand, units, solved, single_cost)


_COSTS: dict[Objective, Callable[[Columns], Array]] = {
    Objective.MIN_PRICE: lambda columns: columns.price_per_hour,
    Objective.MIN_MEMORY: lambda columns: columns.memory_bytes,
}


def _units(intent: Intent, space: Space, fragments: Sequence[Fragment], demand: Demand) -> _Units | None:
    """Those worth a look; None: nothing fits what is free."""
    columns = columns_of(intent, space)
    if columns is None:
        return None
    caps = _caps(columns, space.facts.num_layers, fragments)
    rows = _roomiest(columns, np.flatnonzero((caps >= 1) & _accurate(intent, columns)))
    if not len(rows):
        return None
    of_buckets = [_rates(intent, space, demand, bucket, rows) for bucket in range(len(demand.rate_per_s))]
    if any(rates is None for rates in of_buckets):
        return None
    rates = np.stack([rates for rates in of_buckets if rates is not None], axis=1)
    units = _Units(columns.take(rows), rows, _COSTS[intent.objective](columns)[rows], caps[rows], rates)
    return units.take(_cheapest_somewhere(units, demand))


def _caps(columns: Columns, num_layers: int, fragments: Sequence[Fragment]) -> Array:
    """Replicas that what is free holds, one stage a GPU as speed and price are told; the allocator sees to nodes."""
    caps = np.zeros(len(columns))
    fullest = fullest_stage_bytes(columns, num_layers)
    for which, estimator in enumerate(columns.estimators):
        kind = estimator.kind
        free = [f.free_bytes for f in fragments if (f.gpu_type, f.engine) == (kind.gpu_type, kind.engine)]
        mine = np.flatnonzero(columns.which == which)
        seats = (np.array(free, dtype=float)[:, None] >= fullest[mine]).sum(axis=0)
        caps[mine] = np.floor(seats / columns.num_gpus[mine])
    return caps


def _accurate(intent: Intent, columns: Columns) -> Flags:
    if intent.min_accuracy is None:
        return np.ones(len(columns), dtype=np.bool_)
    known = ~np.isnan(columns.accuracy)
    flags: Flags = np.where(known, columns.accuracy >= intent.min_accuracy, intent.allow_unmeasured_accuracy)
    return flags


def _roomiest(columns: Columns, rows: Indices) -> Indices:
    """Of each way to split those with most slots."""
    kept: dict[tuple[int, int, int], int] = {}
    found: list[int] = []
    for i in rows[np.argsort(-columns.slots[rows], kind="stable")].tolist():
        key = int(columns.which[i]), int(columns.tp[i]), int(columns.pp[i])
        kept[key] = kept.get(key, 0) + 1
        if kept[key] <= _SLOTS:
            found.append(i)
    return np.array(sorted(found), dtype=np.intp)


def _rates(intent: Intent, space: Space, demand: Demand, bucket: int, rows: Indices) -> Array | None:
    """Requests a second of one replica of each row, for requests of the bucket's size."""
    columns = _sized(intent, space, demand.input_tokens[bucket], demand.output_tokens[bucket], 1.0, rows)
    if columns is None:
        return None
    rates = highest_rate_per_ms(intent.slo, columns.replicas, np.full(len(rows), np.inf)) * 1e3
    found: Array = np.nan_to_num(rates)
    return found


def _sized(
    intent: Intent, space: Space, input_tokens: float, output_tokens: float, rate_per_s: float, rows: Indices
) -> Columns | None:
    asked = sized(intent, input_tokens, output_tokens, rate_per_s)
    columns = columns_of(asked, space)
    return None if columns is None else columns.take(rows)


def sized(intent: Intent, input_tokens: float, output_tokens: float, rate_per_s: float) -> Intent:
    """The intent for requests of about one size."""
    told = intent.workload
    workload = Workload(
        input_tokens=max(1, ceil(input_tokens)), output_tokens=max(1, ceil(output_tokens)),
        request_rate_per_s=rate_per_s, context_tokens=told.context_tokens,
    )  # fmt: skip
    return intent.model_copy(update={"workload": workload})


def _cheapest_somewhere(units: _Units, demand: Demand) -> Indices:
    """Of each type those that are cheapest for a bucket, or for all together."""
    with np.errstate(divide="ignore"):
        cost = units.costs[:, None] * demand.rate_per_s / units.rates
    columns = np.concatenate([cost, cost.sum(axis=1, keepdims=True)], axis=1)
    kept: set[int] = set()
    for kind in dict.fromkeys(units.gpu_types):
        mine = np.array([i for i, name in enumerate(units.gpu_types) if name == kind], dtype=np.intp)
        for column in columns[mine].T:
            able = mine[np.isfinite(column)]
            kept.update(able[np.argsort(column[np.isfinite(column)], kind="stable")][:_OF_A_BUCKET].tolist())
    return np.array(sorted(kept), dtype=np.intp)


def _loads(units: _Units, demand: Demand) -> Array:
    """[U, B]: replicas that a bucket's whole rate keeps busy."""
    load = np.full(units.rates.shape, np.inf)
    np.divide(np.broadcast_to(demand.rate_per_s, load.shape), units.rates, out=load, where=units.rates > 0)
    return load


def _problem(units: _Units, demand: Demand) -> Problem:
    return Problem(units.costs, _loads(units, demand), most=units.caps)


def _single_cost(units: _Units, demand: Demand) -> float | None:
    """Of the cheapest fleet of one type, all of one configuration. None: no type serves alone."""
    needed = np.maximum(1.0, np.ceil(_loads(units, demand).sum(axis=1) - 1e-9))
    able = np.isfinite(needed) & (needed <= units.caps)
    return float((needed * units.costs)[able].min()) if able.any() else None


def _one_of_each_type(units: _Units, demand: Demand, limits: Limits) -> tuple[_Units, Solved] | None:
    """The cheapest fleet that has one configuration of each type, for a lane is a type's."""
    for _ in range(len(set(units.gpu_types)) + 1):
        problem = _problem(units, demand)
        solved = solve(problem, limits)
        if solved is None:
            return None
        work = np.where(solved.shares > 0, problem.load, 0.0) * solved.shares
        alike: dict[str, list[int]] = {}
        for unit in np.flatnonzero(solved.mix.counts > 0).tolist():
            alike.setdefault(units.gpu_types[unit], []).append(unit)
        rivals = {kind: max(them, key=work.sum(axis=1).__getitem__) for kind, them in alike.items() if len(them) > 1}
        if not rivals:
            return units, solved
        kept = [unit for unit, kind in enumerate(units.gpu_types) if rivals.get(kind, unit) == unit]
        units = units.take(np.array(kept, dtype=np.intp))
    return None


def _affordable(intent: Intent, units: _Units, counts: Array) -> bool:
    price = float(np.nansum(units.columns.price_per_hour * counts))
    return (intent.max_gpus is None or float(units.columns.num_gpus @ counts) <= intent.max_gpus) and (
        intent.max_price_per_hour is None or price <= intent.max_price_per_hour * (1 + 1e-9)
    )


def _told(
    intent: Intent, space: Space, demand: Demand, units: _Units, solved: Solved, single_cost: float | None
) -> PlannedFleet | None:
    used = np.flatnonzero(solved.mix.counts > 0)
    fleet, shares, counts = units.take(used), solved.shares[used], solved.mix.counts[used]
    parts = [_part(intent, space, demand, fleet, shares, counts, unit) for unit in range(len(used))]
    known = [part for part in parts if part is not None]
    price = float((fleet.columns.price_per_hour * counts).sum())
    return None if len(known) < len(parts) else PlannedFleet(
        parts=tuple(known),
        routes=routes_of(demand, fleet.gpu_types, shares, fleet.costs[:, None] * _loads(fleet, demand)),
        score=solved.mix.objective, bound=solved.mix.bound, single_score=single_cost,
        price_per_hour=None if np.isnan(price) else price,
    )  # fmt: skip


def _part(
    intent: Intent, space: Space, demand: Demand, units: _Units, shares: Array, counts: Array, unit: int
) -> Candidate | None:
    """One unit as a candidate, predicted for the mean of what it is to serve."""
    rate = demand.rate_per_s * shares[unit]
    if rate.sum() <= 0:
        return None
    total = float(rate.sum())
    inputs, outputs = float(demand.input_tokens @ rate) / total, float(demand.output_tokens @ rate) / total
    asked = sized(intent, inputs, outputs, total).model_copy(update={"replicas": int(counts[unit])})
    columns = columns_of(asked, space)
    if columns is None:
        return None
    every = np.zeros(1, dtype=np.intp)
    (candidate,) = candidates_of(judge(asked, columns.take(units.rows[unit : unit + 1])), every)
    return candidate.model_copy(update={"mixable": ()})  # a part of other types would have no lane
