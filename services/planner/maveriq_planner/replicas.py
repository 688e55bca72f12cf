"""How many replicas a load needs, and how much load a replica bears. Pure: intent and columns in, numbers out."""

import numpy as np

from maveriq.contracts import Intent, Slo
from maveriq_planner.arrays import Array, Flags
from maveriq_planner.columns import Columns
from maveriq_planner.constraints import SHOWN_PERCENTILE, holds
from maveriq_planner.queueing import SHORT_OF_CAPACITY, Latencies, Replicas, line_longer, settle
from maveriq_planner.workloads import share

MOST = 1000  # replicas of one deployment: what an intent may ask for
_IDLE = 2.0**-20  # of the capacity
_LOOKS = 16
_AT_ONCE = 2048  # rows: fewer take no less time
_FINER = 3  # looks at a time once the range is narrow: fewest in all
_CLOSE = 1.0005


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
    low = _enough_for_line(intent, columns)
    found = np.zeros(len(columns))
    able = np.ones(len(columns), dtype=np.bool_)
    spans = _spans(intent.workload.concurrency, int(columns.slots.max()))
    if len(spans) > 1:
        able = does(intent, columns.replicas, np.full(len(columns), float(MOST)))
    for first, last in spans:
        left = np.flatnonzero((found == 0) & (low <= last) & able)
        if len(left):
            found[left] = _fewest(intent, columns.replicas.take(left), np.maximum(low[left], first), last)
    return found


def _spans(concurrency: int | None, slots: int) -> list[tuple[int, int]]:
    """Ranges of replicas within which more of them never do worse, ascending.

    As many in flight as `concurrency` are shared out whole: 9 of them give 4 replicas 3 each, and 5 replicas 2 each,
    which may bring less. Where each gets more than it has slots that makes no difference.
    """
    if concurrency is None:
        return [(1, MOST)]
    spans: list[tuple[int, int]] = []
    first = 1
    while first <= MOST:
        each = min(-(-concurrency // first), slots)
        last = MOST if each == 1 else min(-(-concurrency // (each - 1)) - 1, MOST)
        spans.append((first, last))
        first = last + 1
    return spans


def _fewest(intent: Intent, each: Replicas, low: Array, most: int) -> Array:
    """From `low` to `most`, where more never do worse; few rows are looked at in many places at once. 0: none does."""
    found = np.where(does(intent, each, low), low, 0.0)
    left = np.flatnonzero((found == 0) & (low < most))
    left = left[does(intent, each.take(left), np.full(len(left), float(most)))]
    low, high = low[left], np.full(len(left), float(most))
    while len(left):
        looks = min(max(1, _AT_ONCE // len(left)), _LOOKS)
        shares = np.arange(1.0, looks + 1) / (looks + 1)
        numbers = np.ceil(low[:, None] * (high / low)[:, None] ** shares)
        numbers = np.minimum(np.maximum(numbers, low[:, None] + 1), high[:, None])
        many = each.take(np.repeat(left, looks))
        enough = does(intent, many, numbers.ravel()).reshape(numbers.shape)
        failed = np.cumprod(~enough, axis=1).sum(axis=1)  # how many in a row do not
        points = np.concatenate([low[:, None], numbers, high[:, None]], axis=1)
        rows = np.arange(len(left))
        low, high = points[rows, failed], points[rows, failed + 1]
        done = high - low <= 1
        found[left[done]] = high[done]
        left, low, high = left[~done], low[~done], high[~done]
    return found


def _enough_for_line(intent: Intent, columns: Columns) -> Array:
    """Fewest replicas that could do: the first token waits for the prompt and for the line at least. At most MOST.

    A hundredth of the work of settling, and mostly near the answer. A bound on the requests in flight bounds the line.
    """
    r, slo = columns.replicas, intent.slo
    high = np.full(len(columns), float(MOST))
    least = enough_for_rate(intent, columns)
    if intent.workload.concurrency is not None or (slo.ttft_ms is None and slo.e2e_ms is None):
        return least
    rest_ms = r.curves.stay_ms.min(axis=1)[r.row]
    wait_ms = np.minimum((slo.ttft_ms or np.inf) - r.prefill_ms, (slo.e2e_ms or np.inf) - rest_ms)
    rate_per_ms, low = intent.workload.request_rate_per_s / 1e3, least - 1
    while (high - low > 1).any():
        middle = np.floor((low + high + 1) / 2)
        long = line_longer(r, rate_per_ms / middle, wait_ms, slo.percentile)
        low, high = np.where(long, middle, low), np.where(long, high, middle)
    return high


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
    """Between a rate that meets the SLO and one that may: narrowed by looking at several rates at once.

    First at even shares of the capacity: whatever lies above one that does not is not trusted.
    """
    looks, rates = _LOOKS, high[:, None] * (np.arange(1.0, _LOOKS + 1) / _LOOKS)
    while True:
        many = replicas.take(np.repeat(np.arange(len(low)), looks))
        found = settle(many, rates.ravel(), np.repeat(in_flight, looks), percentile_of(slo))
        meets = holds(slo, found).reshape(rates.shape)
        reached = np.cumprod(meets, axis=1).sum(axis=1)  # how many rates in a row do
        points = np.concatenate([low[:, None], rates, high[:, None]], axis=1)
        rows = np.arange(len(low))
        low, high = points[rows, reached], points[rows, np.minimum(reached + 1, looks + 1)]
        if (high <= low * _CLOSE).all():
            return low
        looks = _FINER
        rates = low[:, None] * (high / low)[:, None] ** (np.arange(1.0, looks + 1) / (looks + 1))


def does(intent: Intent, each: Replicas, replicas: Array) -> Flags:
    """Whether so many sustain the rate within the SLO."""
    return holds(intent.slo, latencies(intent, each, replicas))
