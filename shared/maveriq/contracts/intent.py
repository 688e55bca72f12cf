"""What a producer wants served, and how well. Never says how."""

from collections.abc import Mapping
from enum import StrEnum
from math import ceil
from typing import Any, ClassVar, cast
from uuid import UUID

from pydantic import Field, ValidationError, model_validator

from maveriq.contracts.histogram import MAX_TOKENS, Histogram
from maveriq.contracts.message import DoorMessage, DoorValue, Message, Value
from maveriq.contracts.model import Model, Precision

DAY_MS = 86_400_000.0
MAX_BUCKETS = 100  # of a histogram; finer ones do not route better


class Objective(StrEnum):
    """What to make small among the candidates that meet every constraint (MaverIQ, section 4)."""

    MIN_LATENCY = "min_latency"
    """End-to-end latency of a request."""
    MIN_COST = "min_cost"
    """End-to-end latency x bytes of GPU memory held."""
    MIN_MEMORY = "min_memory"
    """Bytes of GPU memory held, over all GPUs."""
    MIN_GPU_COST = "min_gpu_cost"
    """End-to-end latency x number of GPUs."""
    MIN_PRICE = "min_price"
    """Money an hour, of all replicas."""
    MAX_THROUGHPUT = "max_throughput"
    """Output tokens a second of all replicas while the SLO holds."""


class Priority(StrEnum):
    """In this order requests are taken from their queues, and intents that wait for memory are tried."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
    """What nobody waits for: batches."""


class Strategy(StrEnum):
    """Which GPUs are preferred among those that serve equally well (MaverIQ, section 5; `best_fit` is ours)."""

    PACKING = "packing"
    """The most utilised GPUs that are not busy all the time; these last."""
    LEAST_LOADED = "least_loaded"
    HYBRID = "hybrid"
    """The most utilised below a threshold, then the least utilised."""
    BEST_FIT = "best_fit"
    """The GPUs on which least stays free; of equals the least utilised."""


class Slo(DoorValue):
    """Latency that requests of the workload's mean lengths must meet. None: no limit."""

    percentile: float | None = Field(
        default=None, ge=50, lt=100, description="Of requests that must meet the limits, e.g. 95. None: the mean does."
    )

    ttft_ms: float | None = Field(default=None, gt=0, le=DAY_MS, description="Time to first token.")
    tpot_ms: float | None = Field(default=None, gt=0, le=DAY_MS, description="Time per output token after the first.")
    e2e_ms: float | None = Field(default=None, gt=0, le=DAY_MS, description="Publish to last token.")


class Workload(DoorValue):
    """The traffic to plan for. Lengths are means, in tokens of the model's own tokenizer.

    A histogram says them too, for whoever leaves them out: each bucket counts as its longest request.
    """

    input_tokens: int = Field(default=512, gt=0, le=MAX_TOKENS)
    output_tokens: int = Field(default=128, gt=0, le=MAX_TOKENS)
    request_rate_per_s: float = Field(default=0.1, gt=0, le=1e6, description="Mean rate of arrivals.")
    concurrency: int | None = Field(
        default=None, ge=1, le=1_000_000,
        description="Requests in flight at most: clients wait for an answer before they ask again. None: no bound.",
    )  # fmt: skip
    context_tokens: int | None = Field(
        default=None, gt=1, le=MAX_TOKENS,
        description="Longest prompt plus answer of one request. None: twice the mean, at most the model's own.",
    )  # fmt: skip

    histogram: Histogram | None = Field(
        default=None,
        description="Sizes of the requests: then GPUs of several types may share them. None: all are about the mean.",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_histogram_says_the_means(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        fields = cast("Mapping[str, object]", given)
        if fields.get("histogram") is None:
            return fields
        try:
            histogram = Histogram.model_validate(fields["histogram"])
        except ValidationError:
            return fields  # told where the field itself is looked at
        return _means(histogram) | dict(fields)

    @model_validator(mode="after")
    def _context_holds_the_mean(self) -> "Workload":
        if self.context_tokens is not None and self.context_tokens < self.input_tokens + self.output_tokens:
            raise ValueError("context_tokens: must hold input_tokens + output_tokens; raise it, or leave it out")
        if self.histogram is not None and len(self.histogram.buckets) > MAX_BUCKETS:
            num_buckets = len(self.histogram.buckets)
            raise ValueError(f"histogram: has {num_buckets} buckets with requests; give at most {MAX_BUCKETS}")
        return self


def _means(histogram: Histogram) -> dict[str, object]:
    buckets = histogram.buckets
    return {
        "input_tokens": ceil(sum(share * input_up_to for input_up_to, _, share in buckets)),
        "output_tokens": ceil(sum(share * output_up_to for _, output_up_to, share in buckets)),
        "context_tokens": max(ceil(input_up_to + output_up_to) for input_up_to, output_up_to, _ in buckets),
        "request_rate_per_s": histogram.request_rate_per_s,
    }


class Intent(DoorValue):
    """Serve `model` for `workload` within `slo`."""

    model: str = Field(min_length=1, max_length=200, description="Name of a registered model.")
    objective: Objective = Objective.MIN_COST
    slo: Slo = Slo()
    workload: Workload = Workload()
    min_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="Relative to full precision. A variant not measured never passes."
    )
    allow_unmeasured_accuracy: bool = Field(
        default=False, description="Let variants pass the floor whose accuracy nobody has measured."
    )
    max_gpus: int | None = Field(default=None, ge=1, le=100_000, description="Of all replicas together.")
    max_price_per_hour: float | None = Field(
        default=None, gt=0, description="Budget for all replicas, in the currency of the prices."
    )
    gpu_types: tuple[str, ...] | None = Field(default=None, min_length=1, description="Allowed. None: any.")
    precisions: tuple[Precision, ...] | None = Field(
        default=None, min_length=1, description="Of weights, allowed. None: any that the model has a variant of."
    )
    replicas: int | None = Field(
        default=None, ge=1, le=1000,
        description="Full copies that serve side by side. None: as many as the load needs.",
    )  # fmt: skip
    strategy: Strategy | None = Field(default=None, description="Of placing. None: the allocator's own.")
    hybrid_threshold: float = Field(
        default=0.7, gt=0, le=1, description="Of strategy hybrid: share of the time that a GPU is busy."
    )
    tenant: str = Field(
        default="default", min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="On whose quota its memory counts.",
    )  # fmt: skip
    priority: Priority = Field(default=Priority.NORMAL, description="Among intents that wait for memory.")
    max_wait_s: float | None = Field(
        default=None, ge=0, le=30 * 86_400,
        description="Give up after waiting so long for memory. None: wait until it comes or is released.",
    )  # fmt: skip


class IntentSubmitted(DoorMessage):
    """A producer asks for a deployment. It chooses the id, so that asking twice is asking once."""

    topic: ClassVar[str] = "intent.submitted.v1"

    deployment_id: UUID
    intent: Intent
    dry_run: bool = Field(default=False, description="Plan and report; reserve and start nothing.")


class Fragment(Value):
    """Free bytes of one GPU, and those that deployments hold there."""

    node: str
    gpu: str = Field(description="Its id.")
    engine: str
    gpu_type: str
    free_bytes: int = Field(ge=0)
    held_bytes: int = Field(default=0, ge=0, description="By deployments: what comes back when they are released.")


class Admission(Value):
    """An intent as admitted: the model it names is resolved."""

    intent: Intent
    model: Model
    dry_run: bool = False
    fragments: tuple[Fragment, ...] = Field(
        default=(), max_length=256,
        description="Free when it was admitted, whole nodes, those with most free bytes first: what pipelines of mixed "
        "precisions, and fleets of several GPU types, are planned over, what a dry run shows first fits, and what "
        "a refused deploy is offered. The allocator seats them on what is free then.",
    )  # fmt: skip
    num_left_out: int = Field(default=0, ge=0, description="GPUs that `fragments` had no more room for.")


class IntentAccepted(Message):
    """Ingress admitted an intent; a deployment now exists under `deployment_id`."""

    topic: ClassVar[str] = "intent.accepted.v1"

    deployment_id: UUID
    admission: Admission
