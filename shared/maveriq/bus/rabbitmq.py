"""The bus on RabbitMQ."""

from maveriq.bus.connected import ConnectedBus


class RabbitMqBus(ConnectedBus):
    """A bus on amqp:// or amqps://."""

    @classmethod
    async def connect(cls, url: str) -> "RabbitMqBus":
        raise ConnectionError("RabbitMQ follows in the next commit")
