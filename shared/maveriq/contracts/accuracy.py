"""How good a model's variants are, and what each layer loses: asked for, measured, remembered with the model."""

from typing import Annotated, ClassVar
from uuid import UUID

from pydantic import AfterValidator, Field

from maveriq.contracts.message import DoorMessage, Message, Value
from maveriq.contracts.model import LayerSensitivity, Model, Precision

LAYER_PRECISIONS = (Precision.INT8, Precision.INT4)
"""What the torch engine makes of one layer's weights while the others stay whole."""

MAX_TEXT = 4_000_000  # characters; a message of some MB is no burden to the broker
AccuracyText = Annotated[str, Field(min_length=200, max_length=MAX_TEXT)]
AccuracyTokens = Annotated[int, Field(ge=64, le=1_000_000, description="Of the text, from its beginning.")]


def _quantised_once(precisions: tuple[Precision, ...]) -> tuple[Precision, ...]:
    for precision in precisions:
        if precision not in LAYER_PRECISIONS:
            raise ValueError(f"no engine makes {precision} of single layers; choose of {', '.join(LAYER_PRECISIONS)}")
        if precisions.count(precision) > 1:
            raise ValueError(f"{precision} is listed twice")
    return precisions


LayerPrecisions = Annotated[
    tuple[Precision, ...], AfterValidator(_quantised_once), Field(max_length=len(LAYER_PRECISIONS))
]


def layers_label(precision: Precision) -> str:
    """What a measurement of the layers in a precision is called beside variants' labels."""
    return f"layers in {precision}"


class AccuracySubmitted(DoorMessage):
    """Measure the variants of a registered model, or its layers, on this text, against full precision."""

    topic: ClassVar[str] = "accuracy.submitted.v1"

    accuracy_id: UUID
    model: str = Field(min_length=1, max_length=200, description="Name of a registered model.")
    text: AccuracyText
    max_tokens: AccuracyTokens = 4096
    layers: LayerPrecisions = Field(
        default=(),
        description="Measure instead what the output loses by each layer alone in each of these. Empty: the variants.",
    )


class AccuracyRequested(Message):
    """As admitted: the model is resolved."""

    topic: ClassVar[str] = "accuracy.requested.v1"

    accuracy_id: UUID
    model: Model
    text: str
    max_tokens: int
    layers: tuple[Precision, ...] = Field(
        default=(), description="In which each layer alone is measured. Empty: the variants are."
    )


class VariantAccuracy(Value):
    """One variant on the text."""

    variant: str = Field(description="Its label.")
    perplexity: float | None = Field(default=None, gt=0)
    agreement: float | None = Field(
        default=None, ge=0, le=1, description="Share of positions whose most likely token is full precision's."
    )
    relative: float | None = Field(
        default=None, ge=0, description="Full precision's perplexity over its own: what a floor is compared with."
    )
    problem: str = Field(default="", description="Why it was not measured.")


class AccuracyProgressed(Message):
    """How far a measurement is."""

    topic: ClassVar[str] = "accuracy.progressed.v1"

    accuracy_id: UUID
    variant: str = Field(description="Its label; of layers, `layers in <precision>`.")
    num_done: int = Field(ge=0, description="Tokens of the text read with this variant; of layers, passes made.")
    num_tokens: int = Field(gt=0)


class VariantProgress(Value):
    variant: str
    num_done: int
    num_tokens: int


class AccuracyRecord(Value):
    """A measurement as it is now."""

    accuracy_id: UUID
    model: str
    variants: tuple[str, ...] = Field(description="Labels of those to measure.")
    max_tokens: int
    layers: tuple[Precision, ...] = Field(default=(), description="In which each layer alone is measured.")
    progress: tuple[VariantProgress, ...] = Field(default=(), description="In the order in which they were begun.")
    finished: bool = False
    reference: Precision | None = Field(default=None, description="What full precision was.")
    results: tuple[VariantAccuracy, ...] = ()
    sensitivity: LayerSensitivity | None = Field(default=None, description="Of the layers, where these were asked for.")
    num_tokens: int = 0
    problem: str = Field(default="", description="Why nothing could be measured; what to do about it.")


class AccuracyMeasured(Message):
    """All variants that the rig could run, and why the others were not measured."""

    topic: ClassVar[str] = "accuracy.measured.v1"

    accuracy_id: UUID
    model: Model
    reference: Precision | None = Field(
        default=None, description="What full precision was: bf16 where fp32 lacks room."
    )
    variants: tuple[VariantAccuracy, ...]
    sensitivity: LayerSensitivity | None = Field(
        default=None, description="Of the layers, where these were asked for; the reference's column is 0."
    )
    num_tokens: int = Field(ge=0)
    problem: str = Field(default="", description="Why nothing could be measured; what to do about it.")
