"""Tells the allocator what this node has and runs, and the profiler what passes took, over and over."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from maveriq.bus import Bus, QueueFull, Unavailable, Unroutable, publish_until_kept
from maveriq.contracts import Gpu, Message, NodeReported, NodeStarted, Running, ServiceTimed

log = structlog.get_logger()


@dataclass(slots=True)
class Reporting:
    bus: Bus
    node: str
    engine: str
    read_gpus: Callable[[], tuple[Gpu, ...]]
    read_running: Callable[[], tuple[Running, ...]]
    read_times: Callable[[], tuple[ServiceTimed, ...]]
    _number: int = 0

    async def run(self, every_s: float) -> None:
        """NodeStarted once, NodeReported at once and then for ever, with it what was served since the last."""
        await publish_until_kept(self.bus, NodeStarted(node=self.node))
        await publish_until_kept(self.bus, self._report())
        while True:
            await asyncio.sleep(every_s)
            for message in (self._report(), *self.read_times()):
                await self._say(message)

    def _report(self) -> NodeReported:
        """Numbered by the clock: those of a worker that came up anew are later than its last."""
        self._number = max(self._number + 1, time.time_ns() // 1_000_000)
        return NodeReported(
            node=self.node, engine=self.engine, gpus=self.read_gpus(), running=self.read_running(), number=self._number
        )

    async def _say(self, message: Message) -> None:
        try:
            await self.bus.publish(message)
        except (Unroutable, QueueFull, Unavailable) as error:
            log.warning("report not taken; the next one will tell", topic=message.topic, error=repr(error))
