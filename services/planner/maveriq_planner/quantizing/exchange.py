"""Makes a split better by changing one or two things at a time. Pure: a pipeline and a split in, a split out.

A change gives a layer another precision, or moves the first or last layer of a stage to its neighbour. All changes and
all pairs of them are weighed at once; the best one that leaves a split that can be run is made, until none is better.
"""

from dataclasses import dataclass

import numpy as np

from maveriq_planner.quantizing.pipeline import ROUNDING, Array, Indices, Pipeline, Split, cost, faults

_MOST_ROUNDS = 200
_MOST_CHANGES = 400  # weighed in pairs; beyond, one at a time
_MOST_TRIED = 8  # of one round, where the best contradict themselves
_LEAST_GAIN = 1e-9  # relative


@dataclass(frozen=True, slots=True)
class Changes:
    """M of them, each with what it adds to the N stages."""

    layer: Indices  # [M]
    stage: Indices  # [M], where the layer is afterwards
    precision: Indices  # [M]
    prefill_ms: Array  # [M, N]
    decode_ms: Array
    bytes: Array
    layers: Array
    lost: Array  # [M]


def improve(pipeline: Pipeline, split: Split, most_sensitivity: float | None = None) -> Split:
    """Never worse; the split's own sensitivity may be too much to begin with, and is then lowered first."""
    most = np.inf if most_sensitivity is None else most_sensitivity
    for _ in range(_MOST_ROUNDS):
        changes = _changes(pipeline, split)
        better = _best(pipeline, split, changes, most)
        if better is None:
            return split
        split = better
    return split


def _best(pipeline: Pipeline, split: Split, changes: Changes, most: float) -> Split | None:
    """After the best change, or pair of them; None: none helps."""
    number = len(changes.layer)
    sets: list[Indices] = [np.arange(number)[:, None]]
    if number <= _MOST_CHANGES:
        sets.append(np.column_stack(np.triu_indices(number, 1)))
    for chosen in sets:
        worth = _worth(pipeline, split, changes, chosen, most)
        for place in np.argsort(worth, kind="stable")[:_MOST_TRIED]:
            if not np.isfinite(worth[place]):
                break
            made = _made(split, changes, chosen[place])
            if made is not None and not faults(pipeline, made):
                return made
    return None


def _worth(pipeline: Pipeline, split: Split, changes: Changes, chosen: Indices, most: float) -> Array:
    """[T]: lower is better; infinity: of no use.

    While there is too much sensitivity, milliseconds for what is taken off it; then the objective, if it is lower.
    """
    now = cost(pipeline, split)
    lost = now.sensitivity + changes.lost[chosen].sum(axis=1)
    objective = _objectives(pipeline, split, changes, chosen, lost)
    if now.sensitivity > most:
        gain = now.sensitivity - np.maximum(lost, most)
        useful = (gain > 0) & np.isfinite(objective)
        return np.where(useful, (objective - now.objective) / np.where(useful, gain, 1.0), np.inf)
    better = objective < now.objective - _LEAST_GAIN * abs(now.objective)
    return np.where(better & (lost <= most), objective, np.inf)


def _changes(pipeline: Pipeline, split: Split) -> Changes:
    num_stages, num_precisions = len(pipeline.stages), pipeline.sensitivity.shape[1]
    runs = np.isfinite([np.add(stage.prefill_ms, stage.decode_ms) for stage in pipeline.stages])
    of_layer = np.repeat(np.arange(num_stages), split.num_layers)
    starts = np.array([0, *split.ends[:-1]])
    ends = np.array(split.ends) - 1
    rows: list[tuple[int, int, int]] = []
    for layer, (stage, now) in enumerate(zip(of_layer.tolist(), split.precisions, strict=True)):
        others = [stage]
        if split.num_layers[stage] > 1:
            others += [stage - 1] * int(layer == starts[stage] and stage > 0)
            others += [stage + 1] * int(layer == ends[stage] and stage < num_stages - 1)
        for other in others:
            rows += [(layer, other, b) for b in np.flatnonzero(runs[other]).tolist() if (other, b) != (stage, now)]
    layers, stages, precisions = np.array(rows, dtype=np.intp).reshape(-1, 3).T
    before_stage, before = of_layer[layers], np.array(split.precisions)[layers]
    tables = (
        np.where(runs, [s.prefill_ms for s in pipeline.stages], 0.0),
        np.where(runs, [s.decode_ms for s in pipeline.stages], 0.0),
        np.array([s.layer_bytes for s in pipeline.stages]), np.ones((num_stages, num_precisions)),
    )  # fmt: skip
    places = np.arange(len(rows))
    added: list[Array] = []
    for table in tables:
        delta = np.zeros((len(rows), num_stages))
        delta[places, before_stage] -= table[before_stage, before]
        delta[places, stages] += table[stages, precisions]
        added.append(delta)
    lost = pipeline.sensitivity[layers, precisions] - pipeline.sensitivity[layers, before]
    return Changes(layers, stages, precisions, added[0], added[1], added[2], added[3], lost)


def _objectives(pipeline: Pipeline, split: Split, changes: Changes, chosen: Indices, lost: Array) -> Array:
    """[T]: of each set of changes; infinity: it does not fit."""
    stages, w = pipeline.stages, pipeline.weights
    parts = list(zip(stages, split.of_stages(), strict=True))
    held_bytes = np.array([sum(s.layer_bytes[b] for b in held) for s, held in parts])
    prefill = np.array([s.prefill_ends_ms + sum(s.prefill_ms[b] for b in held) for s, held in parts])
    decode = np.array([s.decode_ends_ms + sum(s.decode_ms[b] for b in held) for s, held in parts])
    held_bytes = held_bytes + changes.bytes[chosen].sum(axis=1)
    layers = np.array(split.num_layers) + changes.layers[chosen].sum(axis=1)
    prefill = np.maximum(prefill + changes.prefill_ms[chosen].sum(axis=1), [s.prefill_hop_ms for s in stages])
    decode = np.maximum(decode + changes.decode_ms[chosen].sum(axis=1), [s.decode_hop_ms for s in stages])
    fits = (held_bytes <= np.array([s.capacity_bytes for s in stages]) * (1 + ROUNDING)).all(axis=1)
    fits &= (layers >= 1).all(axis=1)
    decode_max, decode_sum = decode.max(axis=1), decode.sum(axis=1)
    latency = (
        w.prefill_sum * prefill.sum(axis=1) + w.prefill_longest * prefill.max(axis=1) + w.decode_sum * decode_sum
        + w.decode_longest * decode_max + w.steps * np.maximum(w.groups * decode_max, decode_sum)
    )  # fmt: skip
    return np.where(fits, w.scale * (latency + w.theta * lost), np.inf)


def _made(split: Split, changes: Changes, chosen: Indices) -> Split | None:
    """None: the changes contradict each other."""
    layers = changes.layer[chosen]
    if len(set(layers.tolist())) < len(chosen):
        return None
    of_layer = np.repeat(np.arange(len(split.num_layers)), split.num_layers)
    precisions = np.array(split.precisions)
    of_layer[layers] = changes.stage[chosen]
    precisions[layers] = changes.precision[chosen]
    if (np.diff(of_layer) < 0).any():
        return None
    numbers = np.bincount(of_layer, minlength=len(split.num_layers))
    return Split(tuple(int(n) for n in numbers), tuple(int(b) for b in precisions))
