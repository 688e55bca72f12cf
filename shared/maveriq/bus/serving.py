"""Decides the fate of each message that a service consumes: replies and ack, retry, or the dead queue."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from maveriq.bus.connection import Connection, Delivery, Taking
from maveriq.bus.envelope import Envelope, identity, refusal, seal, trace_of, traced
from maveriq.bus.handler import Handler
from maveriq.bus.handling import about, check_handlers, decode, replies, reply_id
from maveriq.bus.interface import PUBLISH_TIMEOUT_S, MailboxGone, Rejected, RequestConsumer, Unavailable, Unroutable
from maveriq.bus.queues import service_queues, topology_queues
from maveriq.contracts import Fault
from maveriq.topology import EXCHANGE, MAX_ATTEMPTS, SERVICES, Service
from maveriq.tracing import Attributes, Kind, Spans, current, recorded

log = structlog.get_logger()

STOPPING_S = 5.0  # what handlers in flight are given when a service is stopped
MAX_REASON_CHARS = 2_000  # a header travels in one frame

RetryDelay = Callable[[int], float]
"""Attempt in, seconds until the next one out."""

_HEARD_BY_SERVICES = frozenset(message for service in SERVICES for message in service.consumes)


class Serving:
    """One service on one connection."""

    def __init__(self, connection: Connection, service: Service, retry_delay_s: RetryDelay, spans: Spans) -> None:
        self._connection = connection
        self._service = service
        self._retry_delay_s = retry_delay_s
        self._spans = spans
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._stopping = asyncio.Event()

    async def run(
        self, handlers: Sequence[Handler[Any]], node: str | None, ready: Callable[[], None] | None = None
    ) -> None:
        """Serve until cancelled. Raises TypeError on other handlers than the topology's."""
        check_handlers(self._service, handlers)
        await self._connection.declare((*topology_queues(), *service_queues(self._service, node)))
        consumers: list[RequestConsumer] = []
        try:
            for handler in handlers:
                consumers.append(await self._consume(handler, self._service.queue(handler.message, node)))
            if ready is not None:
                ready()
            await asyncio.Event().wait()
        finally:
            await self._stop(consumers)

    async def _consume(self, handler: Handler[Any], queue: str) -> RequestConsumer:
        async def receive(delivery: Delivery) -> None:
            await self._receive(handler, delivery)

        return await self._connection.consume(queue, receive, Taking(handler.prefetch))

    async def _stop(self, consumers: Sequence[RequestConsumer]) -> None:
        self._stopping.set()
        with suppress(Unavailable):
            for consumer in consumers:
                await consumer.cancel()
        await asyncio.sleep(0)  # what was delivered a moment ago is in flight now
        in_flight = set(self._in_flight)
        if in_flight:
            _, late = await asyncio.wait(in_flight, timeout=STOPPING_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _receive(self, handler: Handler[Any], delivery: Delivery) -> None:
        task = asyncio.current_task()
        assert task is not None, "the connection runs this as a task"
        self._in_flight.add(task)
        try:
            with about(delivery.envelope, handler.message, self._service):
                await self._settle(handler, delivery)
        except asyncio.CancelledError:
            await delivery.requeue()
            raise
        finally:
            self._in_flight.discard(task)

    async def _settle(self, handler: Handler[Any], delivery: Delivery) -> None:
        try:
            what = f"process {handler.message.topic}"
            parent, attributes = trace_of(delivery.envelope), span_attributes(delivery, self._connection.system)
            with recorded(self._spans, what, Kind.CONSUMER, parent, attributes):
                await self._handle(handler, delivery.envelope)
        except Rejected as rejected:
            log.warning("message rejected", error=str(rejected))
            await refuse(self._connection, delivery, rejected.faults, self._service.dead_queue)
        except Exception as error:
            log.exception("message failed", attempt=delivery.attempt)
            await self._retry(delivery, error)
        else:
            await delivery.ack()

    async def _handle(self, handler: Handler[Any], envelope: Envelope) -> None:
        message = decode(handler.message, envelope.topic, envelope.body)
        cause, began_s = identity(envelope), time.monotonic()
        caused = replies(self._service, await handler.run(message))
        took_ms = round(1e3 * (time.monotonic() - began_s), 1)
        for index, reply in enumerate(caused):
            sealed = seal(reply, reply_id(cause, reply, index), cause=cause, trace=current())
            try:
                await self._connection.post(sealed, reply.routing_key, exchange=EXCHANGE, timeout_s=PUBLISH_TIMEOUT_S)
            except Unroutable:
                if type(reply) in _HEARD_BY_SERVICES:
                    raise
                # only producers hear it, and none listens now
            if reply.correlation is not None:
                log.info("message caused", caused=reply.topic, deployment_id=str(reply.correlation), took_ms=took_ms)

    async def _retry(self, delivery: Delivery, error: Exception) -> None:
        if delivery.attempt >= MAX_ATTEMPTS:
            reason = f"failed {delivery.attempt} times, at last with {type(error).__name__}: {error}"
            await bury(self._connection, delivery, self._service.dead_queue, reason)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._retry_delay_s(delivery.attempt)):
                await self._stopping.wait()
        await delivery.requeue()


async def refuse(connection: Connection, delivery: Delivery, faults: Sequence[Fault], dead_queue: str) -> None:
    """Tell the sender what is wrong, if it can be told, and dead-letter the message."""
    envelope = delivery.envelope
    refused = refusal(envelope, delivery.queue, faults)
    if envelope.reply_to:
        answer = seal(refused, reply_id(identity(envelope), refused, 0), cause=identity(envelope))
        try:
            await connection.send_confirmed(answer, envelope.reply_to, timeout_s=PUBLISH_TIMEOUT_S)
        except (MailboxGone, Unavailable) as gone:
            log.info("sender not told", reply_to=envelope.reply_to, error=str(gone))
    await bury(connection, delivery, dead_queue, "; ".join(str(fault) for fault in refused.faults))


async def bury(connection: Connection, delivery: Delivery, dead_queue: str, reason: str) -> None:
    """Move a message, with the reason, to a dead queue; where that cannot be had it is handed out again later."""
    headers = {**traced(delivery.envelope), "reason": reason[:MAX_REASON_CHARS], "dead_from": delivery.queue}
    dead = replace(delivery.envelope, headers=headers, expires_s=None)
    try:
        await connection.post(dead, dead_queue, exchange="", timeout_s=PUBLISH_TIMEOUT_S)
    except (Unroutable, Unavailable) as error:
        log.error("message not dead-lettered, requeued", error=str(error))
        await delivery.requeue()
    else:
        await delivery.ack()


def span_attributes(delivery: Delivery, system: str) -> Attributes:
    """In the words of OpenTelemetry's semantic conventions for messaging.

    Args:
        system: the broker, in those words.
    """
    envelope = delivery.envelope
    about_deployment = {"messaging.message.conversation_id": envelope.correlation_id} if envelope.correlation_id else {}
    return {
        "messaging.system": system,
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": delivery.queue,
        "messaging.message.id": str(identity(envelope)),
        "maveriq.attempt": delivery.attempt,
        **about_deployment,
    }
