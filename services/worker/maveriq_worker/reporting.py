"""Tells the allocator what this node has, and the profiler what passes took, over and over."""

import asyncio
from collections.abc import Callable

import structlog

from maveriq.bus import Bus, QueueFull, Unavailable, Unroutable
from maveriq.contracts import Gpu, Message, NodeReported, NodeStarted, ServiceTimed
from maveriq_worker.publishing import publish_until_kept

log = structlog.get_logger()


async def report(
    bus: Bus,
    node: str,
    engine: str,
    read_gpus: Callable[[], tuple[Gpu, ...]],
    read_times: Callable[[], tuple[ServiceTimed, ...]],
    every_s: float,
) -> None:
    """NodeStarted once, NodeReported at once and then for ever, with it what was served since the last."""
    await publish_until_kept(bus, NodeStarted(node=node))
    await publish_until_kept(bus, NodeReported(node=node, engine=engine, gpus=read_gpus()))
    while True:
        await asyncio.sleep(every_s)
        for message in (NodeReported(node=node, engine=engine, gpus=read_gpus()), *read_times()):
            await _say(bus, message)


async def _say(bus: Bus, message: Message) -> None:
    try:
        await bus.publish(message)
    except (Unroutable, QueueFull, Unavailable) as error:
        log.warning("report not taken; the next one will tell", topic=message.topic, why=repr(error))
