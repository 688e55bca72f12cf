"""Configurations that would meet an intent, best first, and why the others lost."""

from enum import StrEnum
from typing import ClassVar
from uuid import UUID

from pydantic import Field, model_validator

from maveriq.contracts.facts import ModelFacts
from maveriq.contracts.intent import Admission, Intent
from maveriq.contracts.message import Message, Value
from maveriq.contracts.model import Precision
from maveriq.contracts.routing import Route


class Configuration(Value):
    """One way to run one replica."""

    engine: str
    gpu_type: str
    tp: int = Field(gt=0)
    pp: int = Field(gt=0, description="Pipeline stages.")
    precision: Precision
    kv_precision: Precision
    max_batch: int = Field(gt=0, description="Requests decoded together: the decode slots.")
    context_tokens: int = Field(gt=0, description="Longest prompt plus answer of one slot.")
    variant: str = Field(default="", description="Label of the model's variant; '': the first of this precision.")

    @property
    def num_gpus(self) -> int:
        return self.tp * self.pp


class StageMemory(Value):
    """What a stage takes of each of its GPUs: per rank, TP already divided.

    stage bytes = runtime_bytes + num_layers * layer_bytes + [first] first_bytes + [last] last_bytes,
    and `tied_saving_bytes` less where one stage is both first and last.
    """

    layer_bytes: int = Field(gt=0, description="Weights of one layer and the KV cache of its slots.")
    first_bytes: int = Field(ge=0, description="Embeddings.")
    last_bytes: int = Field(ge=0, description="lm_head and final norm.")
    tied_saving_bytes: int = Field(ge=0, description="Counted twice above when embedding and lm_head are one.")
    runtime_bytes: int = Field(ge=0, description="Context, workspace and activations.")

    def of_stage(self, num_layers: int, *, first: bool, last: bool) -> int:
        """Bytes on each GPU of a stage."""
        total = self.runtime_bytes + num_layers * self.layer_bytes
        total += self.first_bytes * first + self.last_bytes * last
        return total - self.tied_saving_bytes * (first and last)


class Interval(Value):
    """Where the true value lies in nine cases of ten."""

    low: float
    high: float


class Basis(StrEnum):
    """What a prediction rests on."""

    CALIBRATION = "calibration"
    """The law with its GPU type's constants: the model itself was not run."""
    FINGERPRINT = "fingerprint"
    """Samples of this model, cut to a few layers."""
    MAVERIQ = "maveriq"
    """MaverIQ's published method, from the same samples."""
    AICONFIGURATOR = "aiconfigurator"
    """The vendor's tables."""


class Prediction(Value):
    """What one replica is expected to do for the intent's workload: means, unless named otherwise."""

    ttft_ms: float = Field(gt=0)
    tpot_ms: float = Field(gt=0, description="At the batch that the workload's rate keeps busy.")
    e2e_ms: float = Field(gt=0)
    throughput_tokens_per_s: float = Field(gt=0, description="Output tokens with every slot busy.")
    memory_bytes: int = Field(gt=0, description="Over all GPUs of the replica, layers split evenly.")
    gpu_s: float = Field(gt=0, description="GPU-seconds a request: e2e x number of GPUs.")
    accuracy: float | None = Field(description="Relative to full precision; None: not measured.")
    percentile: float = Field(default=95.0, description="Of the three that follow.")
    ttft_percentile_ms: float | None = None
    tpot_percentile_ms: float | None = None
    e2e_percentile_ms: float | None = None
    goodput_tokens_per_s: float | None = Field(
        default=None, description="Output tokens at the highest rate that still meets the SLO; None: there is none."
    )
    price_per_hour: float | None = Field(default=None, description="Of one replica; None: a price is not known.")
    price_per_million_tokens: float | None = Field(default=None, description="Of output, with every slot busy.")
    ttft_interval_ms: Interval | None = None
    tpot_interval_ms: Interval | None = None
    e2e_interval_ms: Interval | None = None
    throughput_interval_tokens_per_s: Interval | None = None
    memory_interval_bytes: Interval | None = None
    basis: Basis = Basis.FINGERPRINT
    others: float = Field(
        default=0.0, ge=0, le=1,
        description="Share of the device that others took while what this rests on was measured: above 0.05 it is "
        "provisional, and its intervals are as much wider.",
    )  # fmt: skip


class PlannedStage(Value):
    """One stage of a pipeline that the planner has split itself, because its layers differ in precision."""

    gpu_type: str
    precisions: tuple[Precision, ...] = Field(min_length=1, description="Of its layers' weights, first to last.")
    reserved_bytes: int = Field(gt=0, description="On its GPU: weights, KV cache, ends and runtime.")

    @property
    def num_layers(self) -> int:
        return len(self.precisions)


class LayerSpeed(Value):
    """How fast a GPU type is for one configuration."""

    gpu_type: str
    decode_ms: float = Field(gt=0, description="One layer's share of a decode step at the candidate's batch.")


class Candidate(Value):
    """A configuration that meets the intent, with what the allocator needs to place it."""

    configuration: Configuration
    prediction: Prediction
    memory: StageMemory
    score: float = Field(description="The objective's value; lower is better.")
    replicas: int = Field(default=1, ge=1, description="That the load needs, or that the intent asks for.")
    mixable: tuple[LayerSpeed, ...] = Field(
        default=(),
        description="Its own GPU type and those with which the same configuration meets the intent too: a replica "
        "may be mixed of these. Empty: only of its own type.",
    )
    stages: tuple[PlannedStage, ...] = Field(
        default=(),
        description="Layers of several precisions, split by the planner, one GPU a stage: each stage is seated as it "
        "is. Embedding, lm_head and activations have the configuration's precision. Empty: the allocator splits.",
    )


class Rejection(Value):
    """A configuration that does not meet the intent, and by how much."""

    configuration: Configuration
    prediction: Prediction
    constraint: str = Field(description="Field of the intent that is missed, e.g. slo.ttft_ms.")
    wanted: float
    predicted: float | None = Field(description="None: not measured.")
    replicas: int = Field(default=1, ge=0, description="That the load would need.")


class Counteroffer(Value):
    """The nearest intent that would be met: one constraint relaxed."""

    constraint: str = Field(description="Field of the intent to change.")
    wanted: float
    offered: float
    intent: Intent
    words: str = Field(default="", description="The change, where a number does not say it: lists count their members.")


class PlannedFleet(Value):
    """The cheapest replicas for requests of the sizes that the intent tells: of several GPU types that share them
    where that is cheaper, else of one.
    """

    parts: tuple[Candidate, ...] = Field(
        min_length=1, description="Each of another GPU type, with its own number of replicas; predicted for its share."
    )
    routes: tuple[Route, ...] = Field(min_length=1, description="Which of them answers requests of which size.")
    score: float = Field(description="The objective's value, of all replicas; lower is better.")
    bound: float | None = Field(
        default=None, description="No fleet of these configurations does better: proven. None: nothing is proven."
    )
    single_score: float | None = Field(
        default=None, description="Of the best fleet of one type for the same requests; None: no type serves alone."
    )
    price_per_hour: float | None = Field(default=None, description="Of all replicas; None: a price is not known.")

    @property
    def is_shared(self) -> bool:
        """Whether requests are told apart by size."""
        return len(self.parts) > 1

    @property
    def gpu_types(self) -> tuple[str, ...]:
        return tuple(part.configuration.gpu_type for part in self.parts)


class Plan(Value):
    facts: ModelFacts
    candidates: tuple[Candidate, ...] = Field(
        default=(), description="Best first; at most 64. Empty: only the fleet meets the intent, all of it."
    )
    rejected: tuple[Rejection, ...] = Field(default=(), description="Nearest miss first; at most 64.")
    front: tuple[Candidate, ...] = Field(
        default=(), description="No other meets the intent with less latency, memory and price and more accuracy."
    )
    num_considered: int = Field(gt=0)
    num_fitting: int | None = Field(
        default=None, ge=0,
        description="Of a dry run: so many candidates, the first, fit what was free. None: nobody looked.",
    )  # fmt: skip
    fleet: PlannedFleet | None = Field(
        default=None, description="Placed before any candidate, where there is room for it. None: none is better."
    )

    @model_validator(mode="after")
    def _something_meets_the_intent(self) -> "Plan":
        if not self.candidates and self.fleet is None:
            raise ValueError("candidates: a plan without a fleet has one at least")
        return self

    @property
    def offered(self) -> tuple[Candidate, ...]:
        """What may be placed, best first: candidates; where there is none, the parts of the fleet."""
        return self.candidates or (self.fleet.parts if self.fleet is not None else ())

    @property
    def num_replicas(self) -> int:
        """That the best of it has."""
        if self.candidates:
            return self.candidates[0].replicas
        return sum(part.replicas for part in self.offered)


class PlanComputed(Message):
    """The candidates for an admitted intent; the allocator takes the first that fits."""

    topic: ClassVar[str] = "plan.computed.v1"

    deployment_id: UUID
    admission: Admission
    plan: Plan


class PlanPreviewed(Message):
    """The plan of a dry run: shown, never placed."""

    topic: ClassVar[str] = "plan.previewed.v1"

    deployment_id: UUID
    admission: Admission
    plan: Plan
