"""What an estimator says of a model on one kind of GPU, as arrays. Pure: shapes asked for in, times and bytes out.

`Estimator` is the seam: another law is another class beside those in `estimators`. docs/law.md derives ours.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from maveriq.contracts import Basis, ModelFacts, Precision, Variant, Workload
from maveriq_planner.arrays import Array


@dataclass(frozen=True, slots=True)
class Segment:
    """Contiguous layers on one GPU."""

    gpu_type: str
    precisions: tuple[Precision, ...]
    """Of each layer's weights."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What one estimator speaks for."""

    engine: str
    gpu_type: str
    variant: Variant
    kv_precision: Precision
    segments: tuple[Segment, ...] = ()
    """Layers of several precisions as they are split, one GPU a stage; empty: all of the variant's, split evenly."""

    @property
    def precision(self) -> Precision:
        return self.variant.precision

    @property
    def gpu_types(self) -> tuple[str, ...]:
        """Of its stages, each once."""
        return tuple(dict.fromkeys(segment.gpu_type for segment in self.segments)) or (self.gpu_type,)

    @property
    def layer_precisions(self) -> tuple[Precision, ...]:
        """Of its layers, each once."""
        return tuple(dict.fromkeys(p for s in self.segments for p in s.precisions)) or (self.precision,)


@dataclass(frozen=True, slots=True)
class Times:
    """Of one TP degree, with P pipeline degrees and B batches."""

    prefill_ms: Array  # [P]
    """One prompt through all stages."""
    prefill_stage_ms: Array  # [P]
    """One prompt on the stage that it occupies longest."""
    step_ms: Array  # [P, B]
    """Between two tokens of each of B requests."""
    layer_ms: Array | None  # [P, B]
    """One layer's share of a step, at the micro-batch that is under way in it. None: not known, or layers differ."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative standard errors of times."""

    prefill: Array  # [P]
    step: Array  # [P, B]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes on each GPU, with P pipeline degrees and S numbers of slots; see contracts.StageMemory."""

    layer_bytes: Array  # [S]
    first_bytes: float
    last_bytes: float
    tied_saving_bytes: float
    """0 where the ends are on different stages does not have to be said here."""
    runtime_bytes: Array  # [P, S]
    runtime_low_bytes: Array  # [P, S]
    """Least and most that the runtime may take in nine cases of ten; the rest is counted."""
    runtime_high_bytes: Array  # [P, S]
    stage_bytes: Array | None = None  # [S, stages]
    """In all, where the kind has segments; the fields above are then the means of its layers and stages."""


class Estimator(Protocol):
    @property
    def kind(self) -> Kind: ...

    @property
    def basis(self) -> Basis: ...

    @property
    def others(self) -> float:
        """Share of the device that others took while what it rests on was measured."""
        ...

    @property
    def tp_degrees(self) -> tuple[int, ...]:
        """Ascending; each divides the model's heads and key-value heads."""
        ...

    @property
    def max_pp(self) -> int: ...

    @property
    def max_batch(self) -> int:
        """Largest batch that it speaks for."""
        ...

    def times(self, tp: int, pps: Array, batches: Array, workload: Workload) -> Times:
        """
        Args:
            pps: whole numbers, ascending; from 1 to max_pp, or some of these.
        """
        ...

    def errors(self, tp: int, pps: Array, batches: Array, workload: Workload) -> Errors:
        """Of `times`. Apart, as intervals are shown of few configurations."""
        ...

    def footprint(self, tp: int, pps: Array, slots: Array, context_tokens: int) -> Footprint: ...


def dividing(degrees: tuple[int, ...], facts: ModelFacts) -> tuple[int, ...]:
    """Those that give each rank as many heads, and as many key-value heads, as the others."""
    heads = (facts.num_heads, facts.num_kv_heads)
    return tuple(tp for tp in sorted(set(degrees)) if all(number % tp == 0 for number in heads))


def micro_batches(pps: Array, batches: Array) -> Array:
    """[P, B]: a pipeline runs its requests in up to as many groups as it has stages."""
    return np.minimum(pps[:, None], batches)


def fullest_ms(num_layers: int, pps: Array, layer_ms: Array, ends_ms: Array) -> Array:
    """Of the stage that takes longest: layers split evenly, the remainder to the first stages, the ends on the last.

    Args:
        pps: broadcasts with the times.
    """
    floor = np.floor(num_layers / pps)
    most = np.ceil(num_layers / pps)
    longest: Array = np.maximum(most * layer_ms, floor * layer_ms + ends_ms)
    return longest
