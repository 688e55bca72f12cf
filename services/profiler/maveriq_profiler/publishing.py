"""Says what no message caused: retried until the broker has it."""

import asyncio

import structlog

from maveriq.bus import Bus, QueueFull, Unavailable, Unroutable
from maveriq.contracts import Message

FIRST_DELAY_S = 0.2
MAX_DELAY_S = 5.0  # the allocator may start long after the profiler

log = structlog.get_logger()


async def publish_until_kept(bus: Bus, message: Message) -> None:
    """Publish, again and again while nobody consumes it or the broker does not answer."""
    delay_s = FIRST_DELAY_S
    while True:
        try:
            return await bus.publish(message)
        except (Unroutable, QueueFull, Unavailable) as error:
            if delay_s == FIRST_DELAY_S:
                log.info("waiting for the broker to take a message", topic=message.topic, why=repr(error))
            await asyncio.sleep(delay_s)
            delay_s = min(MAX_DELAY_S, delay_s * 2)
