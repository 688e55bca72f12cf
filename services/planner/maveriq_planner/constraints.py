"""Whether an estimate meets an intent, and by how much it misses. Pure: intent and estimate in, misses out."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from maveriq.contracts import Configuration, Intent
from maveriq_planner.estimate import Estimate

TTFT = "slo.ttft_ms"
TPOT = "slo.tpot_ms"
E2E = "slo.e2e_ms"
RATE = "workload.request_rate_per_s"
ACCURACY = "min_accuracy"
GPUS = "max_gpus"


@dataclass(frozen=True, slots=True)
class Miss:
    constraint: str
    """Field of the intent."""
    wanted: float
    predicted: float | None
    """None: not measured."""
    excess: float
    """Relative to what is wanted; inf where nothing was measured."""


def misses(intent: Intent, configuration: Configuration, estimate: Estimate) -> tuple[Miss, ...]:
    """Worst first; empty where the intent is met. `max_gpus` counts the GPUs of all replicas."""
    found = [*_latency(intent, estimate), *_rate(intent, estimate), *_accuracy(intent, estimate)]
    num_gpus = (intent.replicas or 1) * configuration.num_gpus
    if intent.max_gpus is not None and num_gpus > intent.max_gpus:
        found.append(Miss(GPUS, intent.max_gpus, num_gpus, num_gpus / intent.max_gpus - 1))
    return tuple(sorted(found, key=lambda miss: -miss.excess))


def _latency(intent: Intent, estimate: Estimate) -> Iterator[Miss]:
    slo, predicted = intent.slo, estimate.prediction
    for constraint, wanted, value in (
        (TTFT, slo.ttft_ms, predicted.ttft_ms),
        (TPOT, slo.tpot_ms, predicted.tpot_ms),
        (E2E, slo.e2e_ms, predicted.e2e_ms),
    ):
        if wanted is not None and value > wanted:
            yield Miss(constraint, wanted, value, value / wanted - 1)


def _rate(intent: Intent, estimate: Estimate) -> Iterator[Miss]:
    if not estimate.sustained:
        wanted = intent.workload.request_rate_per_s
        capacity_per_s = estimate.capacity_per_s * (intent.replicas or 1)
        yield Miss(RATE, wanted, capacity_per_s, max(0.0, wanted / capacity_per_s - 1))


def _accuracy(intent: Intent, estimate: Estimate) -> Iterator[Miss]:
    floor, accuracy = intent.min_accuracy, estimate.prediction.accuracy
    if floor is None:
        return
    if accuracy is None:
        yield Miss(ACCURACY, floor, None, inf)
    elif accuracy < floor:
        yield Miss(ACCURACY, floor, accuracy, (floor - accuracy) / floor)
