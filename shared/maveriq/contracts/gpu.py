"""GPUs, what is free on them and who holds the rest."""

import re
from typing import ClassVar
from uuid import UUID

from pydantic import Field

from maveriq.contracts.message import Message, Value
from maveriq.contracts.placement import Stage

NODE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"  # a word of a routing key: no dots


def rig_name(engine: str, gpu_type: str) -> str:
    """Engine and GPU type as one word of a routing key: all that are alike are measured as one."""
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{engine} {gpu_type}").strip("-").lower()


class Gpu(Value):
    """One device as its node's worker sees it."""

    id: str = Field(min_length=1, description="NVML UUID, or <node>/cpu:<n> for a declared CPU device.")
    gpu_type: str = Field(min_length=1, description="Product name; fingerprints are kept per type.")
    total_bytes: int = Field(gt=0)
    foreign_bytes: int = Field(ge=0, description="Taken by processes that are not ours.")
    own_bytes: int | None = Field(
        default=None, ge=0, description="Taken by our processes; None: the driver does not tell."
    )
    utilisation: float | None = Field(
        default=None, ge=0, le=1, description="Share of the last two minutes in which it was busy; None: not known."
    )
    linked: tuple[str, ...] = Field(default=(), description="Ids of the GPUs that it reaches over NVLink.")
    near: tuple[str, ...] = Field(
        default=(),
        description="Ids of the GPUs that it reaches through PCIe switches alone. Empty: none, or not known.",
    )


class Running(Value):
    """A replica that a worker starts, serves or drains: the heartbeat of its reservation."""

    deployment_id: UUID
    replica: int = Field(ge=0)
    token: str = Field(min_length=1, description="Fencing token of its placement.")
    stages: tuple[Stage, ...] = Field(min_length=1, description="As its placement has them.")


class NodeReported(Message):
    """What a node has and what it runs. Sent when its worker starts, and every few seconds."""

    topic: ClassVar[str] = "node.reported.v1"

    node: str = Field(pattern=NODE_PATTERN)
    engine: str
    gpus: tuple[Gpu, ...] = Field(min_length=1)
    running: tuple[Running, ...] | None = Field(default=None, description="None: not told.")
    number: int | None = Field(
        default=None, ge=0, description="Grows with each report of a worker: one that was overtaken counts no more."
    )
    spans_nodes: bool = Field(default=False, description="Its engine runs the stages of one replica on several nodes.")


class NodeStarted(Message):
    """A worker came up and runs nothing: whatever is reserved on its node must be told to it again."""

    topic: ClassVar[str] = "node.started.v1"

    node: str = Field(pattern=NODE_PATTERN)


class Holding(Value):
    """Bytes of one GPU held for one replica, or for a calibration."""

    deployment_id: UUID = Field(description="Of a calibration: its hold.")
    replica: int
    bytes: int = Field(gt=0)
    calibration: bool = Field(default=False, description="Held to measure in, for a while.")


class GpuState(Value):
    gpu: Gpu
    holdings: tuple[Holding, ...] = ()
    drift: str | None = Field(default=None, description="How its memory is not as reserved; None: it is.")

    @property
    def free_bytes(self) -> int:
        """The fragment: what neither a reservation nor a foreign process holds."""
        return max(0, self.gpu.total_bytes - self.gpu.foreign_bytes - sum(h.bytes for h in self.holdings))


class InventoryChanged(Message):
    """Who holds what on a node, after a report, a reservation or a release."""

    topic: ClassVar[str] = "inventory.changed.v1"

    node: str = Field(pattern=NODE_PATTERN)
    engine: str
    gpus: tuple[GpuState, ...]
    headroom_bytes: int = Field(default=0, ge=0, description="That nobody takes, of its GPUs together.")
    silent: bool = Field(default=False, description="Its worker reports no more: nothing is placed there.")


class SweepDue(Message):
    """It is time to look for workers that fell silent: what allocators tell one another every few seconds.

    It comes through the broker, so that while that is away, and no report comes either, nobody is taken for silent.
    """

    topic: ClassVar[str] = "sweep.due.v1"

    mark: UUID | None = Field(default=None, description="Tells it from others when it is handed out again.")


class MemoryDrifted(Message):
    """A GPU's memory is not as reserved: our processes take more than was held, or others take what was held."""

    topic: ClassVar[str] = "memory.drifted.v1"

    node: str = Field(pattern=NODE_PATTERN)
    gpu: str
    reserved_bytes: int = Field(ge=0, description="Held by reservations.")
    own_bytes: int | None = Field(default=None, ge=0, description="That our processes take.")
    foreign_bytes: int = Field(ge=0)
    total_bytes: int = Field(gt=0)
    detail: str


class MemoryRequested(Message):
    """A profiler wants bytes of one GPU for a while, to measure in. Asking again with the same id keeps them."""

    topic: ClassVar[str] = "memory.requested.v1"

    hold_id: UUID
    rig: str = Field(pattern=NODE_PATTERN, description="Whom to answer.")
    gpu_type: str
    gpus: tuple[str, ...] = Field(default=(), description="Ids of those that will do; empty: any of the type.")
    bytes: int = Field(gt=0)
    keep_s: float = Field(gt=0, le=3600, description="Given back by itself when not asked for again for so long.")


class MemoryHeld(Message):
    """The answer: held, or why not."""

    topic: ClassVar[str] = "memory.held.v1"
    routed_by: ClassVar[str | None] = "node"

    hold_id: UUID
    node: str = Field(pattern=NODE_PATTERN, description="The rig that asked.")
    gpu: str | None = Field(description="None: no GPU has so much free now.")
    problem: str = ""
    largest_bytes: int = Field(
        default=0, ge=0, description="Most that any GPU that will do could ever have free; 0: none of them reports."
    )


class MemoryFreed(Message):
    """The profiler has done with it."""

    topic: ClassVar[str] = "memory.freed.v1"

    hold_id: UUID
