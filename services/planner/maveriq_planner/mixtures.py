"""Which pipelines of mixed precisions an intent may run as. Pure: intent and space in, estimators out.

The fragments of one node hold one replica. For its fewest GPUs, and one more, and some numbers of slots there are two
splits each: the one that loses least, and the fastest (or leanest) that keeps to the floor of accuracy. How many
splits are sought is bounded; each is the best that `quantize` finds. Predicted and judged they are like all others.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, log

import numpy as np

from maveriq.contracts import FULL_PRECISIONS, Intent, Objective, Provenance, Variant
from maveriq_planner.estimate import Kind, Segment
from maveriq_planner.estimators.mixed import Family, MixedPipeline
from maveriq_planner.quantize import Choice, Effort, NothingFits, quantize
from maveriq_planner.quantizing.fragments import Fragment
from maveriq_planner.quantizing.mixed_stages import Stages, by_bytes, layers_of
from maveriq_planner.quantizing.pipeline import ROUNDING, Pipeline
from maveriq_planner.space import Space

LABEL = "mixed"
_SHAPES = 2  # nodes whose fragments differ; of all families together, at least one each
_SLOTS_STEP = 8
_STAGE_COUNTS = 2
_EFFORT = Effort(tolerance=1e-2, max_patterns=20_000, max_entries=2_000_000, count_s=0.05, closes=False)
_WORTH = 0.01  # of a split's time: what all of its sensitivity is worth to the fastest
_ABOVE_ALL = 100.0  # and to the one that loses least
_ROUNDING = 1 - 1e-8


def mixtures(intent: Intent, space: Space, context_tokens: int) -> tuple[MixedPipeline, ...]:
    """None where the model's layers were never measured, or nothing is free."""
    found: dict[Kind, MixedPipeline] = {}
    for family in space.families if space.fragments else ():
        mixture = _mixture(intent, space, family, context_tokens)
        for mixed in mixture.found() if mixture is not None else ():
            known = found.get(mixed.kind)
            if known is None or known.max_batch < mixed.max_batch:
                found[mixed.kind] = mixed
    return tuple(found.values())


def _mixture(intent: Intent, space: Space, family: Family, context_tokens: int) -> "_Mixture | None":
    """None: the intent leaves nothing to mix."""
    given, full = space.model.sensitivity, family.full.precision
    assert given is not None, "families are of layers that were measured"
    gpu_types = {
        name
        for name in family.gpu_types
        if (intent.gpu_types is None or name in intent.gpu_types)
        and (intent.objective is not Objective.MIN_PRICE or space.price_of(name) is not None)
    }
    quantised = [
        p for p in given.precisions if p not in FULL_PRECISIONS and any((t, p) in family.laws for t in gpu_types)
    ]
    chosen = [p for p in (full, *quantised) if intent.precisions is None or p in intent.precisions]
    if not set(chosen) & set(quantised):
        return None
    lost = np.array(given.layers)
    columns = [np.zeros(len(lost)) if p is full else lost[:, given.precisions.index(p)] for p in chosen]
    layers = layers_of(tuple(chosen), np.stack(columns, axis=1))
    return _Mixture(
        intent, space, family, Stages(family, layers, intent.workload, context_tokens), frozenset(gpu_types)
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Mixture:
    """One family under one intent."""

    intent: Intent
    space: Space
    family: Family
    stages: Stages
    gpu_types: frozenset[str]

    def found(self) -> Iterator[MixedPipeline]:
        """Over what is free; where nothing there keeps to the floor, over what comes back too: an intent may wait."""
        now = list(self._over(self._nodes(emptied=False)))
        later = () if any(self._keeps(choice) for choice, _ in now) else self._over(self._nodes(emptied=True))
        yield from (mixed for _, mixed in (*now, *later) if not self._is_uniform(mixed.kind))

    def _over(self, nodes: Sequence[Sequence[Fragment]]) -> Iterator[tuple[Choice, MixedPipeline]]:
        for fragments in nodes:
            types = {fragment.name: fragment.gpu_type for fragment in fragments}
            for slots, choice in self._choices(fragments):
                yield choice, self._told(choice, types, slots)

    def _choices(self, fragments: Sequence[Fragment]) -> list[tuple[int, Choice]]:
        """With their slots. Where some keep to the floor and more do not, the most that do are sought by halving."""
        made: list[tuple[int, Choice]] = []
        kept = 0
        for slots in self._slots():
            number, keeps = slots, False
            while number > kept and not keeps:
                found = list(self._splits(fragments, number))
                made += [(number, choice) for choice in found]
                keeps = any(map(self._keeps, found))
                number = number // 2 if kept else kept
            if keeps and made[-1][0] == slots:
                kept = slots
            elif kept:
                break
        return made

    def _keeps(self, choice: Choice) -> bool:
        return choice.cost.sensitivity <= self._most_sensitivity() * (1 + ROUNDING)

    def _nodes(self, *, emptied: bool) -> list[list[Fragment]]:
        """Those that differ, most bytes first: of what is free, or of what would be if nothing of ours ran there."""
        by_node: defaultdict[str, list[Fragment]] = defaultdict(list)
        comes_back = {one.node for one in self.space.fragments if one.held_bytes}
        for one in self.space.fragments:
            usable = one.free_bytes + (one.held_bytes if emptied else 0)
            wanted = usable > 0 and (not emptied or one.node in comes_back)
            if wanted and one.engine == self.family.engine and one.gpu_type in self.gpu_types:
                by_node[one.node].append(Fragment(one.gpu, one.gpu_type, float(usable)))
        differing = {tuple(sorted((f.gpu_type, f.free_bytes) for f in node)): node for node in by_node.values()}
        most = max(1, _SHAPES // len(self.space.families))
        return sorted(differing.values(), key=lambda node: -sum(f.free_bytes for f in node))[:most]

    def _slots(self) -> list[int]:
        """Powers of eight up to what every law speaks for, and no more than may be in flight."""
        laws = [law for (name, _), law in self.family.laws.items() if name in self.gpu_types]
        most = min(law.max_batch for law in laws)
        most = min(most, self.intent.workload.concurrency or most)
        powers = {_SLOTS_STEP**i for i in range(most.bit_length()) if _SLOTS_STEP**i <= most}
        return sorted({*powers, most})

    def _splits(self, fragments: Sequence[Fragment], slots: int) -> Iterator[Choice]:
        held = 0
        for num_stages in range(1, self._most_stages(fragments) + 1):
            pipelines = self.stages.pipelines(fragments, num_stages, slots)
            if not pipelines:
                continue
            least = _quantized(pipelines, _ABOVE_ALL)
            if least is not None:
                yield least
                yield from self._within_floor(pipelines, least)
            held += 1
            if held == _STAGE_COUNTS or (least is not None and least.cost.sensitivity == 0):
                return

    def _within_floor(self, pipelines: Sequence[Pipeline], least: Choice) -> Iterator[Choice]:
        """The fastest, or the leanest where memory is what counts."""
        most = self._most_sensitivity()
        if least.cost.sensitivity * (1 - _EFFORT.tolerance) > most:
            return
        lean = self.intent.objective is Objective.MIN_MEMORY
        wanted = [by_bytes(pipeline) for pipeline in pipelines] if lean else pipelines
        choice = _quantized(wanted, _WORTH, None if most == inf else most)
        if choice is not None:
            yield choice

    def _most_sensitivity(self) -> float:
        floor = self.intent.min_accuracy
        if not floor:
            return inf
        return max(0.0, log((self.family.full.accuracy or 1.0) / floor)) * _ROUNDING

    def _most_stages(self, fragments: Sequence[Fragment]) -> int:
        laws = [law for (name, _), law in self.family.laws.items() if name in {f.gpu_type for f in fragments}]
        seen = min(law.estimator.max_pp for law in laws)
        gpus = self.intent.max_gpus or len(fragments)
        return min(len(fragments), gpus, seen, self.space.max_pp, len(self.stages.layers.sensitivity))

    def _told(self, choice: Choice, types: dict[str, str], slots: int) -> MixedPipeline:
        layers, full, given = self.stages.layers, self.family.full, self.space.model.sensitivity
        segments = tuple(
            Segment(types[stage.gpu], tuple(layers.precisions[b] for b in held for _ in range(layers.each)))
            for stage, held in zip(choice.pipeline.stages, choice.split.of_stages(), strict=True)
        )
        lost = choice.cost.sensitivity
        variant = Variant(
            name=LABEL, precision=full.precision, kv_precision=self.family.kv_precision,
            accuracy=None if full.accuracy is None else full.accuracy * exp(-lost),
            provenance=Provenance.MEASURED, evidence="" if given is None else given.evidence,
        )  # fmt: skip
        kind = Kind(self.family.engine, segments[0].gpu_type, variant, self.family.kv_precision, segments)
        return MixedPipeline(kind, self.space.facts, self.family, slots)

    def _is_uniform(self, kind: Kind) -> bool:
        """Whether it is what a variant of the model is already, one precision on one GPU type, and no more is known."""
        (gpu_type, *other_types), (precision, *others) = kind.gpu_types, kind.layer_precisions
        alike = [each.kind for each in self.space.estimators if each.kind.gpu_type == gpu_type]
        return not other_types and not others and any(
            (own.engine, own.precision, own.kv_precision) == (kind.engine, precision, kind.kv_precision)
            and own.variant.source is None and own.variant.accuracy is not None
            for own in alike
        )  # fmt: skip


def _quantized(pipelines: Sequence[Pipeline], worth: float, most: float | None = None) -> Choice | None:
    """None: nothing keeps to the floor.

    Args:
        worth: of all sensitivity, in times of what the slowest split takes.
    """
    total = float(pipelines[0].sensitivity.max(axis=1).sum())
    theta = worth * _slowest(pipelines[0]) / total if total else 0.0
    wanted = [replace(p, weights=replace(p.weights, theta=theta)) for p in pipelines]
    try:
        return quantize(wanted, most_sensitivity=most, effort=_EFFORT)
    except NothingFits:
        return None


def _slowest(pipeline: Pipeline) -> float:
    """About what the slowest split takes."""
    w, num_layers = pipeline.weights, pipeline.num_layers
    return max(
        num_layers * (ms * (w.prefill_sum + w.prefill_longest) + step * w.steps * w.groups)
        for stage in pipeline.stages
        for ms, step in zip(stage.prefill_ms, stage.decode_ms, strict=True)
        if ms < inf and step < inf
    )
