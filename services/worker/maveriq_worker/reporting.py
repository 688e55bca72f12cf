"""Tells the allocator that this node is up and what its devices have, over and over."""

import asyncio
from collections.abc import Callable

import structlog

from maveriq.bus import Bus, QueueFull, Unavailable, Unroutable
from maveriq.contracts import Gpu, NodeReported, NodeStarted
from maveriq_worker.publishing import publish_until_kept

log = structlog.get_logger()


async def report(bus: Bus, node: str, engine: str, read_gpus: Callable[[], tuple[Gpu, ...]], every_s: float) -> None:
    """NodeStarted once, NodeReported at once and then for ever."""
    await publish_until_kept(bus, NodeStarted(node=node))
    await publish_until_kept(bus, NodeReported(node=node, engine=engine, gpus=read_gpus()))
    while True:
        await asyncio.sleep(every_s)
        try:
            await bus.publish(NodeReported(node=node, engine=engine, gpus=read_gpus()))
        except (Unroutable, QueueFull, Unavailable) as error:
            log.warning("report not taken; the next one will tell", why=repr(error))
