"""Which configurations meet an intent, best first. Pure: intent and space in, ranked configurations out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maveriq.contracts import Intent, Objective
from maveriq_planner.arrays import Array, Flags, Indices
from maveriq_planner.columns import Columns, columns_of
from maveriq_planner.constraints import Figures, Miss, misses
from maveriq_planner.estimate import Segment
from maveriq_planner.memory import GIB
from maveriq_planner.queueing import Latencies
from maveriq_planner.replicas import (
    enough_for_rate,
    highest_rate_per_ms,
    latencies,
    most_allowed,
    smallest,
)
from maveriq_planner.space import Space
from maveriq_planner.workloads import share


@dataclass(frozen=True, slots=True)
class Judged:
    """C configurations under one intent."""

    intent: Intent
    columns: Columns
    replicas: Array  # [C]
    """Counted against budgets."""
    running: Array  # [C]
    """That the latencies are of: where the SLO is missed with any number, as many as the budgets hold."""
    latencies: Latencies
    misses: tuple[Miss, ...]
    met: Flags
    excess: Array
    """Of the worst miss."""
    score: Array

    @property
    def memory_bytes(self) -> Array:
        """Of all replicas."""
        total: Array = self.columns.memory_bytes * self.replicas
        return total

    @property
    def num_gpus(self) -> Array:
        total: Array = self.columns.num_gpus * self.replicas
        return total

    @property
    def price_per_hour(self) -> Array:
        total: Array = self.columns.price_per_hour * self.replicas
        return total


@dataclass(frozen=True, slots=True)
class Outcome:
    judged: Judged | None
    """None: there is nothing that the intent lets the model run as."""
    met: Indices
    """Of `judged`, best first."""
    missed: Indices
    """Nearest miss first, by the worst of each configuration's misses."""

    @property
    def num_considered(self) -> int:
        return len(self.met) + len(self.missed)


def search(intent: Intent, space: Space) -> Outcome:
    """Every configuration judged."""
    columns = columns_of(intent, space)
    if columns is None:
        nothing = np.zeros(0, dtype=np.intp)
        return Outcome(None, nothing, nothing)
    judged = judge(intent, columns)
    keys = _rank(judged)
    met, missed = np.flatnonzero(judged.met), np.flatnonzero(~judged.met)
    return Outcome(
        judged, met=_sorted(met, (*keys, judged.score)), missed=_sorted(missed, (*keys, judged.score, judged.excess))
    )


def judge(intent: Intent, columns: Columns) -> Judged:
    replicas, running = _replicas(intent, columns)
    found = latencies(intent, columns.replicas, running)
    figures = Figures(
        latencies=found,
        capacity_per_s=capacity_per_ms(intent, columns, running) * running * 1e3,
        num_gpus=columns.num_gpus * replicas,
        price_per_hour=columns.price_per_hour * replicas,
        accuracy=columns.accuracy,
    )
    missed = misses(intent, figures)
    excess = _told_apart(np.max([miss.excess for miss in missed], axis=0))
    met = ~np.any([miss.missed for miss in missed], axis=0)
    score = _told_apart(_score(intent, columns, found, replicas))
    return Judged(intent, columns, replicas, running, found, missed, met, excess, score)


def capacity_per_ms(intent: Intent, columns: Columns, replicas: Array) -> Array:
    """Of one replica, as many requests in hand as it has slots and the workload lets be in flight."""
    _, in_flight = share(intent.workload, replicas)
    return columns.replicas.capacity_per_ms(in_flight)


def goodput_per_ms(intent: Intent, columns: Columns, replicas: Array) -> Array:
    """Requests of one replica at the highest rate that meets the SLO; NaN: there is none."""
    _, in_flight = share(intent.workload, replicas)
    return highest_rate_per_ms(intent.slo, columns.replicas, in_flight)


def _replicas(intent: Intent, columns: Columns) -> tuple[Array, Array]:
    """Counted and running; see Judged."""
    if intent.replicas is not None:
        asked = np.full(len(columns), float(intent.replicas))
        return asked, asked
    needed, allowed = smallest(intent, columns), most_allowed(intent, columns)
    least = enough_for_rate(intent, columns)
    does = needed > 0
    counted = np.where(does, needed, least)
    bounded = intent.max_gpus is not None or intent.max_price_per_hour is not None
    if intent.objective is Objective.MAX_THROUGHPUT and bounded:
        counted = np.where(does, np.maximum(needed, allowed), counted)
    return counted, np.where(does, counted, np.maximum(least, allowed))


def _score(intent: Intent, columns: Columns, found: Latencies, replicas: Array) -> Array:
    """ms, GiB x s, GiB, GPU x s, money an hour or - tokens a second, of all replicas; lower is better."""
    e2e_s = found.e2e_ms / 1e3
    memory_gib = columns.memory_bytes * replicas / GIB
    match intent.objective:
        case Objective.MIN_LATENCY:
            return found.e2e_ms
        case Objective.MIN_COST:
            return e2e_s * memory_gib
        case Objective.MIN_MEMORY:
            return memory_gib
        case Objective.MIN_GPU_COST:
            return e2e_s * columns.num_gpus * replicas
        case Objective.MIN_PRICE:
            return columns.price_per_hour * replicas
        case Objective.MAX_THROUGHPUT:
            per_s = goodput_per_ms(intent, columns, replicas) * 1e3 * replicas
            return -np.nan_to_num(per_s) * intent.workload.output_tokens


def _rank(judged: Judged) -> tuple[Array | Indices, ...]:
    """Keys of np.lexsort, the last decides first. Equal scores: fewer bytes, GPUs, slots.

    Names make the order total.
    """
    c = judged.columns
    kinds = [estimator.kind for estimator in c.estimators]
    names = [
        (k.gpu_type, k.engine, str(k.precision), str(k.kv_precision), k.variant.label, _told_of(k.segments))
        for k in kinds
    ]
    order = sorted(names)
    places = np.array([order.index(name) for name in names], dtype=np.intp)
    shape = (c.slots * (c.pp.max() + 1) + c.pp) * (c.tp.max() + 1) + c.tp
    e2e_ms = _told_apart(judged.latencies.e2e_ms)
    return shape * len(names) + places[c.which], e2e_ms, judged.num_gpus, judged.memory_bytes


def _told_of(segments: Sequence[Segment]) -> str:
    return " | ".join(f"{segment.gpu_type} {' '.join(segment.precisions)}" for segment in segments)


def _sorted(chosen: Indices, keys: Sequence[Array | Indices]) -> Indices:
    """As np.lexsort, the last key decides first; the lesser ones are looked at until all are told apart."""
    places = np.zeros(len(chosen), dtype=np.intp)
    for key in reversed(keys):
        if places.max(initial=0) + 1 >= len(chosen):
            break
        places = _ranks(places * len(chosen) + _ranks(key[chosen]))
    found = np.empty_like(chosen)
    found[places] = chosen
    return found


def _ranks(values: Array | Indices) -> Indices:
    """Equal values share one."""
    order = np.argsort(values)
    ascending = values[order]
    ranks = np.empty(len(values), dtype=np.intp)
    ranks[order] = np.cumsum(np.concatenate([[False], ascending[1:] != ascending[:-1]]))[: len(values)]
    return ranks


def _told_apart(values: Array) -> Array:
    """To nine digits: what differs by less differs by rounding, and is not to decide."""
    mantissa, exponent = np.frexp(values)
    rounded: Array = np.ldexp(np.rint(mantissa * 2.0**30), exponent - 30)
    return rounded
