"""What requests meet in replicas that a workload keeps busy. Pure: idle times and rates in, latencies out.

A replica serves all requests in hand at once, slower the more there are: a queue with processor sharing and rates
that depend on its length, before it a line for a free slot. docs/law.md derives each formula. Arrays run over
configurations; those that differ in their slots only share a row of curves.
"""

from dataclasses import dataclass
from math import log
from statistics import NormalDist

import numpy as np

from maveriq_planner.arrays import Array, Flags, Indices
from maveriq_planner.curves import Curves, curves_of
from maveriq_planner.interpolation import Lines

SHORT_OF_CAPACITY = 1 - 1e-9  # rates at the capacity have no steady state
_FLAT = 1e-12  # a rate that takes as much more stay as it brings: no batch is the balance


@dataclass(frozen=True, slots=True)
class Replicas:
    """C configurations; times as in Curves."""

    curves: Curves
    row: Indices  # [C], of curves
    prefill_ms: Array  # [C]
    stage_ms: Array  # [C]
    alone_ms: Array  # [C]
    """Stay of a request that has the replica to itself."""
    slots: Array  # [C]
    patience: Array  # [C]
    """The chance to find no free slot is use^patience; see `curves.patience`."""
    full_per_ms: Array  # [C]
    """Requests finished with every slot taken all the time."""

    def take(self, chosen: Indices) -> "Replicas":
        return Replicas(
            self.curves, self.row[chosen], self.prefill_ms[chosen], self.stage_ms[chosen], self.alone_ms[chosen],
            self.slots[chosen], self.patience[chosen], self.full_per_ms[chosen],
        )  # fmt: skip

    def slower(self, prefill_factor: Array, step_factor: Array) -> "Replicas":
        """All times longer by so much. Factors: [C], and [C, G] of steps."""
        slow = curves_of(
            self.prefill_ms * prefill_factor, self.stage_ms * prefill_factor, self.curves.grid.points,
            self.curves.step_ms[self.row] * step_factor, self.curves.output_tokens,
        )  # fmt: skip
        return replicas_of(slow, np.arange(len(self.row)), self.slots, self.patience)

    def capacity_per_ms(self, in_flight: Array | None = None) -> Array:
        """Requests finished with as many in hand all the time as there are slots and may be in flight."""
        if in_flight is None or (in_flight >= self.slots).all():
            return self.full_per_ms
        most = np.minimum(self.slots, in_flight)
        return most / self.curves.stay.at(self.cells(most), most)

    def cells(self, batch: Array) -> Indices:
        """Where on their curves batches lie."""
        found = self.row * self.curves.grid.cells
        found += self.curves.grid.cell.take(batch.astype(np.intp))
        return found


def replicas_of(curves: Curves, row: Indices, slots: Array, patience: Array) -> Replicas:
    cells = row * curves.grid.cells + curves.grid.cell[slots.astype(np.intp)]
    full_per_ms = slots / curves.stay.at(cells, slots)
    return Replicas(
        curves, row, curves.prefill_ms[row], curves.stage_ms[row], curves.stay_ms[row, 0], slots, patience, full_per_ms
    )


@dataclass(frozen=True, slots=True)
class Latencies:
    """[C] each; those of the percentile beside the means."""

    ttft_ms: Array
    tpot_ms: Array
    e2e_ms: Array
    ttft_percentile_ms: Array
    tpot_percentile_ms: Array
    e2e_percentile_ms: Array
    batch: Array
    """Requests that a request decodes with, itself included, on average."""
    sustained: Flags
    """Whether the rate stays below the capacity. If not the line grows without end, and is left out."""


def settle(r: Replicas, rate_per_ms: Array, in_flight: Array, percentile: float) -> Latencies:
    """Latencies under Poisson arrivals.

    Args:
        rate_per_ms: [C], of one replica.
        in_flight: [C], most requests in one replica at once, those in line included; inf: no bound.
    """
    quantile = percentile / 100
    most = np.minimum(r.slots, in_flight)
    capacity = r.capacity_per_ms(in_flight)
    sustained = rate_per_ms < capacity
    rate = np.minimum(rate_per_ms, capacity * SHORT_OF_CAPACITY)
    batch, elasticity = _shared(r, rate, most, sustained)
    cells = r.cells(batch)
    step_ms = r.curves.step.at(cells, batch)
    tokens = r.curves.output_tokens
    line, line_above = _line(r, rate, in_flight, capacity, sustained, quantile)
    turn, turn_above = _turn(r, rate, most, step_ms, sustained, quantile)
    ttft = r.prefill_ms + line + turn
    above = np.sqrt(line_above**2 + turn_above**2)
    if tokens == 1:
        tpot, by_token = step_ms, r.curves.step
    else:
        tpot, by_token = (r.curves.stay.at(cells, batch) - r.prefill_ms) / (tokens - 1), r.curves.stay
    tpot_above = _tokens_above(r, by_token, tpot, batch, most, elasticity, quantile)
    e2e = ttft + tpot * (tokens - 1)
    return Latencies(
        ttft, tpot, e2e, ttft + above, tpot + tpot_above, e2e + np.sqrt(above**2 + (tpot_above * (tokens - 1)) ** 2),
        batch, sustained,
    )  # fmt: skip


def _shared(r: Replicas, rate: Array, most: Array, sustained: Flags) -> tuple[Array, Array]:
    """b = 1 + rate x stay(b): an arrival finds what Little says of the mean, and is one more itself.

    Exact where stay is a + s b: requests in hand are then negative binomial. Returns b and rate x s there; 1 where
    the slots or what may be in flight hold b down.
    """
    c = r.curves
    base = r.row * c.width
    reached = np.zeros(len(rate), dtype=np.intp)  # points that the rate is past, by halving
    half = c.width // 2
    while half:
        reached += half * (c.reach_per_ms.take(base + reached + (half - 1)) < rate)
        half //= 2
    cells = r.row * c.grid.cells
    cells += np.minimum(np.maximum(reached - 1, 0), c.grid.cells - 1)
    elasticity = rate * c.stay.slope.take(cells)
    rest = 1 - elasticity
    free = sustained & (reached <= c.grid.cells) & (rest > _FLAT)
    batch = np.divide(1 + rate * c.stay.intercept.take(cells), rest, out=most.copy(), where=free)
    batch = np.minimum(np.maximum(batch, 1.0), most)
    free &= batch < most
    return batch, np.where(free, np.maximum(elasticity, 0.0), 1.0)


def _line(
    r: Replicas, rate: Array, in_flight: Array, capacity: Array, sustained: Flags, quantile: float
) -> tuple[Array, Array]:
    """Wait for a free slot, its mean and how far above it the percentile is: P(W > t) = C exp(-(capacity - rate) t).

    A bound on the requests in flight bounds the line: whoever may ask finds at most `in_flight - slots` before it.
    """
    log_chance = r.patience * np.log(np.maximum(rate / capacity, 1e-300))
    left = capacity - rate
    longest = np.maximum(in_flight - r.slots, 0.0) / capacity
    mean = np.minimum(np.exp(log_chance) / left, longest)
    high = np.minimum(np.maximum(log_chance - log(1 - quantile), 0.0) / left, longest)
    return mean * sustained, np.maximum(high - mean, 0.0) * sustained


def line_longer(r: Replicas, rate_per_ms: Array, wait_ms: Array, percentile: float | None) -> Flags:
    """Whether the line for a free slot is longer, without a bound on the requests in flight. None: on average."""
    log_chance = r.patience * np.log(np.maximum(rate_per_ms / r.full_per_ms, 1e-300))
    most = (r.full_per_ms - rate_per_ms) * wait_ms
    if percentile is None:
        return log_chance > np.log(np.maximum(most, 1e-300))
    return log_chance - log(1 - percentile / 100) > most


def _turn(
    r: Replicas, rate: Array, most: Array, step_ms: Array, sustained: Flags, quantile: float
) -> tuple[Array, Array]:
    """Wait of a request that has a slot: for the step under way, and for prompts that came just before (M/D/1).

    Its mean and how far above it the percentile is.
    """
    others = np.where(sustained, -np.expm1(-rate * r.alone_ms), 1.0) * (most > 1)
    reading = rate * r.stage_ms * sustained
    each = r.stage_ms / (2 * (1 - reading))
    delayed = others * reading
    prompts = delayed * each
    prompts_high = each * np.log(np.maximum(delayed / (1 - quantile), 1.0))
    step = others * step_ms / 2
    step_high = step_ms * np.maximum(0.0, 1 - (1 - quantile) / np.maximum(others, 1e-12))
    above = np.sqrt(np.maximum(step_high - step, 0.0) ** 2 + np.maximum(prompts_high - prompts, 0.0) ** 2)
    return step + prompts, above


def _tokens_above(
    r: Replicas, by_token: Lines, tpot: Array, batch: Array, most: Array, elasticity: Array, quantile: float
) -> Array:
    """How far above its mean the percentile of the time per token is: more to decode with, and more prompts between.

    These are few and long: Poisson, as many as others joined during the stay.
    """
    z, tokens = NormalDist().inv_cdf(quantile), r.curves.output_tokens
    steps = max(1, tokens - 1)
    high = np.minimum(np.maximum(batch + z * _spread(batch, elasticity), 1.0), most)
    at_high = by_token.at(r.cells(high), high)
    if tokens > 1:
        at_high -= r.prefill_ms
    at_high /= steps
    joined = z / steps * np.sqrt(np.maximum(batch - 1, 0.0)) * r.stage_ms
    above: Array = np.sqrt(np.maximum(at_high - tpot, 0.0) ** 2 + np.maximum(joined, 0.0) ** 2)
    return above


def _spread(batch: Array, elasticity: Array) -> Array:
    """Standard deviation of the mean number of requests that one decodes with, over its stay.

    Of the number itself (m / (1 - p), negative binomial), less what averages out: its correlation fades within
    1 / (1 - p) stays. None where p is 1: the number stays at its bound.
    """
    rest = np.maximum(1 - elasticity, 1e-9)
    averaged = 2 / rest * (1 + np.expm1(-rest) / rest)
    return np.sqrt(np.maximum(batch - 1, 0.0) / rest * averaged) * (elasticity < 1)
