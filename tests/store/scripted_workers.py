"""Workers that keep a worker's contract from a script: they honour tokens, take their time, die, and come back late."""

import asyncio
import random
from collections import Counter
from uuid import UUID

from maveriq.bus import Handler, Unavailable
from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.contracts import (
    ConfirmationRequested,
    DeploymentDraining,
    Gpu,
    NodeReported,
    NodeStarted,
    Placement,
    PlacementConfirmed,
    PlacementReserved,
    ReplicaFailed,
    ReplicaReady,
    ReplicaStopped,
    Running,
)
from maveriq.topology import WORKER

REPORT_S = 0.25
SLOWNESS_S = 0.05  # to load, or to drain


class ScriptedWorker:
    """One node. Its processes outlive a lost connection, and nothing outlives a crash."""

    def __init__(self, broker: InProcessBroker, node: str, totals: dict[str, int], chance: random.Random) -> None:
        self.node, self.totals = node, totals
        self.failing = 0.05
        self.running: dict[str, tuple[UUID, Placement]] = {}
        """By token."""
        self.num_refused = 0
        self._broker, self._chance = broker, chance
        self._ended: dict[str, ReplicaFailed | ReplicaStopped] = {}
        self._draining: set[str] = set()
        self._number = 0
        self._bus: InProcessBus | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def used(self) -> Counter[str]:
        """Bytes by GPU that its processes take."""
        used: Counter[str] = Counter()
        for _, at in self.running.values():
            for stage in at.stages:
                for gpu in stage.gpus:
                    used[gpu] += stage.reserved_bytes
        return used

    def taken(self) -> list[tuple[str, str]]:
        """GPU and token of all that runs."""
        return [(g, token) for token, (_, at) in self.running.items() for stage in at.stages for g in stage.gpus]

    async def connect(self, *, anew: bool) -> None:
        """
        Args:
            anew: its process started; else it was out of reach, and runs what it ran.
        """
        self._bus = InProcessBus(self._broker, retry_delay_s=lambda attempt: 0.02)
        ready = asyncio.Event()
        handlers = [
            Handler(PlacementReserved, self._reserved, prefetch=32),
            Handler(DeploymentDraining, self._drain, prefetch=32),
            Handler(ConfirmationRequested, self._confirm),
        ]
        self._tasks = [asyncio.create_task(self._bus.run(WORKER, handlers, node=self.node, ready=ready.set))]
        await ready.wait()
        if anew:
            await self._bus.publish(NodeStarted(node=self.node))
        self._tasks.append(asyncio.create_task(self._report(self._bus)))

    async def vanish(self, *, crashed: bool) -> None:
        """Nothing more is heard of it; where it crashed, nothing runs on."""
        assert self._bus is not None
        bus, self._bus = self._bus, None
        await bus.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if crashed:
            self.running.clear()
            self._ended.clear()
            self._draining.clear()

    async def _report(self, bus: InProcessBus) -> None:
        while True:
            self._number += 1
            gpus = tuple(
                Gpu(id=gpu, gpu_type="A6000", total_bytes=total, foreign_bytes=0) for gpu, total in self.totals.items()
            )
            running = tuple(
                Running(deployment_id=owner, replica=at.replica, token=token, stages=at.stages)
                for token, (owner, at) in self.running.items()
            )
            report = NodeReported(node=self.node, engine="torch", gpus=gpus, running=running, number=self._number)
            try:
                await bus.publish(report)
            except Unavailable:
                return
            await asyncio.sleep(REPORT_S)

    async def _reserved(self, message: PlacementReserved) -> ReplicaReady | ReplicaFailed | ReplicaStopped:
        at = message.placement
        told = {"deployment_id": message.deployment_id, "replica": at.replica, "token": at.token, "node": self.node}
        if at.token in self._ended:
            return self._ended[at.token]
        if at.token not in self.running:
            wanted = Counter[str]()
            for stage in at.stages:
                wanted.update(dict.fromkeys(stage.gpus, stage.reserved_bytes))
            used = self.used()
            if any(used[gpu] + num_bytes > self.totals[gpu] for gpu, num_bytes in wanted.items()):
                self.num_refused += 1
                return self._end(ReplicaFailed(**told, detail="what still runs leaves no room"))
            self.running[at.token] = (message.deployment_id, at)
            await asyncio.sleep(self._chance.random() * SLOWNESS_S)
            if at.token in self.running and self._chance.random() < self.failing:
                return self._end(ReplicaFailed(**told, detail="it did not start"))
        return self._ended.get(at.token) or ReplicaReady(**told, load_s=1)

    async def _drain(self, message: DeploymentDraining) -> ReplicaStopped:
        self._draining.add(message.token)
        if message.token in self.running:
            await asyncio.sleep(self._chance.random() * SLOWNESS_S)
        stopped = ReplicaStopped(**message.model_dump(exclude={"goes_on"}))
        self._end(stopped)
        return stopped

    async def _confirm(self, message: ConfirmationRequested) -> list[PlacementConfirmed]:
        return [
            PlacementConfirmed(deployment_id=owner, placement=at)
            for token, (owner, at) in self.running.items()
            if token in message.tokens and token not in self._draining
        ]

    def _end(self, last: ReplicaFailed | ReplicaStopped) -> ReplicaFailed | ReplicaStopped:
        self.running.pop(last.token, None)
        self._draining.discard(last.token)
        self._ended[last.token] = last
        return last
