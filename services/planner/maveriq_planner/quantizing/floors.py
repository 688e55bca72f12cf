"""What no split of a pipeline costs less than, in microseconds. Pure: a pipeline in, a bound out.

One floor gives each stage its fastest precision and each layer its least sensitive one; a stage holds at least one
layer and no more than fit in the smallest precision, and the longest takes no less than if layers could be split. The
other chooses for each layer time and sensitivity together, and takes for the longest stage a mean of all stages in
which a layer counts the same on each.
"""

import numpy as np

from maveriq_planner.quantizing.charging import Charge, charges
from maveriq_planner.quantizing.pipeline import ROUNDING, Array, Pipeline, Stage, latency_ms


def quick_floor(pipeline: Pipeline) -> float:
    """Without the pipeline's scale. Infinity: the layers do not fit."""
    stages, total = pipeline.stages, pipeline.num_layers
    most = np.array([_most_layers(stage) for stage in stages])
    if most.min() < 1 or most.sum() < total or len(stages) > total:
        return np.inf
    together = max(_together(pipeline, charge) for charge in charges(pipeline.weights, len(stages)))
    return max(_apart(pipeline, most), together)


def _apart(pipeline: Pipeline, most: Array) -> float:
    stages, total = pipeline.stages, pipeline.num_layers
    prefill = _least([min(s.prefill_ms) for s in stages], [s.prefill_ends_ms for s in stages], most, total)
    decode = _least([min(s.decode_ms) for s in stages], [s.decode_ends_ms for s in stages], most, total)
    latency = latency_ms(pipeline.weights, *prefill, *decode)
    return latency + pipeline.weights.theta * float(pipeline.sensitivity.min(axis=1).sum())


def _together(pipeline: Pipeline, charge: Charge) -> float:
    total, stages = 0.0, pipeline.stages
    each = np.zeros((len(stages), pipeline.sensitivity.shape[1]))
    for once, longest, layer_ms, ends_ms in (
        (charge.prefill_sum, charge.prefill_longest, [s.prefill_ms for s in stages],
         [s.prefill_ends_ms for s in stages]),
        (charge.decode_sum, charge.decode_longest, [s.decode_ms for s in stages], [s.decode_ends_ms for s in stages]),
    ):  # fmt: skip
        times = np.array(layer_ms)
        fastest = np.maximum(times.min(axis=1), np.finfo(float).tiny)
        share = fastest.min() / fastest  # 0 where nothing runs
        share /= share.sum()
        worth = once + longest * share
        runs = np.isfinite(times)
        each += np.where(runs, worth[:, None] * np.where(runs, times, 0.0), np.inf)
        total += float((worth * np.array(ends_ms)).sum())
    layers = each.min(axis=0) + charge.lost * pipeline.sensitivity
    return total + float(layers.min(axis=1).sum())


def _most_layers(stage: Stage) -> int:
    runs = np.isfinite(np.add(stage.prefill_ms, stage.decode_ms))
    if not runs.any():
        return 0
    smallest = min(each for each, can in zip(stage.layer_bytes, runs, strict=True) if can)
    return max(0, int(stage.capacity_bytes * (1 + ROUNDING) / smallest))


def _least(layer_ms: list[float], ends_ms: list[float], most: Array, total: int) -> tuple[float, float]:
    """Sum over the stages, and the longest."""
    each, ends = np.array(layer_ms), np.array(ends_ms)
    order = np.argsort(each)
    room = np.minimum(np.cumsum(most[order] - 1), total - len(each))
    more = np.diff(room, prepend=0)
    whole = float(ends.sum() + each.sum() + (more * each[order]).sum())
    if not each.all():
        return whole, float(ends.max())
    longest = (total + (ends / each).sum()) / (1 / each).sum()
    return whole, max(float(longest), whole / len(each), float((ends + each).max()))
