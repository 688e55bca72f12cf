"""Pipelines of one family of precisions over fragments, as engines run them. Pure: fragments in, pipelines out.

One prompt is read at a time, and steps are taken in one micro-batch a stage: as the planner predicts any pipeline.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf

import numpy as np

from maveriq.contracts import Precision, Workload
from maveriq_planner.arrays import Array
from maveriq_planner.estimate import Footprint
from maveriq_planner.estimators.mixed import Family
from maveriq_planner.quantizing.fragments import Fragment, Wish, orders_of
from maveriq_planner.quantizing.layer_law import Parts
from maveriq_planner.quantizing.pipeline import Pipeline, Stage, Weights

_ORDERS = 2  # of as many GPUs
_ORDERS_SEEN = 256
_GROUPS = 48  # of layers: to search more takes longer than it is worth
_LEAST_GROUPS = 8
_SPARE = 1 - 1e-8  # of a GPU: sums of bytes are rounded


@dataclass(frozen=True, slots=True)
class Layers:
    """What is to be split."""

    precisions: tuple[Precision, ...]
    sensitivity: Array  # [L, B]
    each: int
    """So many neighbours share a precision."""


def layers_of(precisions: tuple[Precision, ...], sensitivity: Array) -> Layers:
    """Those of a deep model in equal groups, where its number of layers has a divisor."""
    num_layers = len(sensitivity)
    each = next(n for n in range(1, num_layers + 1) if num_layers % n == 0 and num_layers / n <= _GROUPS)
    each = each if num_layers / each >= _LEAST_GROUPS else 1
    summed: Array = sensitivity.reshape(-1, each, sensitivity.shape[1]).sum(axis=1)
    return Layers(precisions, summed, each)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Of a GPU type and precision, for so many stages and slots."""

    prefill: Parts
    decode: Parts
    room: Footprint


@dataclass(frozen=True, slots=True)
class Stages:
    """Remembers what laws say."""

    family: Family
    layers: Layers
    workload: Workload
    context_tokens: int
    known: dict[tuple[str, Precision, int, int], Numbers] = field(
        default_factory=dict[tuple[str, Precision, int, int], Numbers]
    )

    def pipelines(self, fragments: Sequence[Fragment], num_stages: int, slots: int) -> list[Pipeline]:
        """In which the layers fit, those of the roomiest fragments."""
        wish = Wish(self.workload, slots, max_stages=num_stages, min_stages=num_stages)
        orders = sorted(islice(orders_of(fragments, wish), _ORDERS_SEEN), key=lambda o: -sum(f.free_bytes for f in o))
        found = [self._pipeline(order, slots) for order in orders[:_ORDERS]]
        return [pipeline for pipeline in found if fits(pipeline)]

    def _pipeline(self, order: Sequence[Fragment], slots: int) -> Pipeline:
        stages = tuple(self._stage(order, place, slots) for place in range(len(order)))
        groups, steps = min(len(order), slots), self.workload.output_tokens - 1
        weights = Weights(slots - 1, 0.0, decode_sum=0.0, steps=steps, groups=groups)
        return Pipeline(stages, weights, self.layers.sensitivity, 1, -(-slots // groups))

    def _stage(self, order: Sequence[Fragment], place: int, slots: int) -> Stage:
        fragment, last = order[place], place == len(order) - 1
        numbers = {
            precision: self._numbers(fragment.gpu_type, precision, len(order), slots)
            for precision in (*self.layers.precisions, self.family.full.precision)
            if (fragment.gpu_type, precision) in self.family.laws
        }
        held = _held(numbers[self.family.full.precision].room, numbers, first=place == 0, last=last)
        each = self.layers.each
        most = max(float(number.room.layer_bytes[0]) for number in numbers.values())

        def of(values: Mapping[Precision, float], other: float) -> tuple[float, ...]:
            return tuple(values.get(precision, other) * each for precision in self.layers.precisions)

        return Stage(
            gpu=fragment.name,
            capacity_bytes=(fragment.free_bytes - held) * _SPARE,
            layer_bytes=of({p: float(number.room.layer_bytes[0]) for p, number in numbers.items()}, most),
            prefill_ms=of({p: number.prefill.layer for p, number in numbers.items()}, inf),
            decode_ms=of({p: number.decode.layer for p, number in numbers.items()}, inf),
            prefill_ends_ms=max(n.prefill.ends if last else n.prefill.hop for n in numbers.values()),
            decode_ends_ms=max(n.decode.ends if last else n.decode.hop for n in numbers.values()),
        )

    def _numbers(self, gpu_type: str, precision: Precision, num_stages: int, slots: int) -> Numbers:
        key = (gpu_type, precision, num_stages, slots)
        if key not in self.known:
            law = self.family.laws[gpu_type, precision]
            steps = law.steps(np.array([slots / min(num_stages, slots)]), self.workload)
            self.known[key] = Numbers(
                law.prefill(1, self.workload),
                Parts(float(steps.layer[0]), float(steps.ends[0]), float(steps.hop[0])),
                law.estimator.footprint(1, np.array([float(num_stages)]), np.array([float(slots)]),
                                        self.context_tokens),
            )  # fmt: skip
        return self.known[key]


def _held(full: Footprint, numbers: Mapping[Precision, Numbers], *, first: bool, last: bool) -> float:
    """Beside layers; as `MixedPipeline` counts it, or more where the stage does not hold every precision."""
    runtime = max(float(number.room.runtime_bytes[0, 0]) for number in numbers.values())
    return runtime + full.first_bytes * first + full.last_bytes * last - full.tied_saving_bytes * (first and last)


def fits(pipeline: Pipeline) -> bool:
    """Whether any split does: every stage with a layer, all in the smallest precision that it runs."""
    room = [int(stage.capacity_bytes // min(_runnable(stage))) for stage in pipeline.stages]
    return min(room) > 0 and sum(room) >= pipeline.num_layers >= len(room)


def _runnable(stage: Stage) -> Iterator[float]:
    return (each for each, ms in zip(stage.layer_bytes, stage.decode_ms, strict=True) if ms < inf)


def by_bytes(pipeline: Pipeline) -> Pipeline:
    """The same, made small instead of fast: milliseconds are bytes."""
    stages = tuple(
        replace(
            stage, decode_ms=tuple(0.0 if ms < inf else inf for ms in stage.decode_ms),
            prefill_ms=tuple(
                size if ms < inf else inf for size, ms in zip(stage.layer_bytes, stage.prefill_ms, strict=True)
            ),
            prefill_ends_ms=0.0, decode_ends_ms=0.0,
        )
        for stage in pipeline.stages
    )  # fmt: skip
    return replace(pipeline, stages=stages, weights=Weights(0.0, 0.0, decode_sum=0.0))
