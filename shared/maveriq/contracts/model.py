"""A model that can be served, and the variants in which it exists."""

from enum import StrEnum
from math import inf
from typing import ClassVar

from pydantic import Field, model_validator

from maveriq.contracts.message import DoorMessage, DoorValue, Message


class Precision(StrEnum):
    """Number format of weights or of the KV cache."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"
    """Grouped, as GPTQ and AWQ write it."""
    INT4_CHANNEL = "int4_channel"
    """One scale an output channel, as TensorRT-LLM's weight-only int4."""


BYTES_PER_ELEMENT = {
    Precision.FP32: 4.0,
    Precision.BF16: 2.0,
    Precision.FP16: 2.0,
    Precision.FP8: 1.0,
    Precision.INT8: 1.0,
    Precision.INT4: 0.53,  # 4 bits and a 16-bit scale for each group of 128, plus zero points
    Precision.INT4_CHANNEL: 0.5,
}

FULL_PRECISIONS = (Precision.FP32, Precision.BF16, Precision.FP16)


class Provenance(StrEnum):
    """Where a variant's accuracy comes from."""

    ENTERED = "entered"
    """By whoever registered the model."""
    LM_EVAL = "lm_eval"
    """Result files of lm-evaluation-harness."""
    MEASURED = "measured"
    """Here, by `maveriq accuracy`."""


class Variant(DoorValue):
    """One form in which a model can be served: a checkpoint of its own, or what the engine makes of the model's."""

    name: str | None = Field(
        default=None, min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:+-]*$",
        description="None: its precision, with that of the KV cache where they differ.",
    )  # fmt: skip
    precision: Precision
    kv_precision: Precision | None = Field(
        default=None, description="None: as the weights where these are not quantised, else bf16."
    )
    source: str | None = Field(
        default=None, min_length=1, description="Checkpoint of this variant; None: the model's own, converted."
    )
    accuracy: float | None = Field(
        default=None, ge=0, le=1.5,
        description="Relative to full precision (1 = as good). None: not measured.",
    )  # fmt: skip
    provenance: Provenance | None = Field(default=None, description="None: entered, where there is an accuracy.")
    evidence: str = Field(default="", max_length=2000, description="Tasks, files or text that the accuracy is from.")

    @property
    def cache_precision(self) -> Precision:
        if self.kv_precision is not None:
            return self.kv_precision
        return self.precision if self.precision in FULL_PRECISIONS else Precision.BF16

    @property
    def label(self) -> str:
        """Names it within its model."""
        if self.name is not None:
            return self.name
        return (
            self.precision
            if self.kv_precision in (None, self.precision)
            else f"{self.precision}+kv-{self.kv_precision}"
        )


class LayerSensitivity(DoorValue):
    """What the model's output loses by each layer in each precision, all others whole, as it was measured.

    Measured here it is in nats a token: the mean Kullback-Leibler divergence of the next token from full precision's.
    Those of several layers add up, and exp(-sum) is about the accuracy relative to full precision.
    """

    precisions: tuple[Precision, ...] = Field(min_length=1, description="Columns of `layers`.")
    layers: tuple[tuple[float, ...], ...] = Field(min_length=1, max_length=1000, description="A row for each layer.")
    evidence: str = Field(default="", max_length=2000, description="Text and engine that it was measured with.")

    @model_validator(mode="after")
    def _rectangular(self) -> "LayerSensitivity":
        for i, row in enumerate(self.layers):
            if len(row) != len(self.precisions):
                raise ValueError(
                    f"layers.{i}: has {len(row)} numbers; give {len(self.precisions)}, one for each precision"
                )
            if not all(0 <= lost < inf for lost in row):
                raise ValueError(f"layers.{i}: has a number that is negative or not finite")
        return self


class Model(DoorValue):
    """What producers name in an intent, and where its weights are."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")
    source: str = Field(
        min_length=1, max_length=4096,
        description="Hugging Face id, local folder with config.json, or path of a .gguf file, as the workers see it.",
    )  # fmt: skip
    variants: tuple[Variant, ...] = Field(
        default=(Variant(precision=Precision.FP32, accuracy=1.0), Variant(precision=Precision.BF16, accuracy=1.0),
                 Variant(precision=Precision.FP16, accuracy=1.0)),
        min_length=1, max_length=32,
    )  # fmt: skip
    sensitivity: LayerSensitivity | None = Field(
        default=None, description="Of its layers. None: not measured, and no pipeline of mixed precisions is planned."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> "Model":
        seen = [variant.label for variant in self.variants]
        twice = sorted({label for label in seen if seen.count(label) > 1})
        if twice:
            raise ValueError(f"variants: {twice[0]} is listed twice; give each a name of its own")
        return self

    def variant(self, label: str, precision: Precision) -> Variant | None:
        """The variant of that label; where the label is '' the first of that precision."""
        if label:
            return next((variant for variant in self.variants if variant.label == label), None)
        return next((variant for variant in self.variants if variant.precision is precision), None)


class ModelSubmitted(DoorMessage):
    """A producer or operator registers a model (again: the last registration counts)."""

    topic: ClassVar[str] = "model.submitted.v1"

    model: Model


class ModelRegistered(Message):
    """Intents may name this model from now on."""

    topic: ClassVar[str] = "model.registered.v1"

    model: Model
