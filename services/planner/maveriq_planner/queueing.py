"""What requests meet in replicas that a workload keeps busy. Pure: idle times and rates in, latencies out.

A replica serves all requests in hand at once, slower the more there are: a queue with processor sharing and rates
that depend on its length, before it a line for a free slot. docs/law.md derives each formula. Arrays run over
configurations.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from maveriq_planner.interpolation import at_points, between, between_all, place

Array = NDArray[np.float64]

SHORT_OF_CAPACITY = 1 - 1e-9  # rates at the capacity have no steady state


@dataclass(frozen=True, slots=True)
class Replicas:
    """Times for the workload's mean request."""

    prefill_ms: Array  # [C]
    """One prompt, through all stages."""
    stage_ms: Array  # [C]
    """One prompt, on the stage that it occupies longest."""
    grid: Array  # [G], ascending from 1
    """Batches; times are linear between them."""
    step_ms: Array  # [C, G]
    """Between two tokens of each of so many decoding requests."""
    stay_ms: Array  # [C, G]
    """Of one request, with so many in hand all the time: its own prefill and the others', and its steps."""
    slots: Array  # [C]
    patience: Array  # [C]
    """The chance to find no free slot is use^patience; see `patience`."""
    full_per_ms: Array  # [C]
    """Requests finished with every slot taken all the time."""
    output_tokens: int

    def take(self, chosen: NDArray[np.intp]) -> "Replicas":
        return Replicas(
            self.prefill_ms[chosen], self.stage_ms[chosen], self.grid, self.step_ms[chosen], self.stay_ms[chosen],
            self.slots[chosen], self.patience[chosen], self.full_per_ms[chosen], self.output_tokens,
        )  # fmt: skip

    def slower(self, prefill_factor: Array, step_factor: Array) -> "Replicas":
        """All times longer by so much. Factors: [C], and [C, G] of steps."""
        prefill_ms, stage_ms = self.prefill_ms * prefill_factor, self.stage_ms * prefill_factor
        step_ms = self.step_ms * step_factor
        return replicas_of(
            prefill_ms, stage_ms, self.grid, step_ms, self.slots, self.output_tokens, patience=self.patience
        )

    def capacity_per_ms(self, in_flight: Array | None = None) -> Array:
        """Requests finished with as many in hand all the time as there are slots and may be in flight."""
        if in_flight is None or (in_flight >= self.slots).all():
            return self.full_per_ms
        most = np.minimum(self.slots, in_flight)
        return most / between(self.grid, self.stay_ms, most)


def replicas_of(
    prefill_ms: Array,
    stage_ms: Array,
    grid: Array,
    step_ms: Array,
    slots: Array,
    output_tokens: int,
    *,
    patience: Array,
) -> Replicas:
    stay_ms = stays_ms(prefill_ms, stage_ms, grid, step_ms, output_tokens)
    full_per_ms = slots / between(grid, stay_ms, slots)
    return Replicas(prefill_ms, stage_ms, grid, step_ms, stay_ms, slots, patience, full_per_ms, output_tokens)


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
    sustained: NDArray[np.bool_]
    """Whether the rate stays below the capacity. If not the line grows without end, and is left out."""


def stays_ms(prefill_ms: Array, stage_ms: Array, grid: Array, step_ms: Array, output_tokens: int) -> Array:
    """With b always in hand one finishes every stay / b (Little): a pipeline reads other prompts beside one's own."""
    prompts = np.maximum(grid * stage_ms[:, None], prefill_ms[:, None])
    return prompts + (output_tokens - 1) * step_ms


def patience(grid: Array, stay_ms: Array, slots: NDArray[np.intp]) -> Array:
    """Exponent k of C = use^k, the chance that a request finds every slot taken. [R, S] for S numbers of slots.

    k = sum over n < s of (m(n+1) ... m(s)) / m(s)^(s-n), m(n) the rate at n in hand: exact in heavy traffic, and exact
    at any for one slot or constant m. Where m grows with n (a batch costs nothing) it is within 6 % of Sakasegawa's
    sqrt(2 (s + 1)) - 1 for M/M/s (1977).
    """
    numbers = np.arange(1.0, slots.max() + 1)
    log_rate = np.log(numbers) - np.log(between_all(grid, stay_ms, numbers))
    summed = np.concatenate([np.zeros((len(stay_ms), 1)), np.cumsum(log_rate, axis=1)], axis=1)
    found = np.empty((len(stay_ms), len(slots)))
    for i, s in enumerate(slots):
        most = int(s)
        missing = np.arange(float(most), 0.0, -1.0)
        logs: Array = summed[:, most, None] - summed[:, :most] - missing * log_rate[:, most - 1, None]
        found[:, i] = np.exp(np.minimum(logs, 50.0)).sum(axis=1)
    return found


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
    batch, slope_ms = _shared(r, rate, most)
    batch = np.where(sustained, batch, most)
    places = place(r.grid, batch)
    stay_ms, step_ms = at_points(places, r.stay_ms), at_points(places, r.step_ms)
    line, line_high = _line(r, rate, in_flight, capacity, sustained, quantile)
    turn, turn_high = _turn(r, rate, most, step_ms, sustained, quantile)
    steps = max(1, r.output_tokens - 1)
    spread = _spread(batch, np.where(sustained & (batch < most), rate * slope_ms, 1.0))
    high = np.minimum(batch + NormalDist().inv_cdf(quantile) * spread, most)
    high = np.maximum(high, 1.0)

    if r.output_tokens == 1:
        tpot, tpot_high = step_ms, between(r.grid, r.step_ms, high)
    else:
        tpot = (stay_ms - r.prefill_ms) / steps
        tpot_high = (between(r.grid, r.stay_ms, high) - r.prefill_ms) / steps
    # Prompts that come in between are few and long: Poisson, as many as others joined during the stay.
    joined = NormalDist().inv_cdf(quantile) * np.sqrt(np.maximum(batch - 1, 0.0)) * r.stage_ms / steps
    tpot_high = tpot + np.sqrt(np.maximum(tpot_high - tpot, 0.0) ** 2 + np.maximum(joined, 0.0) ** 2)
    ttft = r.prefill_ms + line + turn
    above = np.sqrt((line_high - line) ** 2 + (turn_high - turn) ** 2)
    ttft_high = ttft + above
    decode, decode_high = tpot * (r.output_tokens - 1), tpot_high * (r.output_tokens - 1)
    e2e = ttft + decode
    e2e_high = e2e + np.sqrt(above**2 + (decode_high - decode) ** 2)
    return Latencies(ttft, tpot, e2e, ttft_high, tpot_high, e2e_high, batch, sustained)


def _shared(r: Replicas, rate: Array, most: Array) -> tuple[Array, Array]:
    """b = 1 + rate x stay(b): an arrival finds what Little says of the mean, and is one more itself.

    Exact where stay is a + s b: requests in hand are then negative binomial. Returns b and s there.
    """
    if len(r.grid) == 1:
        return np.minimum(np.ones_like(rate), most), np.zeros_like(rate)
    lacking = rate[:, None] * r.stay_ms
    lacking += 1 - r.grid
    enough = lacking <= 0
    rows = np.arange(len(rate))
    j = enough.argmax(axis=1)
    j = np.maximum(np.where(enough[rows, j], j, len(r.grid) - 1), 1)
    before, after = lacking[rows, j - 1], lacking[rows, j]
    width = r.grid[j] - r.grid[j - 1]
    slope = (r.stay_ms[rows, j] - r.stay_ms[rows, j - 1]) / width
    found = enough[rows, j]
    share = np.where(found, before / np.where(found, before - after, 1.0), 1.0)
    batch = np.where(found, r.grid[j - 1] + share * width, most)
    return np.minimum(batch, most), np.maximum(slope, 0.0)


def _line(
    r: Replicas, rate: Array, in_flight: Array, capacity: Array, sustained: NDArray[np.bool_], quantile: float
) -> tuple[Array, Array]:
    """Wait for a free slot, mean and percentile: P(W > t) = C exp(-(capacity - rate) t).

    A bound on the requests in flight bounds the line: whoever may ask finds at most `in_flight - slots` before it.
    """
    use = rate / capacity
    chance = np.exp(r.patience * np.log(np.maximum(use, 1e-300)))
    left = capacity - rate
    longest = np.maximum(in_flight - r.slots, 0.0) / capacity
    mean = np.minimum(chance / left, longest)
    high = np.minimum(np.log(np.maximum(chance / (1 - quantile), 1.0)) / left, longest)
    mean, high = np.where(sustained, mean, 0.0), np.where(sustained, high, 0.0)
    return mean, np.maximum(mean, high)


def _turn(
    r: Replicas, rate: Array, most: Array, step_ms: Array, sustained: NDArray[np.bool_], quantile: float
) -> tuple[Array, Array]:
    """Wait of a request that has a slot: for the step under way, and for prompts that came just before (M/D/1)."""
    others = np.where(most > 1, 1 - np.exp(-rate * r.stay_ms[:, 0]), 0.0)
    others = np.where(sustained, others, np.where(most > 1, 1.0, 0.0))
    reading = np.where(sustained, rate * r.stage_ms, 0.0)
    prompts = others * reading * r.stage_ms / (2 * (1 - reading))
    prompts_high = r.stage_ms / (2 * (1 - reading)) * np.log(np.maximum(others * reading / (1 - quantile), 1.0))
    step = others * step_ms / 2
    step_high = step_ms * np.maximum(0.0, 1 - (1 - quantile) / np.maximum(others, 1e-12))
    mean = step + prompts
    above = np.sqrt(np.maximum(step_high - step, 0.0) ** 2 + np.maximum(prompts_high - prompts, 0.0) ** 2)
    return mean, mean + above


def _spread(batch: Array, elasticity: Array) -> Array:
    """Standard deviation of the mean number of requests that one decodes with, over its stay.

    Of the number itself (m / (1 - p), negative binomial), less what averages out: its correlation fades within
    1 / (1 - p) stays.
    """
    rest = np.maximum(1 - elasticity, 1e-9)
    variance = np.maximum(batch - 1, 0.0) / rest
    averaged = 2 / rest * (1 - (1 - np.exp(-rest)) / rest)
    return np.where(elasticity < 1, np.sqrt(variance * averaged), 0.0)
