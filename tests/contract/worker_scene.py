"""A worker on the in-process bus, its engines stepped by the test, and what its neighbours hear of it."""

import asyncio
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.contracts import (
    DeploymentDraining,
    Message,
    Placement,
    PlacementReserved,
)
from maveriq_worker.__main__ import serve
from maveriq_worker.devices import CpuDevices
from maveriq_worker.settings import Settings
from tests.unit.worker.engine_double import NODE, Heard, SteppedEngine, placement, until

M = TypeVar("M", bound=Message)


MIB = 2**20


@dataclass
class Scene:
    """A worker, and beside it a producer and whoever else listens."""

    broker: InProcessBroker
    outside: InProcessBus
    bus: InProcessBus
    engines: list[SteppedEngine]
    deployment_id: UUID
    heard: Heard = field(default_factory=Heard)
    serving: "asyncio.Task[None] | None" = None

    def said(self, kind: type[M]) -> list[M]:
        """What the worker published of one kind, as its neighbours decode it."""
        return [message for message in self.heard.messages if isinstance(message, kind)]

    async def hears(self, kind: type[M], number: int = 1) -> M:
        await until(lambda: len(self.said(kind)) >= number)
        return self.said(kind)[number - 1]

    async def reserve(self, where: Placement | None = None) -> None:
        where = where or placement()
        await self.outside.publish(PlacementReserved(deployment_id=self.deployment_id, node=NODE, placement=where))

    async def drain(self, token: str = "token-1", replica: int = 0) -> None:
        await self.outside.publish(
            DeploymentDraining(deployment_id=self.deployment_id, node=NODE, replica=replica, token=token)
        )

    def new_engine(self) -> SteppedEngine:
        fresh = SteppedEngine()
        self.prepare(fresh)
        self.engines.append(fresh)
        return fresh

    def prepare(self, engine: SteppedEngine) -> None:
        """Tests replace it."""

    async def stop(self) -> None:
        if self.serving is not None:
            self.serving.cancel()
            await asyncio.wait({self.serving})


def start(scene: Scene) -> None:
    env = {"MAVERIQ_NODE": NODE, "MAVERIQ_DEVICES": "cpu:0=300MiB,cpu:1=220MiB", "MAVERIQ_REPORT_S": "0.05"}
    settings = Settings.from_env(env)
    devices = CpuDevices(NODE, settings.cpu_devices, settings.threads_per_stage)
    scene.serving = asyncio.create_task(serve(scene.bus, settings, devices, lambda: scene.new_engine()))
