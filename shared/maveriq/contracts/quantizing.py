"""How a model is split over unequal GPUs, and in which precisions: what `maveriq quantize` asks and is told."""

from enum import StrEnum
from typing import Self

from pydantic import Field, JsonValue, model_validator

from maveriq.contracts.calibration import Calibration
from maveriq.contracts.facts import ModelFacts
from maveriq.contracts.fault import QuestionRefused
from maveriq.contracts.intent import Workload
from maveriq.contracts.message import DoorValue, Value
from maveriq.contracts.model import LayerSensitivity, Model

Matrix = tuple[tuple[float, ...], ...]


class QuantizingRefused(QuestionRefused):
    """What `maveriq quantize` asked cannot be answered."""


class Aim(StrEnum):
    """What a split is best at."""

    LATENCY = "latency"
    """Of all requests, from the first prompt to the last token."""
    THROUGHPUT = "throughput"
    """Of one batch after another: milliseconds that the busiest stage takes for each."""
    PRICE = "price"
    """Of all requests: latency times what its GPUs cost."""


class CostForm(StrEnum):
    """How tables of LLM-PQ's kind are priced."""

    THEIRS = "theirs"
    """As LLM-PQ does."""
    ONCE = "once"
    """Embedding and lm_head counted once, not for every layer of the first GPU."""
    FULL = "full"
    """And every step of every micro-batch, lm_head on the last GPU."""


class FreeGpu(DoorValue):
    """Memory that a stage may take."""

    name: str = Field(min_length=1)
    gpu_type: str = Field(min_length=1)
    free_bytes: int = Field(gt=0)
    price_per_hour: float = Field(default=0.0, ge=0)


class LawQuestion(DoorValue):
    """A model over GPUs that there are, as its law predicts it."""

    model: Model
    facts: ModelFacts
    calibrations: tuple[Calibration, ...]
    gpus: tuple[FreeGpu, ...] = Field(min_length=1)
    sensitivity: LayerSensitivity
    workload: Workload
    num_requests: int = Field(default=1, ge=1, description="Held at the same time.")
    aim: Aim = Aim.LATENCY
    ordered: bool = Field(default=False, description="Stages on the GPUs as they are listed, on all of them.")
    uniform_stages: bool = Field(default=False, description="The engine runs one precision a stage.")
    max_stages: int = Field(default=8, ge=1)


class QuantizingRequest(Value):
    """Exactly one of tables and law says what layers cost."""

    tables: JsonValue = Field(default=None, description="LLM-PQ's, parsed.")
    form: CostForm = Field(default=CostForm.FULL, description="Of tables.")
    law: LawQuestion | None = None
    theta: float | None = Field(default=None, ge=0, description="ms a unit of sensitivity. None: the tables', or 0.")
    most_sensitivity: float | None = Field(default=None, ge=0, description="Of all layers together: accuracy's floor.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.tables is None) == (self.law is None):
            raise ValueError("needs tables, or a model with a law")
        return self


class QuantizedStage(Value):
    gpu: str
    num_layers: int = Field(gt=0)
    precisions: tuple[str, ...] = Field(description="Of its layers, or groups of layers, first to last.")
    prefill_ms: float = Field(description="One micro-batch of prompts.")
    decode_ms: float = Field(description="One step of one micro-batch.")
    layer_bytes: int = Field(description="That its layers take, with their cache.")
    free_bytes: int = Field(description="That it has for layers.")


class QuantizedPipeline(Value):
    stages: tuple[QuantizedStage, ...]
    prefill_batch: int
    decode_batch: int
    objective: float
    latency_ms: float = Field(description="What is minimised, without sensitivity and price.")
    sensitivity: float = Field(description="Of all layers together.")
    gap: float = Field(description="Relative: no split of any pipeline asked about is better by more.")
    num_pipelines: int = Field(description="Orders and micro-batches.")
    num_searched: int = Field(description="That a bound did not rule out.")
