"""Where a replica's stages sit."""

from typing import ClassVar
from uuid import UUID

from pydantic import Field

from maveriq.contracts.facts import ModelFacts
from maveriq.contracts.message import Message, Value
from maveriq.contracts.model import Model
from maveriq.contracts.plan import Candidate


class Stage(Value):
    """A contiguous run of decoder layers on one GPU, or on `tp` GPUs side by side."""

    gpus: tuple[str, ...] = Field(min_length=1, description="GPU ids, one for each TP rank, in rank order.")
    num_layers: int = Field(gt=0)
    reserved_bytes: int = Field(gt=0, description="On each of the GPUs.")


class Placement(Value):
    """One replica on one node."""

    replica: int = Field(ge=0, description="Number of the replica within its deployment.")
    token: str = Field(min_length=1, description="Fencing token: names this reservation, never reused.")
    node: str
    model: Model
    facts: ModelFacts | None = Field(default=None, description="The model's shape; None: not told.")
    candidate: Candidate
    stages: tuple[Stage, ...] = Field(min_length=1, description="In pipeline order.")

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(stage.num_layers for stage in self.stages)


class PlacementReserved(Message):
    """The bytes are held; the node's worker is to start the replica."""

    topic: ClassVar[str] = "placement.reserved.v1"
    routed_by: ClassVar[str | None] = "node"

    deployment_id: UUID
    node: str
    placement: Placement
