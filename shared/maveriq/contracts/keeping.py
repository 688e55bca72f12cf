"""Copies of the allocator's records, which outlive the store that it works on."""

from datetime import datetime
from typing import ClassVar
from uuid import UUID

from pydantic import Field

from maveriq.contracts.intent import Admission
from maveriq.contracts.message import Message, Value
from maveriq.contracts.plan import Plan


class KeptReplica(Value):
    """One that has a seat, or waits for one."""

    replica: int = Field(ge=0, description="Number of the replica within its deployment.")
    rank: int = Field(description="Of the first candidate that it may get; -1: its part of the plan's fleet.")
    part: str = Field(default="", description="GPU type of the part of the fleet that it is. Empty: of none.")


class DeploymentKept(Message):
    """A copy of a deployment's record, which goes round on the broker until the deployment ends: allocators make it
    anew each time, and make the record from it where their store was emptied.
    """

    topic: ClassVar[str] = "deployment.kept.v1"
    rest_s: ClassVar[float] = 60.0

    deployment_id: UUID
    admission: Admission
    plan: Plan
    since: datetime = Field(description="It waits, or was placed, since then: its place in the line.")
    replicas: tuple[KeptReplica, ...] = Field(default=(), description="Empty: none has a seat yet, nor had one.")
    version: int = Field(ge=0, description="Of the record that this is a copy of; 0: not known.")
    rounds: int = Field(ge=0, description="That it went. Of a deployment's copies only the one of most goes on.")
    mark: UUID = Field(description="Tells it from others of the same round; those are from messages handled twice.")


class DeploymentRestored(Message):
    """The store was emptied, and a deployment's record is made again from its copy: this is what was known of it."""

    topic: ClassVar[str] = "deployment.restored.v1"

    deployment_id: UUID
    admission: Admission
    plan: Plan
