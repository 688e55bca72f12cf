"""How good a model's variants are: asked for, measured, remembered with the model."""

from typing import ClassVar
from uuid import UUID

from pydantic import Field

from maveriq.contracts.message import DoorMessage, Message, Value
from maveriq.contracts.model import Model

MAX_TEXT = 4_000_000  # characters; a message of some MB is no burden to the broker


class AccuracySubmitted(DoorMessage):
    """Measure the variants of a registered model on this text, against full precision."""

    topic: ClassVar[str] = "accuracy.submitted.v1"

    accuracy_id: UUID
    model: str = Field(min_length=1, max_length=200, description="Name of a registered model.")
    text: str = Field(min_length=200, max_length=MAX_TEXT)
    max_tokens: int = Field(default=4096, ge=64, le=1_000_000, description="Of the text, from its beginning.")


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


class AccuracyMeasured(Message):
    """All variants that the rig could run, and why the others were not measured."""

    topic: ClassVar[str] = "accuracy.measured.v1"

    accuracy_id: UUID
    model: Model
    variants: tuple[VariantAccuracy, ...]
    num_tokens: int = Field(ge=0)
    problem: str = Field(default="", description="Why nothing could be measured; what to do about it.")
