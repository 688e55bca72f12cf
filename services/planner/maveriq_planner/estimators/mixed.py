"""Layers of several precisions in one pipeline, by the laws of each. Pure: laws and a split in, times and bytes out.

A layer takes what its precision takes on its stage's GPU type; the last stage's ends, and hops, are the means of what
its layers' precisions say, so that a pipeline of one precision, split evenly, is predicted as its own law does.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from maveriq.contracts import Basis, ModelFacts, Precision, Variant, Workload
from maveriq_planner.arrays import Array
from maveriq_planner.estimate import Errors, Footprint, Kind, Segment, Times, micro_batches
from maveriq_planner.quantizing.layer_law import LayerLaw, Steps

Place = tuple[str, Precision]
"""GPU type and precision of a layer."""


@dataclass(frozen=True, slots=True)
class Family:
    """What an engine can mix in one pipeline: a full precision, quantised ones beside it, one cache."""

    engine: str
    full: Variant
    """Of the model; embedding, lm_head, norms and activations have its precision."""
    kv_precision: Precision
    laws: Mapping[Place, LayerLaw]

    @property
    def gpu_types(self) -> tuple[str, ...]:
        """On which the full precision runs."""
        return tuple(gpu_type for gpu_type, precision in self.laws if precision is self.full.precision)


@dataclass(frozen=True, slots=True)
class MixedPipeline:
    """Of its kind's segments, at the slots that they were split for or fewer."""

    kind: Kind
    facts: ModelFacts
    family: Family
    max_batch: int
    tp_degrees: tuple[int, ...] = (1,)

    @property
    def basis(self) -> Basis:
        return self._full(self.kind.segments[0]).estimator.basis

    @property
    def others(self) -> float:
        """The worst of its layers'."""
        return max(law.estimator.others for _, law in self._laws())

    @property
    def max_pp(self) -> int:
        return len(self.kind.segments)

    def times(self, tp: int, pps: Array, batches: Array, workload: Workload) -> Times:
        groups = micro_batches(pps, batches)[0]
        through, fullest = self._passed({p: law.steps(batches / groups, workload) for p, law in self._laws()})
        prompts = {place: law.prefill(1, workload) for place, law in self._laws()}
        prompt, prompt_stage = self._passed({
            place: Steps(*(np.array([ms]) for ms in (part.layer, part.ends, part.hop, part.spared)))
            for place, part in prompts.items()
        })  # fmt: skip
        step = np.maximum(through, groups * fullest)
        return Times(prefill_ms=prompt, prefill_stage_ms=prompt_stage, step_ms=step[None], layer_ms=None)

    def errors(self, tp: int, pps: Array, batches: Array, workload: Workload) -> Errors:
        """Means over the layers: they rest on the same readings, so they do not average out."""
        prefill, step = np.zeros(len(pps)), np.zeros((len(pps), len(batches)))
        held = Counter((s.gpu_type, precision) for s in self.kind.segments for precision in s.precisions)
        for place, count in held.items():
            of_place = self.family.laws[place].estimator.errors(1, pps, batches, workload)
            prefill += of_place.prefill * count / held.total()
            step += of_place.step * count / held.total()
        return Errors(prefill, step)

    def footprint(self, tp: int, pps: Array, slots: Array, context_tokens: int) -> Footprint:
        """The runtime of a stage is the most that any of its precisions, or the full one, takes."""
        segments = self.kind.segments
        prints = {p: law.estimator.footprint(1, pps, slots, context_tokens) for p, law in self._laws()}
        first, last = (prints[segment.gpu_type, self.kind.precision] for segment in (segments[0], segments[-1]))
        tied = first.tied_saving_bytes if len(segments) == 1 else 0.0
        layers = np.array([
            sum(prints[s.gpu_type, p].layer_bytes * n for p, n in Counter(s.precisions).items()) for s in segments
        ])  # fmt: skip

        def runtimes(of: Callable[[Footprint], Array]) -> Array:
            taken = [[of(prints[s.gpu_type, p])[0] for p in self._in_stage(s)] for s in segments]
            return np.array([np.max(each, axis=0) for each in taken])

        runtime = runtimes(lambda each: each.runtime_bytes)
        whole = np.ceil(layers + runtime)
        whole[0] += first.first_bytes - tied
        whole[-1] += last.last_bytes
        return Footprint(
            layers.sum(axis=0) / self.facts.num_layers, first.first_bytes, last.last_bytes, tied,
            runtime.mean(axis=0)[None],
            runtimes(lambda each: each.runtime_low_bytes).mean(axis=0)[None],
            runtimes(lambda each: each.runtime_high_bytes).mean(axis=0)[None],
            stage_bytes=whole.T,
        )  # fmt: skip

    def _passed(self, parts: Mapping[Place, Steps]) -> tuple[Array, Array]:
        """A pass through all stages, and on the stage that it occupies longest."""
        segments, num_layers = self.kind.segments, self.facts.num_layers
        own = [_weighted(segment, parts, lambda part: part.layer) * len(segment.precisions) for segment in segments]
        ends = _weighted(segments[-1], parts, lambda part: part.ends)
        hops = sum((_weighted(segment, parts, lambda part: part.hop) for segment in segments[:-1]), np.zeros(1))
        spared = sum(_weighted(s, parts, lambda part: part.spared) * len(s.precisions) for s in segments) / num_layers
        beside = num_layers - max(len(segment.precisions) for segment in segments)
        fullest = np.max([*own[:-1], own[-1] + ends], axis=0)
        return np.sum(own, axis=0) + ends + hops - beside * spared, fullest

    def _laws(self) -> Iterable[tuple[Place, LayerLaw]]:
        """That any of its stages needs."""
        places = dict.fromkeys((s.gpu_type, precision) for s in self.kind.segments for precision in self._in_stage(s))
        return [(place, self.family.laws[place]) for place in places]

    def _in_stage(self, segment: Segment) -> tuple[Precision, ...]:
        return tuple(dict.fromkeys((self.kind.precision, *segment.precisions)))

    def _full(self, segment: Segment) -> LayerLaw:
        return self.family.laws[segment.gpu_type, self.kind.precision]


def _weighted(segment: Segment, parts: Mapping[Place, Steps], of: Callable[[Steps], Array]) -> Array:
    """The mean over its layers."""
    counts = Counter(segment.precisions)
    total = sum((of(parts[segment.gpu_type, p]) * n for p, n in counts.items()), np.zeros(1))
    return np.asarray(total) / counts.total()
