"""Whether configurations meet an intent, and by how much they miss. Pure: intent and figures in, misses out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from maveriq.contracts import Intent, Slo
from maveriq_planner.arrays import Array, Flags
from maveriq_planner.queueing import Latencies

TTFT = "slo.ttft_ms"
TPOT = "slo.tpot_ms"
E2E = "slo.e2e_ms"
RATE = "workload.request_rate_per_s"
ACCURACY = "min_accuracy"
GPUS = "max_gpus"
PRICE = "max_price_per_hour"
SHOWN_PERCENTILE = 95.0
_ROUNDING = 1 + 1e-9  # three times 0.05 is more than 0.15

LATENCIES = (TTFT, TPOT, E2E)


@dataclass(frozen=True, slots=True)
class Miss:
    """One constraint, over C configurations."""

    constraint: str
    """Field of the intent."""
    wanted: float
    predicted: Array  # [C]; NaN: not measured
    missed: Flags  # [C]
    excess: Array  # [C]
    """Relative to what is wanted, 0 where met; inf where nothing was measured."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What constraints look at, over C configurations."""

    latencies: Latencies
    capacity_per_s: Array
    """Of all replicas."""
    num_gpus: Array
    """Of all replicas that the load needs."""
    price_per_hour: Array
    """Of those too."""
    accuracy: Array


def misses(intent: Intent, figures: Figures) -> tuple[Miss, ...]:
    """One for each constraint that the intent makes."""
    return (
        *_latency(intent.slo, figures.latencies),
        _rate(intent, figures),
        *_accuracy(intent, figures.accuracy),
        *_most(GPUS, intent.max_gpus, figures.num_gpus),
        *_most(PRICE, intent.max_price_per_hour, figures.price_per_hour),
    )


def limited(slo: Slo, latencies: Latencies) -> Iterator[tuple[str, float, Array]]:
    """Each limit of the SLO and what is compared with it: the means, or the percentile's where one is named."""
    means = slo.percentile is None
    for constraint, wanted, mean, high in (
        (TTFT, slo.ttft_ms, latencies.ttft_ms, latencies.ttft_percentile_ms),
        (TPOT, slo.tpot_ms, latencies.tpot_ms, latencies.tpot_percentile_ms),
        (E2E, slo.e2e_ms, latencies.e2e_ms, latencies.e2e_percentile_ms),
    ):
        if wanted is not None:
            yield constraint, wanted, mean if means else high


def holds(slo: Slo, latencies: Latencies) -> Flags:
    """Whether the rate is sustained within every limit."""
    met = latencies.sustained.copy()
    for _, wanted, values in limited(slo, latencies):
        met &= values <= wanted
    return met


def affordable(intent: Intent, price_per_hour: Array) -> Flags:
    """Within the budget; a price that is not known is within none."""
    met: Flags = ~np.zeros(len(price_per_hour), dtype=np.bool_)
    for miss in _most(PRICE, intent.max_price_per_hour, price_per_hour):
        met &= ~miss.missed
    return met


def _latency(slo: Slo, latencies: Latencies) -> Iterator[Miss]:
    for constraint, wanted, values in limited(slo, latencies):
        yield Miss(constraint, wanted, values, values > wanted, np.maximum(values / wanted - 1, 0.0))


def _rate(intent: Intent, figures: Figures) -> Miss:
    wanted, capacity = intent.workload.request_rate_per_s, figures.capacity_per_s
    missed = ~figures.latencies.sustained
    return Miss(RATE, wanted, capacity, missed, np.where(missed, np.maximum(wanted / capacity - 1, 0.0), 0.0))


def _accuracy(intent: Intent, accuracy: Array) -> Iterator[Miss]:
    floor = intent.min_accuracy
    if floor is None:
        return
    unknown = np.isnan(accuracy)
    missed = (~unknown & (accuracy < floor)) | (unknown & (not intent.allow_unmeasured_accuracy))
    lacking = np.where(unknown, np.inf, (floor - accuracy) / floor if floor else 0.0)
    yield Miss(ACCURACY, floor, accuracy, missed, np.where(missed, lacking, 0.0))


def _most(constraint: str, wanted: float | None, values: Array) -> Iterator[Miss]:
    """A value that is not known passes no limit."""
    if wanted is None:
        return
    unknown = np.isnan(values)
    missed = unknown | (values > wanted * _ROUNDING)
    excess = np.where(unknown, np.inf, values / wanted - 1)
    yield Miss(constraint, wanted, values, missed, np.where(missed, excess, 0.0))
