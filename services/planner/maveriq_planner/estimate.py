"""What an estimator says of a model on one kind of GPU, as arrays. Pure: shapes asked for in, times and bytes out.

`Estimator` is the seam: another law is another class beside those in `estimators`. docs/law.md derives ours.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from maveriq.contracts import Basis, ModelFacts, Precision, Variant, Workload

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Kind:
    """What one estimator speaks for."""

    engine: str
    gpu_type: str
    precision: Precision
    kv_precision: Precision
    variant: Variant


@dataclass(frozen=True, slots=True)
class Times:
    """Of one TP degree, with P pipeline degrees and B batches. Errors are relative standard errors."""

    prefill_ms: Array  # [P]
    """One prompt through all stages."""
    prefill_stage_ms: Array  # [P]
    """One prompt on the stage that it occupies longest."""
    step_ms: Array  # [P, B]
    """Between two tokens of each of B requests."""
    prefill_error: Array  # [P]
    step_error: Array  # [P, B]


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


class Estimator(Protocol):
    @property
    def kind(self) -> Kind: ...

    @property
    def basis(self) -> Basis: ...

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

    def times(self, tp: int, pps: Array, batches: Array, workload: Workload) -> Times: ...

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


def replica_bytes(footprint: Footprint, num_layers: int, tp: int, pps: Array) -> Array:
    """[P, S], over all GPUs of a replica. How the layers are split makes no difference to the sum."""
    stages = pps[:, None]
    total = num_layers * footprint.layer_bytes + stages * footprint.runtime_bytes
    total = total + footprint.first_bytes + footprint.last_bytes
    whole: Array = tp * (total - np.where(stages == 1, footprint.tied_saving_bytes, 0.0))
    return whole
