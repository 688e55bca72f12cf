"""How many replicas a load needs, and how much load a replica bears. Pure: intent and columns in, numbers out."""

import numpy as np

from maveriq.contracts import Intent, Slo
from maveriq_planner.columns import Columns
from maveriq_planner.constraints import SHOWN_PERCENTILE, Flags, holds
from maveriq_planner.estimate import Array
from maveriq_planner.queueing import SHORT_OF_CAPACITY, Latencies, Replicas, settle
from maveriq_planner.workloads import share

MOST = 1000  # replicas of one deployment: what an intent may ask for
_IDLE = 2.0**-20  # of the capacity
_LOOKS = 16


def percentile_of(slo: Slo) -> float:
    """The one that limits apply to, or the one shown."""
    return SHOWN_PERCENTILE if slo.percentile is None else slo.percentile


def latencies(intent: Intent, each: Replicas, replicas: Array) -> Latencies:
    """Of `each` where there are so many of it."""
    rate_per_ms, in_flight = share(intent.workload, replicas)
    return settle(each, rate_per_ms, in_flight, percentile_of(intent.slo))


def enough_for_rate(intent: Intent, columns: Columns) -> Array:
    """Fewest replicas that finish requests faster than they come, were there enough of them in flight; at most MOST."""
    capacity = columns.replicas.full_per_ms
    fewest = np.floor(intent.workload.request_rate_per_s / 1e3 / capacity) + 1
    limited_: Array = np.minimum(fewest, float(MOST))
    return limited_


def smallest(intent: Intent, columns: Columns) -> Array:
    """Fewest replicas that sustain the rate within the SLO. 0: not even MOST do."""
    low = enough_for_rate(intent, columns)
    found = np.where(_do(intent, columns.replicas, low), low, 0.0)
    left = np.flatnonzero(found == 0)
    left = left[_do(intent, columns.replicas.take(left), np.full(len(left), float(MOST)))]
    low, high = low[left], np.full(len(left), float(MOST))
    while len(left):
        done = high - low <= 1
        found[left[done]] = high[done]
        left, low, high = left[~done], low[~done], high[~done]
        middle = np.minimum(2 * low, np.floor((low + high) / 2))  # not many more than the rate needs, mostly
        does = _do(intent, columns.replicas.take(left), middle)
        low, high = np.where(does, low, middle), np.where(does, middle, high)
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
    capacity = replicas.capacity_per_ms(in_flight) * SHORT_OF_CAPACITY
    if slo.ttft_ms is None and slo.tpot_ms is None and slo.e2e_ms is None:
        return capacity
    idle = capacity * _IDLE
    meets = holds(slo, settle(replicas, idle, in_flight, percentile_of(slo)))
    found = np.full(len(capacity), np.nan)
    left = np.flatnonzero(meets)
    if len(left):
        found[left] = _highest(slo, replicas.take(left), in_flight[left], idle[left], capacity[left])
    return found


def _highest(slo: Slo, replicas: Replicas, in_flight: Array, low: Array, high: Array) -> Array:
    """Between a rate that meets the SLO and one that may: narrowed by looking at _LOOKS rates at once."""
    count = len(low)
    many = replicas.take(np.repeat(np.arange(count), _LOOKS))
    bound = np.repeat(in_flight, _LOOKS)
    first = True
    while first or (high > low * 1.0005).any():
        ratio = (high / low)[:, None] ** (np.arange(1.0, _LOOKS + 1) / _LOOKS)
        rates = low[:, None] * ratio
        meets = holds(slo, settle(many, rates.ravel(), bound, percentile_of(slo))).reshape(count, _LOOKS)
        reached = np.cumprod(meets, axis=1).sum(axis=1)  # how many rates in a row do
        points = np.concatenate([low[:, None], rates, rates[:, -1:]], axis=1)
        rows = np.arange(count)
        low, high = points[rows, reached], points[rows, reached + 1]
        first = False
    return low


def _do(intent: Intent, each: Replicas, replicas: Array) -> Flags:
    return holds(intent.slo, latencies(intent, each, replicas))
