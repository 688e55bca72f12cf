"""What may serve requests of several sizes, and how much of each. Pure: intent, space and what is free in, units out.

A unit is one replica of a configuration that fits what was free at admission: what it costs as the objective counts,
and for each bucket of the histogram the highest rate that it bears within the SLO.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from maveriq.contracts import Fragment, Intent, Objective, Workload
from maveriq_planner.arrays import Array, Flags, Indices
from maveriq_planner.columns import Columns, columns_of
from maveriq_planner.memory import GIB
from maveriq_planner.provisioning.law_throughput import fullest_stage_bytes
from maveriq_planner.provisioning.workload import Demand
from maveriq_planner.replicas import highest_rate_per_ms
from maveriq_planner.search import Judged, judge
from maveriq_planner.space import Space

_SLOTS = 2  # the largest numbers of slots that fit, of each way to split: fewer bear no more, and cost as much
_OF_A_BUCKET = 2  # configurations of a type that are cheapest for it


@dataclass(frozen=True, slots=True)
class Units:
    """U configurations."""

    columns: Columns
    rows: Indices  # [U], of the columns that every workload of this intent has
    costs: Array  # [U], of one replica
    caps: Array  # [U], replicas that what is free holds
    load: Array  # [U, B]: replicas that a bucket's whole rate keeps busy; inf: not within the SLO

    def take(self, chosen: Indices) -> "Units":
        return Units(
            self.columns.take(chosen), self.rows[chosen], self.costs[chosen], self.caps[chosen], self.load[chosen]
        )  # fmt: skip

    @property
    def gpu_types(self) -> list[str]:
        return [self.columns.kind(i).gpu_type for i in range(len(self.rows))]


def units_of(intent: Intent, space: Space, fragments: Sequence[Fragment], demand: Demand) -> Units | None:
    """Those worth a look; None: nothing fits what is free."""
    asked = sized(intent, demand, demand.rate_per_s)
    columns = columns_of(asked, space)
    if columns is None:
        return None
    caps = _caps(columns, space.facts.num_layers, fragments)
    rows = np.flatnonzero((caps >= 1) & _accurate(intent, columns))
    if intent.objective is Objective.MIN_PRICE:
        rows = _roomiest(columns, rows)
    if not len(rows):
        return None
    judged = judge(asked, columns.take(rows))
    load = np.stack([_loads(intent, space, demand, bucket, rows) for bucket in range(len(demand.rate_per_s))], axis=1)
    units = Units(judged.columns, rows, _costs(judged), caps[rows], load)
    return units.take(_cheapest_somewhere(units))


def _costs(judged: Judged) -> Array:
    """Of one replica; where latency counts too, that of all requests alike."""
    match judged.intent.objective:
        case Objective.MIN_PRICE:
            return judged.columns.price_per_hour
        case Objective.MIN_MEMORY:
            return judged.columns.memory_bytes / GIB
        case _:
            return judged.score / judged.replicas


def sized(intent: Intent, demand: Demand, rate_per_s: Array) -> Intent:
    """The intent for requests of the mean size.

    Args:
        rate_per_s: [B], of each bucket.
    """
    total = float(rate_per_s.sum())
    workload = Workload(
        input_tokens=max(1, ceil(demand.input_tokens @ rate_per_s / total)),
        output_tokens=max(1, ceil(demand.output_tokens @ rate_per_s / total)),
        request_rate_per_s=total, context_tokens=intent.workload.context_tokens,
    )  # fmt: skip
    return intent.model_copy(update={"workload": workload})


def _caps(columns: Columns, num_layers: int, fragments: Sequence[Fragment]) -> Array:
    """Replicas that what is free holds, each on one node, one stage a GPU as speed and price are told."""
    caps = np.zeros(len(columns))
    fullest = fullest_stage_bytes(columns, num_layers)
    for which, estimator in enumerate(columns.estimators):
        kind = estimator.kind
        mine = np.flatnonzero(columns.which == which)
        for free in _nodes(fragments, kind.gpu_type, kind.engine):
            seats = (np.array(free, dtype=float)[:, None] >= fullest[mine]).sum(axis=0)
            caps[mine] += np.floor(seats / columns.num_gpus[mine])
    return caps


def _nodes(fragments: Sequence[Fragment], gpu_type: str, engine: str) -> Iterable[list[int]]:
    """Free bytes of the type's GPUs, by node."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for one in fragments:
        if (one.gpu_type, one.engine) == (gpu_type, engine):
            found[one.node].append(one.free_bytes)
    return found.values()


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


def _loads(intent: Intent, space: Space, demand: Demand, bucket: int, rows: Indices) -> Array:
    """Replicas of each row that the bucket's whole rate keeps busy."""
    alone = np.zeros(len(demand.rate_per_s))
    alone[bucket] = demand.rate_per_s[bucket]
    load = np.full(len(rows), np.inf)
    columns = columns_of(sized(intent, demand, alone), space)
    if columns is not None:
        rates_per_ms = highest_rate_per_ms(intent.slo, columns.replicas.take(rows), np.full(len(rows), np.inf))
        rates = np.nan_to_num(rates_per_ms) * 1e3
        np.divide(demand.rate_per_s[bucket], rates, out=load, where=rates > 0)
    return load


def _cheapest_somewhere(units: Units) -> Indices:
    """Of each type those that are cheapest for a bucket, or for all together: by what it keeps busy, and in whole."""
    load = np.concatenate([units.load, units.load.sum(axis=1, keepdims=True)], axis=1)
    with np.errstate(invalid="ignore"):  # what costs nothing and serves nothing
        cost = units.costs[:, None] * np.concatenate([load, np.ceil(load)], axis=1)
    kept: set[int] = set()
    for kind in dict.fromkeys(units.gpu_types):
        mine = np.array([i for i, name in enumerate(units.gpu_types) if name == kind], dtype=np.intp)
        for column in cost[mine].T:
            able = mine[np.isfinite(column)]
            kept.update(able[np.argsort(column[np.isfinite(column)], kind="stable")][:_OF_A_BUCKET].tolist())
    return np.array(sorted(kept), dtype=np.intp)
