"""Every replica on this node: which one a message is about, and what was last said of it."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid5

from maveriq.bus import Bus, publish_until_kept
from maveriq.contracts import (
    DeploymentDraining,
    Gpu,
    Placement,
    PlacementConfirmed,
    ReplicaFailed,
    ReplicaReady,
    ReplicaStopped,
    Running,
    ServiceTimed,
)
from maveriq_worker.devices import Devices
from maveriq_worker.engine import Device, Engine, Launch, LocalStage
from maveriq_worker.replica import Replica, failed

MAX_ENDED = 10_000  # tokens remembered: a placement handed out again, or overtaken by its drain, must not start


@dataclass(slots=True)
class Fleet:
    bus: Bus
    devices: Devices
    new_engine: Callable[[], Engine]
    engine: str
    """The engine's name, as placements call it."""
    cache_dir: Path
    threads_per_stage: int
    _running: dict[tuple[UUID, int], Replica] = field(default_factory=dict[tuple[UUID, int], Replica])
    _ended: OrderedDict[str, ReplicaFailed | ReplicaStopped] = field(
        default_factory=OrderedDict[str, ReplicaFailed | ReplicaStopped]
    )
    """By fencing token, what became of it."""
    _draining: set[str] = field(default_factory=set[str])
    """Tokens of what was told to stop and still runs."""
    _total_bytes: dict[str, int] = field(default_factory=dict[str, int])
    """By GPU id, as last read."""

    async def start(self, deployment_id: UUID, placement: Placement) -> ReplicaReady | ReplicaFailed | ReplicaStopped:
        """Start a replica, or join the start that is under way, and wait until it serves.

        The same token again gets the same answer. Another token for the same replica replaces it.
        """
        ended = self._ended.get(placement.token)
        if ended is not None:
            return ended
        key = (deployment_id, placement.replica)
        running = self._running.get(key)
        if running is None or running.placement.token != placement.token:
            launch = self._launch(placement)
            if isinstance(launch, Launch) and (short := self._shortage(key, placement)):
                launch = short
            if isinstance(launch, str):
                refused = failed(deployment_id, placement, launch)
                self._remember(refused)
                return refused
            if running is not None:
                self._remember(running.stopped)
            replaced = running
            running = Replica(self.bus, self.new_engine(), deployment_id, placement, launch, self._died)
            self._running[key] = running
            running.begin(after=replaced)
        said = await running.started()
        if isinstance(said, ReplicaFailed):
            self._drop(said)
        return said or self._ended.get(placement.token, running.stopped)

    async def drain(self, message: DeploymentDraining) -> ReplicaStopped:
        """Let a replica finish and stop it. What does not run here has stopped already."""
        running = self._running.get((message.deployment_id, message.replica))
        if running is not None and running.placement.token == message.token:
            self._draining.add(message.token)
            stopped = await running.drain()
            self._drop(stopped)
            return stopped
        stopped = ReplicaStopped(
            deployment_id=message.deployment_id, replica=message.replica, token=message.token, node=message.node
        )
        self._remember(stopped)
        return stopped

    async def stop(self) -> None:
        """End every replica now; their requests go back to the queues."""
        for replica in list(self._running.values()):
            await replica.stop()
        self._running.clear()

    def replicas(self) -> tuple[Replica, ...]:
        """That start, serve or drain here."""
        return tuple(self._running.values())

    def gpus(self) -> tuple[Gpu, ...]:
        """Every device, and what is taken of it."""
        read = self.devices.report(self.held_bytes(), self.busy_gpus())
        self._total_bytes = {gpu.id: gpu.total_bytes for gpu in read}
        return read

    def held_bytes(self) -> dict[str, int]:
        """By GPU id, what the replicas here hold of it."""
        return self._held_bytes(replica.placement for replica in self._running.values())

    def _held_bytes(self, placements: Iterable[Placement]) -> dict[str, int]:
        held: Counter[str] = Counter()
        for at in placements:
            for stage in at.stages:
                for gpu in stage.gpus:
                    held[gpu] += stage.reserved_bytes
        return dict(held)

    def running(self) -> tuple[Running, ...]:
        """All that starts, serves or drains here."""
        return tuple(
            Running(deployment_id=deployment_id, replica=replica, token=at.token, stages=at.stages)
            for (deployment_id, replica), at in self._placements()
        )

    def confirmed(self, tokens: Container[str]) -> list[PlacementConfirmed]:
        """Those of these that run here and were not told to stop."""
        return [
            PlacementConfirmed(deployment_id=deployment_id, placement=at)
            for (deployment_id, _), at in self._placements()
            if at.token in tokens and at.token not in self._draining
        ]

    def _placements(self) -> list[tuple[tuple[UUID, int], Placement]]:
        return [(key, replica.placement) for key, replica in self._running.items()]

    def busy_gpus(self) -> frozenset[str]:
        """Ids of those that some replica here is generating on."""
        busy = [replica.placement.stages for replica in self._running.values() if replica.is_busy]
        return frozenset(gpu for stages in busy for stage in stages for gpu in stage.gpus)

    def timed(self) -> tuple[ServiceTimed, ...]:
        """What each replica's passes took since this was last asked; of those that served nothing, nothing."""
        said = (replica.timed() for replica in self._running.values())
        return tuple(one for one in said if one is not None)

    async def _died(self, message: ReplicaFailed) -> None:
        self._drop(message)
        await publish_until_kept(self.bus, message, id=uuid5(message.deployment_id, f"died/{message.token}"))

    def _drop(self, last: ReplicaFailed | ReplicaStopped) -> None:
        """A replica has ended; one that replaced it stays."""
        key = (last.deployment_id, last.replica)
        running = self._running.get(key)
        if running is not None and running.placement.token == last.token:
            del self._running[key]
        self._remember(last)

    def _remember(self, last: ReplicaFailed | ReplicaStopped) -> None:
        self._draining.discard(last.token)
        self._ended[last.token] = last
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def _shortage(self, key: tuple[UUID, int], placement: Placement) -> str | None:
        """Why the GPUs cannot hold it beside what runs; None: they can.

        The allocator promises nothing twice; but what ran on before it lost its records, or came back late, may not
        have ended yet.
        """
        others = self._held_bytes(at for other, at in self._placements() if other != key)
        for gpu, wanted_bytes in self._held_bytes([placement]).items():
            held_bytes = others.get(gpu, 0)
            if held_bytes + wanted_bytes > self._total_bytes.get(gpu, held_bytes + wanted_bytes):
                return (
                    f"{gpu} has {self._total_bytes[gpu]} bytes, of which {held_bytes} are held by what still runs; "
                    f"{wanted_bytes} more were promised"
                )
        return None

    def _launch(self, placement: Placement) -> Launch | str:
        """What the engine is given; or why it cannot start here."""
        configuration = placement.candidate.configuration
        if configuration.engine != self.engine:
            return f"the plan is for engine {configuration.engine}; this node runs {self.engine}"
        stages: list[LocalStage] = []
        for stage in placement.stages:
            found: list[Device] = []
            for gpu in stage.gpus:
                device = self.devices.find(gpu)
                if device is None:
                    return f"this node has no GPU {gpu}"
                found.append(device)
            stages.append(LocalStage(tuple(found), stage.num_layers, stage.reserved_bytes, stage.precisions))
        return Launch(placement.model, configuration, tuple(stages), self.cache_dir, self.threads_per_stage)
