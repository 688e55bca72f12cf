"""The bus on any connection: `interface.Bus`, kept once for RabbitMQ and for the in-process twin."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import structlog

from maveriq.bus.connection import Connection, Taking
from maveriq.bus.envelope import Envelope, seal
from maveriq.bus.handler import Handler
from maveriq.bus.handling import decode, retry_delay_s
from maveriq.bus.interface import (
    PUBLISH_TIMEOUT_S,
    DeadRequest,
    Encoded,
    Mailbox,
    Rejected,
    RequestConsumer,
    RequestDelivery,
)
from maveriq.bus.queues import dead_request_queues, request_queues
from maveriq.bus.requests import close_requests, consume_dead_requests, consume_requests
from maveriq.bus.serving import RetryDelay, Serving
from maveriq.contracts import Message, Priority, RequestSubmitted
from maveriq.topology import EXCHANGE, MAX_DEADLINE_S, MESSAGES, Service, request_queue
from maveriq.tracing import NO_SPANS, Spans, current

log = structlog.get_logger()


class ConnectedBus:
    """Keeps `Bus` on a `Connection`."""

    def __init__(
        self, connection: Connection, *, retry_delay_s: RetryDelay = retry_delay_s, spans: Spans = NO_SPANS
    ) -> None:
        self.spans = spans
        self._connection = connection
        self._retry_delay_s = retry_delay_s

    @property
    def connected(self) -> bool:
        return self._connection.connected

    async def close(self) -> None:
        await self._connection.close()

    async def publish(
        self,
        message: Message,
        *,
        id: UUID | None = None,
        cause: UUID | None = None,
        reply_to: str | None = None,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> None:
        envelope = seal(message, id or uuid4(), cause=cause, reply_to=reply_to, trace=current())
        await self._connection.post(envelope, message.routing_key, exchange=EXCHANGE, timeout_s=timeout_s)

    async def run(
        self,
        service: Service,
        handlers: Sequence[Handler[Any]],
        *,
        node: str | None = None,
        ready: Callable[[], None] | None = None,
    ) -> None:
        await Serving(self._connection, service, self._retry_delay_s, self.spans).run(handlers, node, ready)

    async def mailbox(self, receive: Callable[[Message], None], *, name: str = "client") -> Mailbox:
        def opened(envelope: Envelope) -> None:
            message = MESSAGES.get(envelope.topic or "")
            if message is None:
                log.warning("message of an unknown topic dropped", topic=envelope.topic)
                return
            try:
                decoded = decode(message, envelope.topic, envelope.body)
            except Rejected as rejected:
                log.warning("malformed message dropped", topic=envelope.topic, error=str(rejected))
            else:
                receive(decoded)

        return await self._connection.mailbox(opened, name=name)

    async def send(self, address: str, message: Message | Encoded, *, confirm: bool) -> None:
        if isinstance(message, Encoded):
            envelope = Envelope(message.body, topic=message.topic, message_id=str(uuid4()))
        else:
            envelope = seal(message, uuid4())
        if confirm:
            await self._connection.send_confirmed(envelope, address, timeout_s=PUBLISH_TIMEOUT_S)
        else:
            await self._connection.send(envelope, address)

    async def open_requests(self, deployment_id: UUID, gpu_types: Sequence[str] = ()) -> None:
        await self._connection.declare((*dead_request_queues(), *request_queues(deployment_id, gpu_types)))

    async def close_requests(
        self, deployment_id: UUID, answer: Callable[[DeadRequest], Awaitable[None]], gpu_types: Sequence[str] = ()
    ) -> None:
        await close_requests(self._connection, deployment_id, answer, gpu_types)

    async def submit(
        self,
        request: RequestSubmitted,
        *,
        reply_to: str,
        priority: Priority = Priority.NORMAL,
        deadline_s: float = MAX_DEADLINE_S,
        gpu_type: str | None = None,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> None:
        now = time.time()
        sealed = seal(request, request.request_id, reply_to=reply_to, trace=current())
        envelope = replace(
            sealed,
            expires_s=max(0.0, deadline_s),
            sent_at=now,
            # text: aiormq sends floats in single precision
            headers={**sealed.headers, "deadline": f"{now + deadline_s:.3f}"},
        )
        queue = request_queue(request.deployment_id, priority, gpu_type)
        await self._connection.post(envelope, queue, exchange="", timeout_s=timeout_s)

    async def consume_requests(
        self,
        deployment_id: UUID,
        receive: Callable[[RequestDelivery], None],
        *,
        slots: int,
        gpu_type: str | None = None,
        rank: int = 0,
        paused: bool = False,
    ) -> RequestConsumer:
        taking = Taking(slots, rank, paused=paused)
        return await consume_requests(self._connection, deployment_id, gpu_type, receive, taking)

    async def consume_dead_requests(self, answer: Callable[[DeadRequest], Awaitable[None]]) -> RequestConsumer:
        await self._connection.declare(dead_request_queues())
        return await consume_dead_requests(self._connection, answer, self._retry_delay_s)
