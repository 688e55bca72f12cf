"""The best precisions of a model on one GPU. Pure: a pipeline of one stage in, a split and a lower bound out.

All layers are here, so that the numbers of layers in each precision say the time, and one assignment the sensitivity:
patterns are tried from the one that could be best, until none could be better than the best that was.
"""

import numpy as np

from maveriq_planner.quantizing.assigning import assign
from maveriq_planner.quantizing.patterns import patterns
from maveriq_planner.quantizing.pipeline import ROUNDING, Array, Indices, Pipeline, Split, latency_ms
from maveriq_planner.quantizing.ways import improvements


def best_single(
    pipeline: Pipeline, beat: float, limit: int, most_sensitivity: float = np.inf
) -> tuple[Split | None, float] | None:
    """The best split that costs less than `beat` and a bound that none is below; None: too many patterns to try.

    Infinity: the model does not fit.
    """
    counts = _fitting(pipeline, limit)
    if counts is None:
        return None
    if not counts.shape[1]:
        return None, np.inf
    worth = pipeline.weights.theta
    times, lossless = _times(pipeline, counts), _least_lost(pipeline.sensitivity, counts)
    least = np.where(lossless > most_sensitivity * (1 + ROUNDING), np.inf, times + worth * lossless)
    best, bound = None, np.inf
    for k in np.argsort(least, kind="stable"):
        if least[k] >= beat:
            bound = min(bound, float(least[k]))
            break
        lost, held = assign(pipeline.sensitivity, counts[:, k])
        if lost > most_sensitivity:
            continue
        objective = float(times[k] + worth * lost)
        bound = min(bound, objective)
        if objective < beat:
            best, beat = Split((pipeline.num_layers,), tuple(held)), objective
    return best, bound


def _fitting(pipeline: Pipeline, limit: int) -> Indices | None:
    """[B, K]: numbers of layers that fit and could take no better precision."""
    stage, total = pipeline.stages[0], pipeline.num_layers
    each = np.array(stage.layer_bytes)
    lightest = int(each.argmin())
    others = np.delete(np.arange(len(each)), lightest)
    spare_bytes = stage.capacity_bytes * (1 + ROUNDING) - total * each[lightest]
    if spare_bytes < 0:
        return np.zeros((len(each), 0), dtype=np.intp)
    found = patterns(each[others] - each[lightest], spare_bytes, total, limit)
    if found is None:
        return None
    counts = np.insert(found.counts, lightest, total - found.num_layers, axis=0)
    runs = np.isfinite(np.add(stage.prefill_ms, stage.decode_ms))
    good = ~(counts[~runs] > 0).any(axis=0)
    if pipeline.uniform_stages:
        good &= (counts > 0).sum(axis=0) == 1
        return counts[:, good]
    for worse, better in improvements(pipeline, stage):
        full = found.bytes + (each[better] - each[worse]) > spare_bytes
        good &= full | (counts[worse] == 0)
    return counts[:, good]


def _least_lost(sensitivity: Array, counts: Indices) -> Array:
    """[K]: no assignment loses less: each precision has the layers that lose least in it, were they its alone."""
    sums = np.vstack([np.zeros(sensitivity.shape[1]), np.sort(sensitivity, axis=0).cumsum(axis=0)])
    whole: Array = sum((sums[counts[b], b] for b in range(len(counts))), np.zeros(counts.shape[1]))
    floor = sensitivity.min(axis=1).sum()
    least: Array = np.maximum(whole, floor) * (1 - ROUNDING)
    return least


def _times(pipeline: Pipeline, counts: Indices) -> Array:
    stage = pipeline.stages[0]
    prefill, decode = (np.where(np.isfinite(ms), ms, 0.0) for ms in (stage.prefill_ms, stage.decode_ms))
    prompts = np.maximum(prefill @ counts + stage.prefill_ends_ms, stage.prefill_hop_ms)
    steps = np.maximum(decode @ counts + stage.decode_ends_ms, stage.decode_hop_ms)
    return np.array([
        latency_ms(pipeline.weights, prompt, prompt, step, step) for prompt, step in zip(prompts, steps, strict=True)
    ])  # fmt: skip
