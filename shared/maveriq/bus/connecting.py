"""Chooses the broker by its URL."""

from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.bus.interface import Bus
from maveriq.bus.rabbitmq import RabbitMqBus
from maveriq.tracing import NO_SPANS, Spans


async def connect(url: str, spans: Spans = NO_SPANS) -> Bus:
    """A bus on amqp://, amqps:// (RabbitMQ) or memory:// (this process alone, a broker of its own)."""
    if url.startswith("memory:"):
        return InProcessBus(InProcessBroker(), spans=spans)
    return await RabbitMqBus.connect(url, spans=spans)
