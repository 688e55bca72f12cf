"""The life of a deployment: each state is named for the last fact known of it."""

from datetime import datetime
from enum import StrEnum
from typing import ClassVar
from uuid import UUID

from pydantic import Field

from maveriq.contracts.calibration import Calibration, PredictionMissed, TrafficDrifted
from maveriq.contracts.fingerprint import Fingerprint
from maveriq.contracts.intent import Intent
from maveriq.contracts.message import DoorMessage, Message, Value
from maveriq.contracts.placement import Placement
from maveriq.contracts.plan import Counteroffer, Plan
from maveriq.contracts.routing import Route


class State(StrEnum):
    """In order: a deployment only ever moves down this list."""

    ACCEPTED = "accepted"
    MEASURED = "measured"
    PLANNED = "planned"
    WAITING = "waiting"
    """For memory; `Deployment.waiting` says why."""
    RESERVED = "reserved"
    READY = "ready"
    DRAINING = "draining"
    RELEASED = "released"
    FAILED = "failed"


_ORDER = tuple(State)


def advance(now: State, fact: State) -> State:
    """The state once `fact` is known too.

    The later of the two, so a fact seen twice, or after a later one, changes nothing: duplicates
    and reordering need no other care.
    """
    return max(now, fact, key=_ORDER.index)


class FailureReason(StrEnum):
    MODEL_UNREADABLE = "model_unreadable"
    """config.json cannot be read, or the architecture cannot be cut."""
    PROBE_FAILED = "probe_failed"
    NO_FEASIBLE_PLAN = "no_feasible_plan"
    NO_CAPACITY = "no_capacity"
    """It does not fit even where nothing else runs, or waited as long as its intent allows."""
    QUOTA_EXCEEDED = "quota_exceeded"
    ENGINE_FAILED = "engine_failed"


class DeploymentFailed(Message):
    """The last service able to try has given up. Nothing is, or stays, reserved."""

    topic: ClassVar[str] = "deployment.failed.v1"

    deployment_id: UUID
    reason: FailureReason
    detail: str
    counteroffers: tuple[Counteroffer, ...] = Field(
        default=(), description="Nearest intents that would be met, one relaxed constraint each."
    )


class DeploymentWaiting(Message):
    """Its plan does not fit into what is free now; it is tried again when memory comes back."""

    topic: ClassVar[str] = "deployment.waiting.v1"

    deployment_id: UUID
    detail: str = Field(description="What is missing, and how much.")
    since: datetime
    num_missing: int = Field(ge=1, description="Replicas that have no seat.")
    num_placed: int = Field(default=0, ge=0, description="Placements so far: a later one ends this, or is told anew.")
    told_at: datetime | None = Field(default=None, description="Of two with as many placements the later counts.")


class ReplicaLost(Message):
    """A replica's node did not report for the grace period, or lost a GPU of it: its reservation is reclaimed."""

    topic: ClassVar[str] = "replica.lost.v1"

    deployment_id: UUID
    replica: int
    token: str
    node: str
    detail: str

    @property
    def fact(self) -> str:
        return self.token


class ReplicaReady(Message):
    """The engine runs and the deployment's request queues are being consumed."""

    topic: ClassVar[str] = "replica.ready.v1"

    deployment_id: UUID
    replica: int
    token: str
    node: str
    load_s: float = Field(ge=0)
    stage_bytes: tuple[int, ...] = Field(
        default=(), description="Weights and KV cache that each stage allocated on each of its GPUs; empty: not known."
    )


class ReplicaFailed(Message):
    """The engine did not start, or died. Its requests are back in the queue."""

    topic: ClassVar[str] = "replica.failed.v1"

    deployment_id: UUID
    replica: int
    token: str
    node: str
    detail: str
    checkpoint_unusable: bool = Field(
        default=False,
        description="The checkpoint cannot be read or converted: no candidate with it will start.",
    )
    out_of_memory: bool = Field(
        default=False, description="It did not fit into the bytes reserved: the estimate of such stages is too low."
    )


class ReplicaStopped(Message):
    """A draining replica answered its last request and gave its memory back."""

    topic: ClassVar[str] = "replica.stopped.v1"

    deployment_id: UUID
    replica: int
    token: str
    node: str


class ReleaseRequested(DoorMessage):
    """A producer no longer needs a deployment."""

    topic: ClassVar[str] = "release.requested.v1"

    deployment_id: UUID


class ReleaseAccepted(Message):
    """The deployment exists and is to be released, whatever state it is in."""

    topic: ClassVar[str] = "release.accepted.v1"

    deployment_id: UUID


class DeploymentDraining(Message):
    """The node's worker is to finish what is queued for a replica and stop it."""

    topic: ClassVar[str] = "deployment.draining.v1"
    routed_by: ClassVar[str | None] = "node"

    deployment_id: UUID
    node: str
    replica: int
    token: str
    goes_on: bool = Field(
        default=False, description="The deployment goes on without this replica: it moved, or its token is an old one."
    )


class DeploymentReleased(Message):
    """Nothing of the deployment runs, and nothing is reserved for it."""

    topic: ClassVar[str] = "deployment.released.v1"

    deployment_id: UUID


class Failure(Value):
    reason: FailureReason
    detail: str
    counteroffers: tuple[Counteroffer, ...] = ()


class Deployment(Value):
    """All that is known of a deployment, gathered by ingress."""

    deployment_id: UUID
    state: State
    intent: Intent
    dry_run: bool = False
    accepted_at: datetime
    changed_at: datetime
    measuring: str | None = Field(default=None, description="What is measured of its model; None: nothing more.")
    fingerprints: tuple[Fingerprint, ...] = ()
    calibrations: tuple[Calibration, ...] = Field(default=(), description="That its latest plan rests on.")
    prediction_missed: PredictionMissed | None = Field(
        default=None, description="The latest time that it was served otherwise than predicted, and planned for again."
    )
    traffic_drifted: TrafficDrifted | None = Field(
        default=None, description="The latest time that it was asked lastingly otherwise than it was planned for."
    )
    plan: Plan | None = None
    placements: tuple[Placement, ...] = Field(default=(), description="At most one a replica: the latest.")
    ready_replicas: tuple[int, ...] = ()
    routes: tuple[Route, ...] = Field(
        default=(),
        description="Which GPU type answers requests of which size: of those that serve now. Empty: any replica does.",
    )
    replica_failed: ReplicaFailed | None = Field(
        default=None, description="The latest engine that did not start, or died: its replica is seated anew."
    )
    failure: Failure | None = None
    waiting: str | None = Field(default=None, description="What memory it waits for; None: it does not wait.")


class DeploymentChanged(Message):
    """A deployment's new state. Bind a queue to `deployment.changed.v1.<deployment_id>` to follow one."""

    topic: ClassVar[str] = "deployment.changed.v1"
    routed_by: ClassVar[str | None] = "deployment_id"

    deployment_id: UUID
    deployment: Deployment
