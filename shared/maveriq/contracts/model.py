"""A model that can be served, and the variants in which it exists."""

from enum import StrEnum
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


BYTES_PER_ELEMENT = {
    Precision.FP32: 4.0,
    Precision.BF16: 2.0,
    Precision.FP16: 2.0,
    Precision.FP8: 1.0,
    Precision.INT8: 1.0,
    Precision.INT4: 0.53,  # 4 bits and a 16-bit scale for each group of 128, plus zero points
}

FULL_PRECISIONS = (Precision.FP32, Precision.BF16, Precision.FP16)


class Variant(DoorValue):
    """One precision in which a model can be served."""

    precision: Precision
    source: str | None = Field(
        default=None, min_length=1, description="Checkpoint of this variant; None: the model's own, converted."
    )
    accuracy: float | None = Field(
        default=None, ge=0, le=1.5,
        description="Relative to full precision (1 = as good). None: not measured.",
    )  # fmt: skip


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

    @model_validator(mode="after")
    def _one_variant_each(self) -> "Model":
        seen = [variant.precision for variant in self.variants]
        if len(set(seen)) != len(seen):
            raise ValueError("variants: each precision may be listed once")
        return self


class ModelSubmitted(DoorMessage):
    """A producer or operator registers a model (again: the last registration counts)."""

    topic: ClassVar[str] = "model.submitted.v1"

    model: Model


class ModelRegistered(Message):
    """Intents may name this model from now on."""

    topic: ClassVar[str] = "model.registered.v1"

    model: Model
