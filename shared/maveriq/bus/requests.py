"""Requests as workers take them, and as ingress answers the dead ones."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import structlog

from maveriq.bus.connection import Connection, Delivery, Taking
from maveriq.bus.envelope import Envelope, deadline
from maveriq.bus.handling import about, decode
from maveriq.bus.interface import DeadRequest, Rejected, RequestConsumer, RequestDelivery
from maveriq.bus.queues import request_queues
from maveriq.bus.serving import RetryDelay, bury, refuse
from maveriq.contracts import Fault, Priority, RequestSubmitted
from maveriq.topology import DEAD_REQUESTS, INGRESS, MAX_ATTEMPTS, WORKER, request_queue

log = structlog.get_logger()

DEAD_PREFETCH = 32
CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class RequestInHand:
    """A `RequestDelivery`."""

    request: RequestSubmitted
    priority: Priority
    deadline: float
    delivery: Delivery

    @property
    def attempt(self) -> int:
        return self.delivery.attempt

    @property
    def reply_to(self) -> str | None:
        return self.delivery.envelope.reply_to

    async def ack(self) -> None:
        await self.delivery.ack()

    async def requeue(self) -> None:
        await self.delivery.requeue()


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A `DeadRequest`."""

    request: RequestSubmitted
    attempt: int
    reply_to: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Together:
    """The consumers of every priority as one."""

    consumers: tuple[RequestConsumer, ...]

    async def pause(self) -> None:
        for consumer in self.consumers:
            await consumer.pause()

    async def resume(self) -> None:
        for consumer in self.consumers:
            await consumer.resume()

    async def cancel(self) -> None:
        for consumer in self.consumers:
            await consumer.cancel()


async def consume_requests(
    connection: Connection,
    deployment_id: UUID,
    gpu_type: str | None,
    receive: Callable[[RequestDelivery], None],
    taking: Taking,
) -> RequestConsumer:
    """Take requests of every priority, so many of each; the high queue is asked first."""

    async def consume(priority: Priority) -> RequestConsumer:
        async def take(delivery: Delivery) -> None:
            with about(delivery.envelope, RequestSubmitted, WORKER):
                try:
                    request = _read(delivery.envelope, deployment_id)
                except Rejected as rejected:
                    log.warning("request rejected", queue=delivery.queue, error=str(rejected))
                    await refuse(connection, delivery, rejected.faults, WORKER.dead_queue)
                else:
                    receive(RequestInHand(request, priority, deadline(delivery.envelope, time.time()), delivery))

        return await connection.consume(request_queue(deployment_id, priority, gpu_type), take, taking)

    consumers: list[RequestConsumer] = []
    try:
        for priority in Priority:
            consumers.append(await consume(priority))
    except BaseException:
        await Together(tuple(consumers)).cancel()  # all or none
        raise
    return Together(tuple(consumers))


async def consume_dead_requests(
    connection: Connection, answer: Callable[[DeadRequest], Awaitable[None]], retry_delay_s: RetryDelay
) -> RequestConsumer:
    async def take(delivery: Delivery) -> None:
        with about(delivery.envelope, RequestSubmitted, INGRESS):
            await settle(delivery)

    async def settle(delivery: Delivery) -> None:
        try:
            await answer(_given_up(delivery.envelope))
        except Rejected as rejected:
            await refuse(connection, delivery, rejected.faults, INGRESS.dead_queue)
        except Exception as error:
            log.exception("dead request not answered", attempt=delivery.attempt)
            if delivery.attempt >= MAX_ATTEMPTS:
                await bury(connection, delivery, INGRESS.dead_queue, f"{type(error).__name__}: {error}")
            else:
                await asyncio.sleep(retry_delay_s(delivery.attempt))
                await delivery.requeue()
        else:
            await delivery.ack()

    return await connection.consume(DEAD_REQUESTS, take, Taking(DEAD_PREFETCH))


async def close_requests(
    connection: Connection,
    deployment_id: UUID,
    answer: Callable[[DeadRequest], Awaitable[None]],
    gpu_types: Sequence[str] = (),
) -> None:
    async def take(envelope: Envelope, attempt: int) -> None:
        with suppress(Rejected):  # nobody could have answered it either
            await answer(GivenUp(_read(envelope, deployment_id), attempt, envelope.reply_to, CLOSED))

    for queue in request_queues(deployment_id, gpu_types):
        await connection.dismantle(queue.name, take)


def _read(envelope: Envelope, deployment_id: UUID | None = None) -> RequestSubmitted:
    request = decode(RequestSubmitted, envelope.topic, envelope.body)
    if deployment_id is not None and request.deployment_id != deployment_id:
        raise Rejected(
            Fault(
                field="deployment_id",
                problem=f"this is the queue of {deployment_id}",
                remedy="send the request to the queue of its own deployment",
            )
        )
    return request


def _given_up(envelope: Envelope) -> GivenUp:
    reason = str(envelope.headers.get("reason", "expired"))
    attempt = envelope.headers.get("attempt", MAX_ATTEMPTS if reason == "delivery_limit" else 1)
    return GivenUp(_read(envelope), attempt if isinstance(attempt, int) else 1, envelope.reply_to, reason)
