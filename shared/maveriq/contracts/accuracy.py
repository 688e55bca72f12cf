"""How good a model's variants are: asked for, measured, remembered with the model."""

from typing import Annotated, ClassVar
from uuid import UUID

from pydantic import Field

from maveriq.contracts.message import DoorMessage, Message, Value
from maveriq.contracts.model import Model, Precision

MAX_TEXT = 4_000_000  # characters; a message of some MB is no burden to the broker
AccuracyText = Annotated[str, Field(min_length=200, max_length=MAX_TEXT)]
AccuracyTokens = Annotated[int, Field(ge=64, le=1_000_000, description="Of the text, from its beginning.")]


class AccuracySubmitted(DoorMessage):
    """Measure the variants of a registered model on this text, against full precision."""

    topic: ClassVar[str] = "accuracy.submitted.v1"

    accuracy_id: UUID
    model: str = Field(min_length=1, max_length=200, description="Name of a registered model.")
    text: AccuracyText
    max_tokens: AccuracyTokens = 4096


class AccuracyRequested(Message):
    """As admitted: the model is resolved."""

    topic: ClassVar[str] = "accuracy.requested.v1"

    accuracy_id: UUID
    model: Model
    text: str
    max_tokens: int


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
    variant: str
    num_done: int = Field(ge=0, description="Tokens of the text read with this variant.")
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
    progress: tuple[VariantProgress, ...] = Field(default=(), description="In the order in which they were begun.")
    finished: bool = False
    reference: Precision | None = Field(default=None, description="What full precision was.")
    results: tuple[VariantAccuracy, ...] = ()
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
    num_tokens: int = Field(ge=0)
    problem: str = Field(default="", description="Why nothing could be measured; what to do about it.")
