"""What no split of a pipeline costs less than, in microseconds. Pure: a pipeline in, a bound out.

Each stage takes its fastest precision, each layer its least sensitive one, and a stage holds at least one layer and no
more than fit in the smallest precision. The longest stage takes no less than it would if layers could be split.
"""

import numpy as np

from maveriq_planner.quantizing.pipeline import ROUNDING, Array, Pipeline, Stage, latency_ms


def quick_floor(pipeline: Pipeline) -> float:
    """Without the pipeline's scale. Infinity: the layers do not fit."""
    stages, total = pipeline.stages, pipeline.num_layers
    most = np.array([_most_layers(stage) for stage in stages])
    if most.min() < 1 or most.sum() < total or len(stages) > total:
        return np.inf
    prefill = _least([min(s.prefill_ms) for s in stages], [s.prefill_ends_ms for s in stages], most, total)
    decode = _least([min(s.decode_ms) for s in stages], [s.decode_ends_ms for s in stages], most, total)
    hops = [max(s.prefill_hop_ms for s in stages), max(s.decode_hop_ms for s in stages)]
    latency = latency_ms(
        pipeline.weights, prefill[0], max(prefill[1], hops[0]), decode[0], max(decode[1], hops[1])
    )  # fmt: skip
    return latency + pipeline.weights.theta * float(pipeline.sensitivity.min(axis=1).sum())


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
