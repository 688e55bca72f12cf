"""Who sends what to whom. Read top to bottom: a datum's way through the system."""

import re
from dataclasses import dataclass
from uuid import UUID

from maveriq.contracts import (
    AccuracyMeasured,
    AccuracyProgressed,
    AccuracyRequested,
    AccuracySubmitted,
    CalibrationProgressed,
    CalibrationRequested,
    CalibrationUpdated,
    ChunksProduced,
    ConfirmationRequested,
    DefragmentationProgressed,
    DefragmentationRequested,
    DeploymentChanged,
    DeploymentDraining,
    DeploymentFailed,
    DeploymentKept,
    DeploymentReleased,
    DeploymentRestored,
    DeploymentWaiting,
    FingerprintMeasured,
    IntentAccepted,
    IntentSubmitted,
    InventoryChanged,
    MeasurementProgressed,
    MeasurementRequested,
    MemoryDrifted,
    MemoryFreed,
    MemoryHeld,
    MemoryRequested,
    Message,
    MessageRefused,
    ModelRegistered,
    ModelSubmitted,
    MoveRequested,
    NodeReported,
    NodeStarted,
    PlacementConfirmed,
    PlacementRequested,
    PlacementReserved,
    PlanComputed,
    PlanPreviewed,
    PredictionMissed,
    Priority,
    ReleaseAccepted,
    ReleaseRequested,
    ReplicaFailed,
    ReplicaLost,
    ReplicaReady,
    ReplicaStopped,
    RequestCancelled,
    RequestSubmitted,
    ServiceTimed,
    SweepDue,
    TrafficDrifted,
)

EXCHANGE = "maveriq"  # topic exchange, durable
MAX_ATTEMPTS = 5  # a message that failed so often is dead-lettered
MAX_RETRY_DELAY_S = 30.0
QUEUE_LENGTH = 10_000  # messages a service's queue holds before publishers are refused
RESTING_LENGTH = 1_000_000  # messages that rest: one a deployment
REQUEST_QUEUE_LENGTH = 1_000  # requests that wait for a deployment before publishers are refused
MAX_DEADLINE_S = 600.0  # for requests that bring no deadline of their own
DEAD_REQUESTS = "requests.dead"  # expired, or given up after MAX_ATTEMPTS: ingress answers them


@dataclass(frozen=True, slots=True)
class Service:
    """What one service consumes and emits; it refuses to start with other handlers."""

    name: str
    consumes: tuple[type[Message], ...]
    emits: tuple[type[Message], ...]
    per_node: bool = False
    """Whether messages routed by node go to one node's own queue; else the service hears those of all nodes."""

    @property
    def dead_queue(self) -> str:
        return f"{self.name}.dead"

    def queue(self, message: type[Message], node: str | None = None) -> str:
        """The durable queue of one topic; a service bound to a node has its own of those routed by node."""
        mine = f".{node}" if node and message.routed_by == "node" else ""
        return f"{self.name}.{message.topic}{mine}"

    def binding(self, message: type[Message], node: str | None = None) -> str:
        if message.routed_by is None:
            return message.topic
        return f"{message.topic}.{node}" if node and message.routed_by == "node" else f"{message.topic}.#"


# Producers, and the command line. They follow DeploymentChanged, and hear ChunksProduced and
# MessageRefused on their mailbox; RequestSubmitted goes straight to a deployment's request queue.
PRODUCER_SENDS = (
    ModelSubmitted, IntentSubmitted, ReleaseRequested, RequestSubmitted, RequestCancelled, CalibrationRequested,
    AccuracySubmitted, DefragmentationRequested,
)  # fmt: skip
PRODUCER_HEARS = (
    ModelRegistered, DeploymentChanged, ChunksProduced, MessageRefused, AccuracyProgressed, AccuracyMeasured,
)  # fmt: skip

# Beside what it consumes from its queues a service may listen on a mailbox, where what it misses costs time alone:
# ingress hears DeploymentChanged, a worker RequestCancelled, a profiler of a CPU PlacementReserved and how starts end.

INGRESS = Service(
    "ingress",
    consumes=(
        ModelSubmitted, IntentSubmitted, ReleaseRequested,
        MeasurementProgressed, FingerprintMeasured, PlanComputed, PlanPreviewed,
        DeploymentWaiting, PlacementReserved, ReplicaReady,
        ReplicaFailed, ReplicaLost, DeploymentDraining, DeploymentReleased, DeploymentFailed, DeploymentRestored,
        InventoryChanged, MemoryDrifted,
        PredictionMissed, TrafficDrifted, CalibrationUpdated, CalibrationProgressed,
        AccuracySubmitted, AccuracyProgressed, AccuracyMeasured, DefragmentationProgressed,
    ),
    emits=(
        ModelRegistered, IntentAccepted, ReleaseAccepted, DeploymentChanged, CalibrationRequested, AccuracyRequested,
        DefragmentationRequested,
    ),
)  # fmt: skip
PROFILER = Service(
    "profiler",
    consumes=(
        IntentAccepted, MeasurementRequested, CalibrationRequested, MemoryHeld, ServiceTimed, AccuracyRequested,
    ),
    emits=(
        MeasurementRequested, MeasurementProgressed, FingerprintMeasured, DeploymentFailed,
        MemoryRequested, MemoryFreed,
        CalibrationProgressed, CalibrationUpdated, PredictionMissed, TrafficDrifted, AccuracyProgressed,
        AccuracyMeasured,
    ),
    per_node=True,
)  # fmt: skip
PLANNER = Service("planner", consumes=(FingerprintMeasured,), emits=(PlanComputed, PlanPreviewed, DeploymentFailed))
ALLOCATOR = Service(
    "allocator",
    consumes=(
        PlanComputed, PlacementRequested, ReplicaReady, ReplicaFailed, ReplicaStopped, ReleaseAccepted,
        NodeReported, NodeStarted, SweepDue, ReplicaLost, PlacementConfirmed, DeploymentKept,
        MemoryRequested, MemoryFreed, DefragmentationRequested, MoveRequested,
    ),
    emits=(
        PlacementReserved, PlacementRequested, DeploymentWaiting, ReplicaLost, DeploymentDraining, DeploymentReleased,
        DeploymentFailed, InventoryChanged, MemoryHeld, SweepDue, ConfirmationRequested, MemoryDrifted,
        DefragmentationProgressed, MoveRequested, DeploymentKept, DeploymentRestored,
    ),
)  # fmt: skip
WORKER = Service(
    "worker",
    consumes=(PlacementReserved, DeploymentDraining, ConfirmationRequested),
    emits=(NodeStarted, NodeReported, ReplicaReady, ReplicaFailed, ReplicaStopped, ServiceTimed, PlacementConfirmed),
    per_node=True,
)

SERVICES = (INGRESS, PROFILER, PLANNER, ALLOCATOR, WORKER)

MESSAGES: dict[str, type[Message]] = {
    message.topic: message
    for group in (PRODUCER_SENDS, PRODUCER_HEARS, *((*s.consumes, *s.emits) for s in SERVICES))
    for message in group
}


def request_queue(deployment_id: UUID, priority: Priority, gpu_type: str | None = None) -> str:
    """The durable, bounded queue of a deployment's requests at one priority.

    Args:
        gpu_type: of a deployment whose requests are routed by size, those planned for this type; None: for any replica.
    """
    lane = "" if gpu_type is None else f"{_NO_WORD.sub('-', gpu_type)}."
    return f"requests.{deployment_id}.{lane}{priority}"


_NO_WORD = re.compile(r"[^A-Za-z0-9_-]+")  # what may not be in one word of a queue's name
