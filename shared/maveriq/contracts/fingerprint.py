"""What a model costs on a GPU type, as measured."""

from datetime import datetime
from typing import ClassVar
from uuid import UUID

from pydantic import Field, model_validator

from maveriq.contracts.calibration import Calibration
from maveriq.contracts.disturbance import nine_of_ten
from maveriq.contracts.facts import ModelFacts
from maveriq.contracts.gpu import NODE_PATTERN
from maveriq.contracts.intent import Admission
from maveriq.contracts.message import Message, Value
from maveriq.contracts.model import Precision


class Sample(Value):
    """One raw reading of a cut model: medians of its repeats."""

    num_layers: int = Field(gt=0)
    batch: int = Field(gt=0)
    input_tokens: int = Field(gt=0)
    output_tokens: int = Field(gt=0)
    prefill_ms: float = Field(gt=0, description="All `batch` prompts of `input_tokens`, to the first token.")
    decode_ms: float = Field(gt=0, description="One decode step of the whole batch.")
    prefill_spread: float | None = Field(default=None, ge=0, description="Relative deviation of its repeats.")
    decode_spread: float | None = Field(default=None, ge=0, description="The same of decode steps.")
    others: float | None = Field(
        default=None, ge=0, le=1, description="Share of the device that others took meanwhile. None: nobody can tell."
    )
    activation_bytes: int = Field(ge=0, description="Peak above weights and KV cache.")
    runtime_bytes: int = Field(ge=0, description="What the process takes of the GPU before any tensor.")


class Fingerprint(Value):
    """A model's cost on one GPU type with one engine at one precision, TP 1."""

    engine: str
    engine_version: str
    gpu_type: str
    precision: Precision
    kv_precision: Precision
    tp_degrees: tuple[int, ...] = Field(min_length=1, description="TP degrees that the engine can run here.")
    max_pp: int = Field(gt=0, description="Most pipeline stages that the engine can run here.")
    hop_ms: float = Field(ge=0, description="Handing one token's activations to the next stage, measured.")
    samples: tuple[Sample, ...] = Field(min_length=2)
    cost_s: float = Field(ge=0, description="GPU-seconds that measuring took.")

    @property
    def others(self) -> float:
        """Share of the device that others took while it was measured: of nine samples in ten at most."""
        return nine_of_ten(sample.others for sample in self.samples)


class MeasurementRequested(Message):
    """One profiler has measured; this GPU type of the cluster has not yet. Goes on until all have."""

    topic: ClassVar[str] = "measurement.requested.v1"
    routed_by: ClassVar[str | None] = "node"

    deployment_id: UUID
    admission: Admission
    node: str = Field(pattern=NODE_PATTERN, description="Rig that is to measure: its engine and GPU type in a word.")
    asked: tuple[str, ...] = Field(description="Rigs that were asked before: none is asked twice.")


class MeasurementProgressed(Message):
    """What an intent waits for while its model is measured."""

    topic: ClassVar[str] = "measurement.progressed.v1"

    deployment_id: UUID
    detail: str = Field(description="In words.")
    told_at: datetime = Field(description="Of two the later counts.")


class FingerprintMeasured(Message):
    """Carries the admission along, so that the planner needs nothing but this message."""

    topic: ClassVar[str] = "fingerprint.measured.v1"

    deployment_id: UUID
    admission: Admission
    facts: ModelFacts
    fingerprints: tuple[Fingerprint, ...] = ()
    calibrations: tuple[Calibration, ...] = Field(
        default=(), description="Of the GPU types that are calibrated. At least one of the two tuples is not empty."
    )

    @model_validator(mode="after")
    def _something_is_known(self) -> "FingerprintMeasured":
        if not self.fingerprints and not self.calibrations:
            raise ValueError("fingerprints: give one at least, or a calibration")
        return self
