"""The bus within one process: for `maveriq up` and tests. Nothing outlives the process."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from maveriq.bus.connected import ConnectedBus
from maveriq.bus.connection import Receive, Taking
from maveriq.bus.envelope import Envelope
from maveriq.bus.handling import retry_delay_s
from maveriq.bus.inprocess_broker import Consumer, Held, InProcessBroker
from maveriq.bus.interface import MailboxGone, RequestConsumer, Unavailable, Unroutable
from maveriq.bus.queues import QueueSpec
from maveriq.bus.serving import RetryDelay
from maveriq.tracing import NO_SPANS, Spans

__all__ = ["InProcessBroker", "InProcessBus"]

UNLIMITED = 2**31


class InProcessBus(ConnectedBus):
    """One bus of those that share a broker; closing it is what a process's death is to RabbitMQ."""

    def __init__(
        self, broker: InProcessBroker, *, retry_delay_s: RetryDelay = retry_delay_s, spans: Spans = NO_SPANS
    ) -> None:
        super().__init__(InProcessConnection(broker), retry_delay_s=retry_delay_s, spans=spans)


class InProcessConnection:
    """Keeps `Connection`."""

    system = "in-process"

    def __init__(self, broker: InProcessBroker) -> None:
        self._broker = broker
        self._consumers: list[Consumer] = []
        self._mailboxes: list[InProcessMailbox] = []
        self._closed = False

    @property
    def connected(self) -> bool:
        return not self._closed

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        self._check_open()
        for queue in queues:
            self._broker.declare(queue)

    async def post(self, envelope: Envelope, key: str, *, exchange: str, timeout_s: float) -> None:
        self._check_open()
        self._broker.post(envelope, key, exchange=exchange)
        await asyncio.sleep(0)  # as on a network, others come to their turn meanwhile

    async def send(self, envelope: Envelope, address: str) -> None:
        if not self._closed and address in self._broker.queues:
            self._broker.post(envelope, address, exchange="")

    async def send_confirmed(self, envelope: Envelope, address: str, *, timeout_s: float) -> None:
        try:
            await self.post(envelope, address, exchange="", timeout_s=timeout_s)
        except Unroutable as gone:
            raise MailboxGone(address) from gone

    async def consume(self, queue: str, receive: Receive, taking: Taking) -> RequestConsumer:
        self._check_open()
        if queue not in self._broker.queues:
            raise Unroutable(f"there is no queue {queue}")
        consumer = Consumer(self._broker.queues[queue], receive, taking)
        self._consumers.append(consumer)
        if not taking.paused:
            await consumer.resume()
        return consumer

    async def dismantle(self, queue: str, receive: Callable[[Envelope, int], Awaitable[None]]) -> None:
        self._check_open()
        found = self._broker.queues.get(queue)
        if found is None:
            return
        waiting = tuple(found.waiting)
        self._broker.delete(queue)
        for stored in waiting:
            await receive(stored.envelope, stored.deliveries + 1)

    async def mailbox(self, receive: Callable[[Envelope], None], *, name: str) -> "InProcessMailbox":
        self._check_open()
        address = f"{name}.{uuid4()}"
        self._broker.declare(QueueSpec(name=address))

        async def take(held: Held) -> None:
            await held.ack()
            receive(held.envelope)

        consumer = await self.consume(address, take, Taking(UNLIMITED))  # type: ignore[arg-type]  # ours alone
        mailbox = InProcessMailbox(address, self._broker, consumer)
        self._mailboxes.append(mailbox)
        return mailbox

    async def close(self) -> None:
        self._closed = True
        for mailbox in self._mailboxes:
            await mailbox.close()
        for consumer in self._consumers:
            await consumer.die()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("this bus is closed")


@dataclass(frozen=True, slots=True)
class InProcessMailbox:
    """Keeps `Mailbox`."""

    address: str
    broker: InProcessBroker
    consumer: RequestConsumer

    async def bind(self, routing_key: str) -> None:
        self.broker.bind(self.address, routing_key)

    async def unbind(self, routing_key: str) -> None:
        self.broker.unbind(self.address, routing_key)

    async def close(self) -> None:
        await self.consumer.cancel()
        self.broker.delete(self.address)
