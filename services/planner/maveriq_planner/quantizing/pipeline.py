"""One pipeline over GPUs in a given order at given micro-batches: what a split of it costs, and whether it may be.

Pure: a pipeline and a split in, milliseconds and faults out. Nothing here knows how splits are found.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

ROUNDING = 1e-9  # relative: sums of the same floats in another order


@dataclass(frozen=True, slots=True)
class Stage:
    """One GPU. Each tuple has a number for each precision; infinity: this GPU cannot run a layer in it."""

    gpu: str
    capacity_bytes: float
    """For layers: what else it holds is taken off."""
    layer_bytes: tuple[float, ...]
    """Weights of a layer and the KV cache of all requests in it."""
    prefill_ms: tuple[float, ...]
    """One layer reading one micro-batch of prompts."""
    decode_ms: tuple[float, ...]
    """One layer's part of one step of one micro-batch."""
    prefill_ends_ms: float = 0.0
    """Embedding and lm_head, where they are on this GPU."""
    decode_ends_ms: float = 0.0
    prefill_hop_ms: float = 0.0
    """Sending on: beside computing, so that a stage takes at least this."""
    decode_hop_ms: float = 0.0

    @property
    def numbers(self) -> tuple[object, ...]:
        """All but its name: stages with equal ones may change places, but for the segments that they can hold."""
        return (
            self.capacity_bytes, self.layer_bytes, self.prefill_ms, self.decode_ms, self.prefill_ends_ms,
            self.decode_ends_ms, self.prefill_hop_ms, self.decode_hop_ms,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weights:
    """What the times and the sensitivity of a split count for:

    scale * (prefill_sum * sum P + prefill_longest * max P + decode_sum * sum D + decode_longest * max D
             + steps * max(groups * max D, sum D) + theta * sensitivity)

    with P and D the stages' times for one micro-batch. A pipeline takes sum + (m - 1) * max for m micro-batches; a
    token of all requests takes as long as the busiest stage does for its `groups` micro-batches, and never less than
    one of them takes through all stages.
    """

    prefill_longest: float
    decode_longest: float
    prefill_sum: float = 1.0
    decode_sum: float = 1.0
    steps: float = 0.0
    groups: int = 1
    theta: float = 0.0
    """Milliseconds that a unit of sensitivity is worth."""
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Pipeline:
    stages: tuple[Stage, ...]
    weights: Weights
    sensitivity: Array  # [L, B]
    """What the output loses by a layer in a precision, as it was measured."""
    prefill_batch: int
    decode_batch: int
    uniform_stages: bool = False
    """The engine runs all layers of a stage in one precision."""

    @property
    def num_layers(self) -> int:
        return int(self.sensitivity.shape[0])


@dataclass(frozen=True, slots=True)
class Split:
    """Which layers a stage holds, first stage first, and in which precision."""

    num_layers: tuple[int, ...]
    precisions: tuple[int, ...]
    """Of each layer, the place among the pipeline's precisions."""

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(accumulate(self.num_layers))

    def of_stages(self) -> tuple[tuple[int, ...], ...]:
        """Precisions of each stage's layers."""
        starts = (0, *self.ends[:-1])
        return tuple(self.precisions[start:end] for start, end in zip(starts, self.ends, strict=True))


@dataclass(frozen=True, slots=True)
class Cost:
    objective: float
    latency_ms: float
    """The objective without sensitivity and scale."""
    sensitivity: float
    prefill_ms: tuple[float, ...]
    """Of each stage, one micro-batch."""
    decode_ms: tuple[float, ...]
    bytes: tuple[float, ...]
    """Of each stage's layers."""


def cost(pipeline: Pipeline, split: Split) -> Cost:
    parts = list(zip(pipeline.stages, split.of_stages(), strict=True))
    prefill = [max(s.prefill_ends_ms + sum(s.prefill_ms[b] for b in held), s.prefill_hop_ms) for s, held in parts]
    decode = [max(s.decode_ends_ms + sum(s.decode_ms[b] for b in held), s.decode_hop_ms) for s, held in parts]
    lost = float(sum(pipeline.sensitivity[layer, b] for layer, b in enumerate(split.precisions)))
    w = pipeline.weights
    latency = latency_ms(w, sum(prefill), max(prefill), sum(decode), max(decode))
    return Cost(
        objective=w.scale * (latency + w.theta * lost),
        latency_ms=latency,
        sensitivity=lost,
        prefill_ms=tuple(prefill),
        decode_ms=tuple(decode),
        bytes=tuple(sum(stage.layer_bytes[b] for b in held) for stage, held in parts),
    )


def latency_ms(w: Weights, prefill_sum: float, prefill_max: float, decode_sum: float, decode_max: float) -> float:
    fill = w.prefill_sum * prefill_sum + w.prefill_longest * prefill_max
    drain = w.decode_sum * decode_sum + w.decode_longest * decode_max
    return fill + drain + w.steps * max(w.groups * decode_max, decode_sum)


def faults(pipeline: Pipeline, split: Split) -> list[str]:
    """Why the split cannot be run; empty: it can."""
    if len(split.num_layers) != len(pipeline.stages):
        return [f"{len(split.num_layers)} stages on {len(pipeline.stages)} GPUs"]
    if sum(split.num_layers) != pipeline.num_layers or len(split.precisions) != pipeline.num_layers:
        return [f"{sum(split.num_layers)} layers in stages and {len(split.precisions)} with a precision, "
                f"of {pipeline.num_layers}"]  # fmt: skip
    return list(_faults_of_stages(pipeline, split))


def _faults_of_stages(pipeline: Pipeline, split: Split) -> Iterable[str]:
    for stage, held in zip(pipeline.stages, split.of_stages(), strict=True):
        if not held:
            yield f"{stage.gpu} holds no layer"
        taken = sum(stage.layer_bytes[b] for b in held)
        if taken > stage.capacity_bytes * (1 + ROUNDING):
            yield f"{stage.gpu} holds {taken:.0f} bytes of layers and has {stage.capacity_bytes:.0f} for them"
        if not np.isfinite(sum(stage.prefill_ms[b] + stage.decode_ms[b] for b in held)):
            yield f"{stage.gpu} cannot run one of its precisions"
        if pipeline.uniform_stages and len(set(held)) > 1:
            yield f"{stage.gpu} holds layers of {len(set(held))} precisions"
