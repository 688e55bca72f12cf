"""Chooses the broker by its URL."""

from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.bus.interface import Bus
from maveriq.bus.rabbitmq import RabbitMqBus


async def connect(url: str) -> Bus:
    """A bus on amqp://, amqps:// (RabbitMQ) or memory:// (this process alone, a broker of its own)."""
    if url.startswith("memory:"):
        return InProcessBus(InProcessBroker())
    return await RabbitMqBus.connect(url)
