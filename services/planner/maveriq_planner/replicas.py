"""How many replicas a load needs, and how much load a replica bears. Pure: intent and columns in, numbers out."""

import numpy as np

from maveriq.contracts import Intent, Slo
from maveriq_planner.columns import Columns
from maveriq_planner.constraints import SHOWN_PERCENTILE, Flags, holds, limited
from maveriq_planner.estimate import Array
from maveriq_planner.queueing import SHORT_OF_CAPACITY, Latencies, Replicas, settle
from maveriq_planner.workloads import share

MOST = 1000  # replicas of one deployment: what an intent may ask for
_HALVINGS = 20  # of the capacity: a millionth


def percentile_of(slo: Slo) -> float:
    """The one that limits apply to, or the one shown."""
    return SHOWN_PERCENTILE if slo.percentile is None else slo.percentile


def latencies(intent: Intent, columns: Columns, replicas: Array) -> Latencies:
    rate_per_ms, in_flight = share(intent.workload, replicas)
    return settle(columns.replicas, rate_per_ms, in_flight, percentile_of(intent.slo))


def enough_for_rate(intent: Intent, columns: Columns) -> Array:
    """Fewest replicas that finish requests faster than they come, were there enough of them in flight; at most MOST."""
    capacity = columns.replicas.capacity_per_ms(columns.replicas.slots)
    fewest = np.floor(intent.workload.request_rate_per_s / 1e3 / capacity) + 1
    limited_: Array = np.minimum(fewest, float(MOST))
    return limited_


def smallest(intent: Intent, columns: Columns) -> Array:
    """Fewest replicas that sustain the rate within the SLO. 0: not even MOST do."""
    low = enough_for_rate(intent, columns)
    found = np.where(_do(intent, columns, low), low, 0.0)
    left = np.flatnonzero(found == 0)
    left = left[_do(intent, columns.take(left), np.full(len(left), float(MOST)))] if len(left) else left
    low, high = low[left], np.full(len(left), float(MOST))
    chosen = columns.take(left)
    while len(left) and (open_ := high - low > 1).any():
        middle = np.where(open_, np.clip(np.floor(np.sqrt(low * high)), low + 1, high - 1), high)
        does = _do(intent, chosen, middle)
        high, low = np.where(does, middle, high), np.where(does, low, middle)
        low = np.minimum(low, high - 1)
    found[left] = high
    return found


def most_allowed(intent: Intent, columns: Columns) -> Array:
    """Replicas that the budgets of GPUs and money hold, at most MOST; 0 where not one."""
    most = np.full(len(columns), float(MOST))
    if intent.max_gpus is not None:
        most = np.minimum(most, np.floor(intent.max_gpus / columns.num_gpus))
    if intent.max_price_per_hour is not None:
        affordable = np.floor(intent.max_price_per_hour / columns.price_per_hour * (1 + 1e-9))
        most = np.fmin(most, affordable)
    return most


def highest_rate_per_ms(slo: Slo, replicas: Replicas, in_flight: Array) -> Array:
    """At which one replica still meets the SLO; NaN where it does not even when idle."""
    capacity = replicas.capacity_per_ms(np.minimum(replicas.slots, in_flight)) * SHORT_OF_CAPACITY
    percentile = percentile_of(slo)
    full = settle(replicas, capacity, in_flight, percentile)
    if not any(True for _ in limited(slo, full)):
        return capacity
    low = capacity * 2.0**-_HALVINGS
    idle = holds(slo, settle(replicas, low, in_flight, percentile))
    high = np.where(holds(slo, full), low, capacity)
    low = np.where(holds(slo, full), capacity, low)
    while (high > low * 1.0005).any():
        middle = np.where(high > 4 * low, high / 2, np.sqrt(low * high))
        middle = np.where(high > low, middle, low)
        meets = holds(slo, settle(replicas, middle, in_flight, percentile))
        low, high = np.where(meets, np.maximum(middle, low), low), np.where(meets, high, middle)
        high = np.where(idle, high, low)
    return np.where(idle, low, np.nan)


def _do(intent: Intent, columns: Columns, replicas: Array) -> Flags:
    return holds(intent.slo, latencies(intent, columns, replicas))
