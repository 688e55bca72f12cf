"""Replicas moved so that fragments become one: asked for, planned, and done one after the other."""

from typing import ClassVar
from uuid import UUID

from pydantic import Field

from maveriq.contracts.message import DoorMessage, Message, Value
from maveriq.contracts.placement import Stage


class DefragmentationRequested(DoorMessage):
    """Find the fewest moves that make room, and make them if `apply`."""

    topic: ClassVar[str] = "defragmentation.requested.v1"

    defragmentation_id: UUID
    apply: bool = Field(default=False, description="False: only plan and tell.")
    free_gpu: str | None = Field(
        default=None, min_length=1, description="Id of a GPU to be emptied. None: room for the first that waits."
    )


class ReplicaMove(Value):
    """A replica that starts in another place; where it was is drained once it serves there."""

    deployment_id: UUID
    replica: int = Field(ge=0)
    token: str = Field(description="Of the placement that it leaves.")
    node: str
    stages: tuple[Stage, ...] = Field(description="That it leaves.")
    to_node: str
    to_stages: tuple[Stage, ...]


class DefragmentationProgressed(Message):
    """The moves, and how many of them are done."""

    topic: ClassVar[str] = "defragmentation.progressed.v1"

    defragmentation_id: UUID
    apply: bool
    goal: str = Field(description="What they make room for, in words.")
    waiter: UUID | None = Field(default=None, description="The waiting deployment that they make room for.")
    free_gpu: str | None = None
    moves: tuple[ReplicaMove, ...] = Field(default=(), description="In this order.")
    is_fewest: bool = Field(default=False, description="It is proven that fewer do not do.")
    num_done: int = Field(default=0, ge=0)
    finished: bool = False
    problem: str = Field(default="", description="Why it cannot be done, or did not go on; '': no problem.")


class MoveRequested(Message):
    """The next move of a defragmentation is due: the one before it is done."""

    topic: ClassVar[str] = "move.requested.v1"

    defragmentation_id: UUID
    number: int = Field(ge=0, description="Of the move, from 0; as many as there are: all are done.")
