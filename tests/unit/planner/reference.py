"""The planner's answers worked out one configuration at a time, in plain numbers: what its columns must agree with."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import ceil, exp, floor, inf, log, prod, sqrt
from statistics import NormalDist

import numpy as np

from maveriq.contracts import Intent, Objective, Slo, Workload
from maveriq_planner.estimate import Estimator
from maveriq_planner.space import Space
from maveriq_planner.workloads import context_tokens

GIB = 2**30
Key = tuple[str, str, int, int, int]
"""GPU type, variant, TP, PP, slots."""


@dataclass(frozen=True)
class Stay:
    ttft_ms: float
    tpot_ms: float
    e2e_ms: float
    ttft_high_ms: float
    tpot_high_ms: float
    e2e_high_ms: float
    sustained: bool


@dataclass(frozen=True)
class One:
    """One configuration."""

    key: Key
    prefill_ms: float
    stage_ms: float
    steps_ms: tuple[float, ...]
    """At a batch of 1, 2, ..."""
    output_tokens: int
    memory_bytes: float
    accuracy: float | None
    price: float | None

    @property
    def num_gpus(self) -> int:
        return self.key[2] * self.key[3]

    def step_ms(self, batch: float) -> float:
        low = min(floor(batch), len(self.steps_ms))
        high = min(low + 1, len(self.steps_ms))
        return self.steps_ms[low - 1] + (batch - low) * (self.steps_ms[high - 1] - self.steps_ms[low - 1])

    def stay_ms(self, batch: float) -> float:
        """Linear between whole batches."""
        low = min(floor(batch), len(self.steps_ms))
        high = min(low + 1, len(self.steps_ms))
        at_low, at_high = (
            max(b * self.stage_ms, self.prefill_ms) + (self.output_tokens - 1) * self.steps_ms[b - 1]
            for b in (low, high)
        )
        return at_low + (batch - low) * (at_high - at_low)

    def capacity_per_ms(self, in_flight: float = inf) -> float:
        most = min(self.key[4], in_flight)
        return most / self.stay_ms(most)

    @cache  # noqa: B019
    def patience(self) -> float:
        slots = self.key[4]
        rates = [n / self.stay_ms(n) for n in range(1, slots + 1)]
        return sum(prod(rates[n:]) / rates[-1] ** (slots - n) for n in range(slots))

    def settle(self, rate_per_ms: float, in_flight: float, percentile: float) -> Stay:
        q, slots = percentile / 100, self.key[4]
        z, most, capacity = NormalDist().inv_cdf(q), min(slots, in_flight), self.capacity_per_ms(in_flight)
        sustained = rate_per_ms < capacity
        rate = min(rate_per_ms, capacity * (1 - 1e-9))
        batch, slope = self._batch(rate, most) if sustained else (most, 0.0)
        line = line_high = 0.0
        if sustained:
            chance = (rate / capacity) ** self.patience()
            longest = max(0.0, in_flight - slots) / capacity
            line = min(chance / (capacity - rate), longest)
            line_high = max(line, min(max(0.0, log(max(chance / (1 - q), 1e-300))) / (capacity - rate), longest))
        others = (1 - exp(-rate * self.stay_ms(1)) if sustained else 1.0) if most > 1 else 0.0
        reading = rate * self.stage_ms if sustained else 0.0
        turn, above = self._turn(others, reading, self.step_ms(batch), q)
        tpot, tpot_high = self._tokens(batch, most, rate * slope if sustained and batch < most else 1.0, z)
        ttft = self.prefill_ms + line + turn
        ttft_above = sqrt((line_high - line) ** 2 + above**2)
        steps = self.output_tokens - 1
        e2e = ttft + steps * tpot
        e2e_high = e2e + sqrt(ttft_above**2 + (steps * (tpot_high - tpot)) ** 2)
        return Stay(ttft, tpot, e2e, ttft + ttft_above, tpot_high, e2e_high, sustained)

    def _batch(self, rate: float, most: float) -> tuple[float, float]:
        for b in range(2, len(self.steps_ms) + 1):
            before, after = 1 + rate * self.stay_ms(b - 1) - (b - 1), 1 + rate * self.stay_ms(b) - b
            slope = self.stay_ms(b) - self.stay_ms(b - 1)
            if after <= 0:
                return min(most, b - 1 + before / (before - after)), max(0.0, slope)
        return most, 0.0

    def _turn(self, others: float, reading: float, step_ms: float, q: float) -> tuple[float, float]:
        each = self.stage_ms / (2 * (1 - reading))
        prompts, step = others * reading * each, others * step_ms / 2
        prompts_high = each * max(0.0, log(max(others * reading / (1 - q), 1e-300)))
        step_high = step_ms * max(0.0, 1 - (1 - q) / max(others, 1e-12))
        return prompts + step, sqrt(max(0.0, prompts_high - prompts) ** 2 + max(0.0, step_high - step) ** 2)

    def _tokens(self, batch: float, most: float, elasticity: float, z: float) -> tuple[float, float]:
        spread = 0.0
        if elasticity < 1:
            rest = 1 - elasticity
            spread = sqrt((batch - 1) / rest * 2 / rest * (1 - (1 - exp(-rest)) / rest))
        high = max(1.0, min(batch + z * spread, most))
        steps = max(1, self.output_tokens - 1)
        one = self.output_tokens == 1
        tpot, at_high = (self.step_ms(b) if one else (self.stay_ms(b) - self.prefill_ms) / steps for b in (batch, high))
        joined = max(0.0, z * sqrt(max(batch - 1, 0.0)) * self.stage_ms / steps)
        return tpot, tpot + sqrt(max(0.0, at_high - tpot) ** 2 + joined**2)


def every(wanted: Intent, space: Space) -> Iterator[One]:
    """The whole space, spelt out; for estimators that speak for at most 8 requests."""
    for estimator in space.estimators:
        kind = estimator.kind
        if wanted.gpu_types is not None and kind.gpu_type not in wanted.gpu_types:
            continue
        if wanted.precisions is not None and kind.precision not in wanted.precisions:
            continue
        price = space.prices.get(kind.gpu_type)
        if wanted.objective is Objective.MIN_PRICE and price is None:
            continue
        for tp in estimator.tp_degrees:
            for pp in range(1, min(estimator.max_pp, space.max_pp, space.facts.num_layers) + 1):
                slots = 1
                while slots <= estimator.max_batch:
                    yield _one(estimator, space, wanted.workload, tp, pp, slots, price)
                    slots = slots * 2 if slots * 2 <= estimator.max_batch or slots == estimator.max_batch else 8


def _one(
    estimator: Estimator, space: Space, workload: Workload, tp: int, pp: int, slots: int, price: float | None
) -> One:
    tokens = context_tokens(workload, space.facts)
    assert tokens is not None
    times = estimator.times(tp, np.array([float(pp)]), np.arange(1.0, estimator.max_batch + 1), workload)
    f = estimator.footprint(tp, np.array([float(pp)]), np.array([float(slots)]), tokens)
    stage = float(f.runtime_bytes[0, 0])
    total = space.facts.num_layers * float(f.layer_bytes[0]) + pp * stage + f.first_bytes + f.last_bytes
    variant = estimator.kind.variant
    return One(
        (estimator.kind.gpu_type, variant.label, tp, pp, slots), float(times.prefill_ms[0]),
        float(times.prefill_stage_ms[0]), tuple(map(float, times.step_ms[0])), workload.output_tokens,
        tp * (total - (f.tied_saving_bytes if pp == 1 else 0)), variant.accuracy,
        None if price is None else price * tp * pp,
    )  # fmt: skip


def holds(slo: Slo, stay: Stay) -> bool:
    figures = (
        (stay.ttft_ms, stay.tpot_ms, stay.e2e_ms)
        if slo.percentile is None
        else (stay.ttft_high_ms, stay.tpot_high_ms, stay.e2e_high_ms)
    )
    limits = (slo.ttft_ms, slo.tpot_ms, slo.e2e_ms)
    return stay.sustained and all(v <= w for v, w in zip(figures, limits, strict=True) if w is not None)


def load(one: One, wanted: Intent, replicas: int) -> Stay:
    work = wanted.workload
    in_flight = inf if work.concurrency is None else ceil(work.concurrency / replicas)
    return one.settle(work.request_rate_per_s / 1e3 / replicas, in_flight, wanted.slo.percentile or 95.0)


def replicas(one: One, wanted: Intent) -> int | None:
    """The fewest with which rate and SLO hold; None: not even 1000 do."""
    if wanted.replicas is not None:
        return wanted.replicas
    if not holds(wanted.slo, load(one, wanted, 1000)):
        return None
    return next(number for number in range(1, 1001) if holds(wanted.slo, load(one, wanted, number)))


def meets(one: One, wanted: Intent, number: int) -> bool:
    floor_ = wanted.min_accuracy
    accurate = floor_ is None or (wanted.allow_unmeasured_accuracy if one.accuracy is None else one.accuracy >= floor_)
    limit = wanted.max_price_per_hour
    priced = limit is None or (one.price is not None and one.price * number <= limit * (1 + 1e-9))
    few = wanted.max_gpus is None or one.num_gpus * number <= wanted.max_gpus
    return accurate and priced and few and holds(wanted.slo, load(one, wanted, number))


def scored(one: One, wanted: Intent, number: int) -> float:
    e2e_s = load(one, wanted, number).e2e_ms / 1e3
    gib = one.memory_bytes / GIB * number
    return {
        Objective.MIN_LATENCY: e2e_s * 1e3,
        Objective.MIN_COST: e2e_s * gib,
        Objective.MIN_MEMORY: gib,
        Objective.MIN_GPU_COST: e2e_s * one.num_gpus * number,
        Objective.MIN_PRICE: (one.price or 0.0) * number,
    }[wanted.objective]
