"""What instances bear of each bucket within the SLO, by the law of their GPU types. Pure: calibrations in, rates out.

Each GPU type and bucket gets the planner's own estimators and queueing: the highest rate at which one replica meets the
SLO for requests of the bucket's mean size. A configuration is a variant with a TP and a PP degree; its decode slots are
those that are best for the bucket, among those whose memory the GPU has: the KV cache is paged, so one engine has many
short requests or few long ones. An instance runs as many replicas of a configuration as it has GPUs for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from maveriq.contracts import Intent, Objective, Workload
from maveriq.contracts.provisioning import LawSources, RentableGpu
from maveriq_planner.arrays import Flags
from maveriq_planner.columns import Columns, columns_of
from maveriq_planner.estimate import Estimator
from maveriq_planner.memory import GIB
from maveriq_planner.provisioning.problem import Array
from maveriq_planner.provisioning.workload import Demand
from maveriq_planner.replicas import highest_rate_per_ms
from maveriq_planner.space import Space, by_law

MOST_CONFIGURATIONS = 8  # of one row: those that bear the workload best, of those that none beats in every bucket


@dataclass(frozen=True, slots=True)
class Running:
    """One way to run an instance."""

    configuration: str
    throughput: Array  # [B], requests a second of the whole instance; 0: cannot serve the bucket


@dataclass(frozen=True, slots=True)
class _Key:
    which: int
    tp: int
    pp: int


def ways_to_run(law: LawSources, gpus: Sequence[RentableGpu], demand: Demand) -> list[list[Running]]:
    """Of each row; none where its GPU type is not calibrated for the model, its memory not known, or too small."""
    kinds = {gpu.kind for gpu in gpus}
    estimators, _ = by_law(law.model, law.facts, (), law.calibrations)
    speaking = tuple(e for e in estimators if e.kind.gpu_type in kinds and _accurate(law.intent, e))
    space = Space(law.model, law.facts, speaking, max_pp=max(gpu.num_gpus for gpu in gpus))
    num_buckets = len(demand.rate_per_s)
    found: list[dict[_Key, Array]] = [{} for _ in gpus]
    for bucket in range(num_buckets):
        intent = _intent(law.intent, demand, bucket)
        columns = columns_of(intent, space) if speaking else None
        if columns is None:
            continue
        fits = np.array([_fits(columns, gpu, law) for gpu in gpus])  # [G, C]
        kept = np.flatnonzero(fits.any(axis=0))
        rates_per_s = _rates_per_s(intent, columns.take(kept))
        for gpu, fit, known in zip(gpus, fits[:, kept], found, strict=True):
            for key, rate_per_s in _best(columns.take(kept[fit]), rates_per_s[fit]):
                replicas = gpu.num_gpus // (key.tp * key.pp)
                known.setdefault(key, np.zeros(num_buckets))[bucket] = rate_per_s * replicas
    return [_worthwhile(known, speaking, demand) for known in found]


def _intent(asked: Intent, demand: Demand, bucket: int) -> Intent:
    workload = Workload(
        input_tokens=max(1, ceil(demand.input_tokens[bucket])), output_tokens=max(1, ceil(demand.output_tokens[bucket]))
    )
    update = {"workload": workload, "objective": Objective.MIN_LATENCY, "gpu_types": None}
    return asked.model_copy(update=update)


def _accurate(intent: Intent, estimator: Estimator) -> bool:
    accuracy = estimator.kind.variant.accuracy
    if intent.min_accuracy is None:
        return True
    return intent.allow_unmeasured_accuracy if accuracy is None else accuracy >= intent.min_accuracy


def _fits(c: Columns, gpu: RentableGpu, law: LawSources) -> Flags:
    """Whether the fullest stage fits a GPU of the row, layers split evenly, and the replica its instance."""
    of_type = np.array([e.kind.gpu_type == gpu.kind for e in c.estimators])
    fullest = fullest_stage_bytes(c, law.facts.num_layers)
    memory_bytes = (gpu.memory_gib or 0.0) * GIB
    fits: Flags = of_type[c.which] & (c.tp * c.pp <= gpu.num_gpus) & (fullest <= memory_bytes)
    return fits


def fullest_stage_bytes(c: Columns, num_layers: int) -> Array:
    """On each GPU of it, layers split evenly."""
    alone = c.pp == 1
    first = c.runtime_bytes + np.ceil(num_layers / c.pp) * c.layer_bytes + c.first_bytes
    first += np.where(alone, c.last_bytes - c.tied_saving_bytes, 0.0)
    last = c.runtime_bytes + np.floor(num_layers / c.pp) * c.layer_bytes + c.last_bytes
    fullest: Array = np.where(alone, first, np.maximum(first, last))
    return fullest


def _rates_per_s(intent: Intent, columns: Columns) -> Array:
    """[C], the highest of one replica."""
    rates_per_ms = highest_rate_per_ms(intent.slo, columns.replicas, np.full(len(columns), np.inf))
    return np.nan_to_num(rates_per_ms) * 1e3


def _best(columns: Columns, rates_per_s: Array) -> Iterator[tuple[_Key, float]]:
    """The highest rate of each configuration, over its numbers of slots."""
    keys = np.stack([columns.which, columns.tp, columns.pp], axis=1)
    distinct, place = np.unique(keys, axis=0, return_inverse=True)
    best = np.zeros(len(distinct))
    np.maximum.at(best, place.ravel(), rates_per_s)
    for (which, tp, pp), rate in zip(distinct.tolist(), best.tolist(), strict=True):
        yield _Key(which, tp, pp), rate


def _worthwhile(known: dict[_Key, Array], speaking: Sequence[Estimator], demand: Demand) -> list[Running]:
    """Of a row's configurations, all equally dear, those that no other bears as much as in every bucket."""
    ways = [Running(_label(speaking, key), rates) for key, rates in known.items() if (rates > 0).any()]
    kept: list[Running] = []
    for way in sorted(ways, key=lambda one: _work(one, demand)):
        if not any((other.throughput >= way.throughput).all() for other in kept):
            kept.append(way)
    return kept[:MOST_CONFIGURATIONS]


def _work(way: Running, demand: Demand) -> tuple[float, float]:
    """Rate that it cannot serve at all, then instances that the rest keeps busy."""
    able = way.throughput > 0
    busy = (demand.rate_per_s[able] / way.throughput[able]).sum()
    return float(demand.rate_per_s[~able].sum()), float(busy)


def _label(speaking: Sequence[Estimator], key: _Key) -> str:
    parts = [speaking[key.which].kind.variant.label]
    if key.tp > 1:
        parts.append(f"TP {key.tp}")
    if key.pp > 1:
        parts.append(f"{key.pp} stages")
    return " · ".join(parts)
