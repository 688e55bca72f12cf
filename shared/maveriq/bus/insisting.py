"""Says what no message caused: retried until the broker has it."""

import asyncio
from uuid import UUID, uuid4

import structlog

from maveriq.bus.interface import Bus, QueueFull, Unavailable, Unroutable
from maveriq.contracts import Message

FIRST_DELAY_S = 0.2
MAX_DELAY_S = 5.0  # who consumes it may start long after whoever says it

log = structlog.get_logger()


async def publish_until_kept(bus: Bus, message: Message, *, id: UUID | None = None) -> None:
    """Publish, again and again under one id, while nobody consumes it or the broker does not answer."""
    id, delay_s = id or uuid4(), FIRST_DELAY_S
    while True:
        try:
            return await bus.publish(message, id=id)
        except (Unroutable, QueueFull, Unavailable) as error:
            if delay_s == FIRST_DELAY_S:
                log.info("waiting for the broker to take a message", caused=message.routing_key, error=repr(error))
            await asyncio.sleep(delay_s)
            delay_s = min(MAX_DELAY_S, delay_s * 2)
