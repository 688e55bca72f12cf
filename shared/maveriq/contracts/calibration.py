"""A GPU type's constants of the latency and memory law, and the readings that they are fitted to."""

from datetime import datetime
from typing import ClassVar
from uuid import UUID

from pydantic import Field

from maveriq.contracts.accuracy import LayerPrecisions
from maveriq.contracts.facts import ModelFacts
from maveriq.contracts.gpu import NODE_PATTERN
from maveriq.contracts.histogram import Histogram
from maveriq.contracts.message import DoorMessage, Message, Value
from maveriq.contracts.model import Precision


class RunSample(Value):
    """One measured run of any model, cut or whole, on one GPU type. Times that were not measured apart are None."""

    facts: ModelFacts
    precision: Precision
    kv_precision: Precision
    tp: int = Field(default=1, gt=0)
    layers: tuple[int, ...] = Field(min_length=1, description="Of each stage that ran.")
    batch: int = Field(gt=0)
    input_tokens: int = Field(gt=0)
    output_tokens: int = Field(gt=0)
    prefill_ms: float | None = Field(default=None, gt=0, description="All `batch` prompts, to the first token.")
    decode_ms: float | None = Field(default=None, gt=0, description="One decode step of the whole batch.")
    e2e_ms: float | None = Field(default=None, gt=0, description="All prompts to the last token.")
    prefill_spread: float | None = Field(default=None, ge=0, description="Relative deviation of its repeats.")
    decode_spread: float | None = Field(default=None, ge=0, description="The same of decode steps.")
    others: float | None = Field(
        default=None, ge=0, le=1, description="Share of the device that others took meanwhile. None: nobody can tell."
    )
    memory_bytes: int | None = Field(default=None, gt=0, description="Over all GPUs.")
    activation_bytes: int | None = Field(default=None, ge=0, description="Peak above weights and KV cache.")
    runtime_bytes: int | None = Field(default=None, ge=0, description="Of one process, before any tensor.")
    room_tokens: int | None = Field(
        default=None,
        gt=0,
        description="Of the largest pass that activations have room for. None: of this run's prompts.",
    )
    served: bool = Field(default=False, description="Seen in service rather than in a measurement.")
    mix: tuple[tuple[Precision, int], ...] = Field(
        default=(), description="How many of its layers have which precision; empty: all have `precision`."
    )


class Constant(Value):
    """One constant of the law; its unit is its term's."""

    name: str
    value: float = Field(ge=0)
    standard_error: float = Field(ge=0)


class Scope(Value):
    """What a calibration was fitted to. Pairs are the least and the most."""

    num_models: int = Field(ge=0, description="Different shapes, whatever their depth.")
    num_samples: int = Field(ge=0)
    layer_params: tuple[int, int]
    hidden_size: tuple[int, int]
    vocab_size: tuple[int, int]
    num_layers: tuple[int, int]
    mixtures: bool = Field(default=False, description="Whether a mixture of experts was among them.")
    precisions: tuple[Precision, ...]
    kv_precisions: tuple[Precision, ...]
    computed_in: tuple[tuple[Precision, Precision], ...] = Field(
        default=(), description="Quantised weights, and the full precision that they were computed in. Empty: not told."
    )
    tp_degrees: tuple[int, ...]
    pp_degrees: tuple[int, ...]
    batches: tuple[int, ...] = Field(min_length=1, description="Ascending: the knots of the law's batch terms.")
    max_input_tokens: int
    max_context_tokens: int


class Residuals(Value):
    """Relative errors of the fit, absolute values: what is left where the constants were fitted."""

    median: float
    p90: float
    maximum: float


class Calibration(Value):
    """What a GPU type costs with one engine: enough to predict a model from its config.json alone."""

    engine: str
    engine_version: str
    gpu_type: str
    max_pp: int = Field(gt=0, description="Most pipeline stages that the engine can run here.")
    latency: tuple[Constant, ...] = Field(min_length=1, description="In ms per unit of its term.")
    covariance: tuple[tuple[float, ...], ...] = Field(
        description="Of `latency`, in its order: the lower triangle, row by row."
    )
    memory: tuple[Constant, ...] = Field(default=(), description="In GiB per unit of its term.")
    memory_margin: float = Field(
        default=0.0, ge=0, description="Largest share by which runtime and activations were ever predicted too small."
    )
    scope: Scope
    latency_residuals: Residuals
    memory_residuals: Residuals | None = None
    prefill_drift: float = Field(
        default=1.0,
        gt=0,
        description="Served prompts take so many times what was measured, which is scaled by it.",
    )
    decode_drift: float = Field(default=1.0, gt=0, description="The same of decode steps.")
    others: float = Field(
        default=0.0, ge=0, le=1,
        description="Share of the device that others took while it was measured, of the median sample.",
    )  # fmt: skip
    num_disturbed: int = Field(
        default=0, ge=0, description="Of its samples, how many are provisional: others took too much meanwhile."
    )
    version: int = Field(default=1, ge=1, description="Grows with every fit.")
    fitted_at: datetime
    cost_s: float = Field(ge=0, description="GPU-seconds that measuring took.")


class CalibrationRequested(DoorMessage):
    """Measure a GPU type now, whatever is known of it."""

    topic: ClassVar[str] = "calibration.requested.v1"
    routed_by: ClassVar[str | None] = "node"

    calibration_id: UUID
    node: str = Field(pattern=NODE_PATTERN, description="Rig that is to measure: its engine and GPU type in a word.")
    budget_s: float | None = Field(default=None, gt=0, le=86_400, description="GPU-seconds. None: the rig's own limit.")
    precisions: LayerPrecisions = Field(
        default=(), description="Quantised ones that are measured too, from now on. None: as before."
    )


class CalibrationProgressed(Message):
    """How far a calibration is; the last of them says why it ended."""

    topic: ClassVar[str] = "calibration.progressed.v1"
    routed_by: ClassVar[str | None] = "node"

    calibration_id: UUID
    node: str
    engine: str
    gpu_type: str
    num_done: int = Field(ge=0)
    num_planned: int = Field(ge=0)
    spent_s: float = Field(ge=0, description="GPU-seconds so far.")
    budget_s: float
    measuring: str = Field(default="", description="The model that runs now.")
    problem: str = Field(default="", description="Why it stopped before its end; what to do about it.")
    finished: bool = False


class CalibrationUpdated(Message):
    """A GPU type's constants were fitted anew; plans use them from now on."""

    topic: ClassVar[str] = "calibration.updated.v1"

    calibration: Calibration


class ServedTime(Value):
    """What requests of one kind took in a replica: medians of many steps."""

    batch: int = Field(gt=0, description="Requests decoded together, or prompts read together.")
    input_tokens: int = Field(gt=0, description="Mean prompt of those requests.")
    output_tokens: int = Field(gt=0, description="Mean answer so far.")
    prefill_ms: float | None = Field(default=None, gt=0)
    decode_ms: float | None = Field(default=None, gt=0)
    count: int = Field(gt=0, description="Passes that the medians are of.")


class ServedRequests(Value):
    """Requests of about one size that were answered in full."""

    input_tokens: int = Field(gt=0, description="Mean prompt.")
    output_tokens: int = Field(gt=0, description="Mean answer.")
    count: int = Field(gt=0)


class ServiceTimed(Message):
    """What a replica's passes took, and whom it answered, since it was last said. Bounded: few kinds, medians only."""

    topic: ClassVar[str] = "service.timed.v1"

    deployment_id: UUID
    node: str
    engine: str
    engine_version: str = Field(default="", description="'': the worker does not say.")
    gpu_types: tuple[str, ...] = Field(min_length=1, description="Of each stage.")
    facts: ModelFacts
    precision: Precision
    kv_precision: Precision
    tp: int = Field(gt=0)
    layers: tuple[int, ...] = Field(min_length=1)
    mix: tuple[tuple[Precision, int], ...] = Field(
        default=(), description="How many of its layers have which precision; empty: all have `precision`."
    )
    times: tuple[ServedTime, ...] = Field(default=(), max_length=32)
    requests: tuple[ServedRequests, ...] = Field(default=(), max_length=64)


class PredictionMissed(Message):
    """A deployment's served times stay outside the predicted interval; it is planned for again."""

    topic: ClassVar[str] = "prediction.missed.v1"

    deployment_id: UUID
    engine: str = ""
    gpu_type: str = ""
    what: str = Field(description="decode_ms or prefill_ms.")
    batch: int
    measured_ms: float
    predicted_ms: float
    interval_ms: tuple[float, float]


class TrafficDrifted(Message):
    """A deployment is asked lastingly otherwise than its workload's histogram says: faster, or for other sizes.

    Nothing changes by itself: what runs goes on, and whoever owns it decides.
    """

    topic: ClassVar[str] = "traffic.drifted.v1"

    deployment_id: UUID
    planned_per_s: float = Field(gt=0, description="Requests a second that it was planned for.")
    moved: float = Field(ge=0, le=1, description="Share of the requests that are of other sizes than planned.")
    served: Histogram = Field(description="What was served, by the buckets that were planned for.")
    over_s: float = Field(gt=0, description="Of the last stretch, which this is of.")
