"""Where a replica's stages sit."""

from typing import ClassVar
from uuid import UUID

from pydantic import Field

from maveriq.contracts.facts import ModelFacts
from maveriq.contracts.message import Message, Value
from maveriq.contracts.model import Model, Precision
from maveriq.contracts.plan import Candidate
from maveriq.contracts.routing import Lane


class Stage(Value):
    """A contiguous run of decoder layers on one GPU, or on `tp` GPUs side by side."""

    gpus: tuple[str, ...] = Field(min_length=1, description="GPU ids, one for each TP rank, in rank order.")
    num_layers: int = Field(gt=0)
    reserved_bytes: int = Field(gt=0, description="On each of the GPUs.")
    node: str = Field(default="", description="Of its GPUs. Empty: the placement's.")
    gpu_type: str = Field(default="", description="Of its GPUs. Empty: the candidate's.")
    precisions: tuple[Precision, ...] = Field(
        default=(), description="Of its layers' weights, first to last. Empty: the configuration's."
    )


class Placement(Value):
    """One replica on one node, or from one node on where its engine spans several."""

    replica: int = Field(ge=0, description="Number of the replica within its deployment.")
    token: str = Field(min_length=1, description="Fencing token: names this reservation, never reused.")
    number: int = Field(default=0, ge=0, description="How many placements its deployment had before.")
    node: str
    tenant: str = Field(default="default", description="On whose quota its memory counts.")
    model: Model
    facts: ModelFacts | None = Field(default=None, description="The model's shape; None: not told.")
    candidate: Candidate
    stages: tuple[Stage, ...] = Field(min_length=1, description="In pipeline order.")
    lanes: tuple[Lane, ...] = Field(
        default=(), description="Whose requests it answers. Empty: requests are not told apart by size."
    )
    gap: float = Field(
        default=0.0, ge=0, le=1,
        description="Share by which another placement might be better at most, in latency or as the strategy counts. "
        "0: it is proven that none is.",
    )  # fmt: skip

    @property
    def nodes(self) -> tuple[str, ...]:
        """Those that it holds bytes of, its own first."""
        return tuple(dict.fromkeys((self.node, *(stage.node or self.node for stage in self.stages))))

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


class PlacementRequested(Message):
    """A deployment that waits is to be tried again: memory came back, its time is over, or its reason changed."""

    topic: ClassVar[str] = "placement.requested.v1"

    deployment_id: UUID


class ConfirmationRequested(Message):
    """Its record is lost: the node's worker is to say again what it runs."""

    topic: ClassVar[str] = "confirmation.requested.v1"
    routed_by: ClassVar[str | None] = "node"

    node: str
    tokens: tuple[str, ...] = Field(min_length=1, description="That its report names, and no record knows.")


class PlacementConfirmed(Message):
    """A worker runs a replica as it was placed, and was not told to stop it: enough to make its record again."""

    topic: ClassVar[str] = "placement.confirmed.v1"

    deployment_id: UUID
    placement: Placement
