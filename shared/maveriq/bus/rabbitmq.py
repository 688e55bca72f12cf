"""The bus on RabbitMQ 3.10 to 4.x, over one connection that comes back by itself."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit
from uuid import uuid4

import aio_pika
import structlog
from aio_pika.abc import AbstractRobustConnection

from maveriq.bus.connected import ConnectedBus
from maveriq.bus.connection import Receive, Taking
from maveriq.bus.envelope import Envelope
from maveriq.bus.handling import retry_delay_s
from maveriq.bus.interface import PUBLISH_TIMEOUT_S, RequestConsumer, Unavailable
from maveriq.bus.queues import QueueSpec
from maveriq.bus.rabbitmq_channel import TROUBLE, open_channel
from maveriq.bus.rabbitmq_receiving import Consumption, RabbitMqMailbox, declare, dismantle
from maveriq.bus.rabbitmq_sending import Publisher, Sender, until_done
from maveriq.bus.serving import RetryDelay
from maveriq.tracing import NO_SPANS, Spans

log = structlog.get_logger()

# the libraries report each try to reconnect; without a handler of the program's own that would land on its stderr
for library in ("aio_pika", "aiormq"):
    logging.getLogger(library).addHandler(logging.NullHandler())

CONNECT_TIMEOUT_S = 10.0
RECONNECT_S = 0.5
HEARTBEAT_S = 30  # a peer that is silent for twice this is lost; longer than an event loop is ever held up


class RabbitMqBus(ConnectedBus):
    """A bus on amqp:// or amqps://. Use `connect`."""

    @classmethod
    async def connect(
        cls, url: str, *, retry_delay_s: RetryDelay = retry_delay_s, spans: Spans = NO_SPANS
    ) -> "RabbitMqBus":
        """Raises Unavailable: no broker answers at the URL, or it refuses us."""
        return cls(await RabbitMqConnection.connect(url), retry_delay_s=retry_delay_s, spans=spans)


class RabbitMqConnection:
    """Keeps `Connection`."""

    system = "rabbitmq"

    def __init__(self, link: AbstractRobustConnection) -> None:
        """Use `connect`."""
        self._link = link
        self._publisher = Publisher(link)
        self._sender = Sender(link)
        self._declared: dict[str, QueueSpec] = {}
        self._receivers: list[Consumption | RabbitMqMailbox] = []
        self._closed = False
        self._lost = False

    @classmethod
    async def connect(cls, url: str) -> "RabbitMqConnection":
        try:
            link = await aio_pika.connect_robust(
                url, timeout=CONNECT_TIMEOUT_S, reconnect_interval=RECONNECT_S, heartbeat=HEARTBEAT_S
            )
        except TROUBLE as trouble:
            raise Unavailable(
                f"no RabbitMQ at {_without_password(url)}: {trouble or type(trouble).__name__}"
            ) from trouble
        connection = cls(link)
        link.close_callbacks.add(connection._on_lost)
        link.reconnect_callbacks.add(connection._on_back)
        await connection._publisher.open()
        await connection._sender.open()
        return connection

    @property
    def connected(self) -> bool:
        return self._link.connected.is_set() and not self._closed

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        async def attempt() -> None:
            channel = await open_channel(self._link)
            try:
                for queue in queues:
                    await declare(channel, queue)
                    if not queue.ends:
                        self._declared[queue.name] = queue
            finally:
                with suppress(*TROUBLE):
                    await channel.close()

        self._check_open()
        await until_done(attempt, PUBLISH_TIMEOUT_S)

    async def post(self, envelope: Envelope, key: str, *, exchange: str, timeout_s: float) -> None:
        self._check_open()
        await self._publisher.post(envelope, key, exchange=exchange, timeout_s=timeout_s)

    async def send(self, envelope: Envelope, address: str) -> None:
        await self._sender.send(envelope, address)

    async def send_confirmed(self, envelope: Envelope, address: str, *, timeout_s: float) -> None:
        self._check_open()
        await self._sender.send_confirmed(envelope, address, timeout_s=timeout_s)

    async def consume(self, queue: str, receive: Receive, taking: Taking) -> RequestConsumer:
        self._check_open()
        consumption = Consumption(self._link, queue, self._declared.get(queue), receive, taking)
        await until_done(consumption.open, PUBLISH_TIMEOUT_S)
        self._keep(consumption)
        return consumption

    async def dismantle(self, queue: str, receive: Callable[[Envelope, int], Awaitable[None]]) -> None:
        async def attempt() -> None:
            channel = await open_channel(self._link)
            try:
                await dismantle(channel, queue, receive)
            finally:
                with suppress(*TROUBLE):
                    await channel.close()

        self._check_open()
        await attempt()

    async def mailbox(self, receive: Callable[[Envelope], None], *, name: str) -> RabbitMqMailbox:
        self._check_open()
        mailbox = RabbitMqMailbox(self._link, f"{name}.{uuid4()}", receive)
        await until_done(mailbox.open, PUBLISH_TIMEOUT_S)
        self._keep(mailbox)
        return mailbox

    async def close(self) -> None:
        self._closed = True
        for lasting in (*self._receivers, self._publisher, self._sender):
            await lasting.close()
        await self._link.close()

    def _on_lost(self, *_: object) -> None:
        if not self._lost and not self._closed:  # called for each failed try
            self._lost = True
            log.warning("broker lost")

    def _on_back(self, *_: object) -> None:
        self._lost = False
        log.info("broker back")

    def _keep(self, receiver: Consumption | RabbitMqMailbox) -> None:
        self._receivers = [*(kept for kept in self._receivers if not kept.closed), receiver]

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("this bus is closed")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 5672}"
