"""How messages come from RabbitMQ: consumers of durable queues, and mailboxes."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aio_pika.abc import AbstractRobustConnection
from aiormq import Channel
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from maveriq.bus.connection import Receive, Taking
from maveriq.bus.envelope import Envelope
from maveriq.bus.interface import PUBLISH_TIMEOUT_S, Unroutable
from maveriq.bus.queues import DeclaredOtherwise, QueueSpec
from maveriq.bus.rabbitmq_channel import TROUBLE, LastingChannel
from maveriq.bus.rabbitmq_fast_path import FastPath
from maveriq.bus.rabbitmq_frames import arguments, attempt, envelope
from maveriq.bus.rabbitmq_sending import until_done
from maveriq.topology import EXCHANGE, QUEUE_LENGTH


async def declare(channel: Channel, queue: QueueSpec) -> None:
    """Raises DeclaredOtherwise, or one of TROUBLE."""
    try:
        await channel.queue_declare(queue.name, durable=True, arguments=arguments(queue))
    except ChannelPreconditionFailed as error:
        raise DeclaredOtherwise(f"{queue.name}: {error}; delete it once it is empty") from error
    for key in queue.bindings:
        await channel.queue_bind(queue.name, EXCHANGE, key)


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """A `Delivery`."""

    message: DeliveredMessage
    consumption: "Consumption"
    envelope: Envelope
    attempt: int

    @property
    def queue(self) -> str:
        return self.consumption.queue

    async def ack(self) -> None:
        with suppress(*TROUBLE):
            await self.message.channel.basic_ack(self._tag)
        self.consumption.let_go(self)

    async def requeue(self) -> None:
        with suppress(*TROUBLE):
            await self.message.channel.basic_nack(self._tag, requeue=True)
        self.consumption.let_go(self)

    @property
    def _tag(self) -> int:
        tag = self.message.delivery_tag
        assert tag is not None, "it was delivered"
        return tag


class Consumption:
    """One consumer of one queue, on a channel of its own, for the prefetch is the channel's."""

    def __init__(
        self, link: AbstractRobustConnection, queue: str, spec: QueueSpec | None, receive: Receive, taking: Taking
    ) -> None:
        """Args:
        spec: of a queue that is ours to declare again should the broker come back without it.
        """
        self.queue = queue
        self._spec = spec
        self._receive = receive
        self._taking = taking
        self._paused = taking.paused
        self._turn = asyncio.Lock()
        self._tag: str | None = None
        self._has_taken = False  # since it was last resumed
        self._in_hand: set[Taken] = set()
        self._cancelled = False
        self._channel = LastingChannel(link, self._set_up, ends_with_queue=spec is None)
        self._closing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Raises Unroutable: there is no such queue."""
        try:
            await self._channel.open()
        except ChannelNotFoundEntity as missing:
            raise Unroutable(f"there is no queue {self.queue}") from missing

    async def pause(self) -> None:
        self._paused = True
        async with self._turn:
            await self._stop(self._channel.now)

    async def resume(self) -> None:
        """A new consumer: what it may have in hand is counted by consumer."""
        self._paused = False
        async with self._turn:
            channel = self._channel.now
            if self._cancelled or channel is None or (self._tag is not None and not self._has_taken):
                return
            await self._stop(channel)
            with suppress(*TROUBLE):  # the channel comes back, and takes then
                await self._begin(channel)

    async def cancel(self) -> None:
        """Take no more. What is in hand stays in hand."""
        self._cancelled = True
        self._channel.retire()
        async with self._turn:
            await self._stop(self._channel.now)
        await asyncio.sleep(0)  # what came before the cancellation is in hand now
        self._close_if_done()

    def let_go(self, taken: Taken) -> None:
        self._in_hand.discard(taken)
        self._close_if_done()

    @property
    def closed(self) -> bool:
        return self._closing is not None

    async def close(self) -> None:
        await self._channel.close()

    async def _set_up(self, channel: Channel) -> None:
        self._in_hand.clear()  # those of a lost channel are the broker's again
        if self._spec is not None:
            await declare(channel, self._spec)
        await channel.basic_qos(prefetch_count=self._taking.prefetch)
        self._tag = None
        if not self._paused:
            await self._begin(channel)
        elif self._spec is None:
            await channel.queue_declare(self.queue, passive=True)  # who consumes it hears whether it is there

    async def _begin(self, channel: Channel) -> None:
        self._has_taken = False
        ranked: dict[str, Any] = {
            "x-priority": -self._taking.rank
        }  # the highest comes first, and 0 where none is named
        self._tag = (await channel.basic_consume(self.queue, self._take, arguments=ranked)).consumer_tag

    async def _stop(self, channel: Channel | None) -> None:
        tag, self._tag = self._tag, None
        if channel is not None and tag is not None:
            with suppress(*TROUBLE):
                await channel.basic_cancel(tag, timeout=PUBLISH_TIMEOUT_S)

    async def _take(self, message: DeliveredMessage) -> None:
        taken = Taken(message, self, envelope(message), attempt(message))
        self._in_hand.add(taken)
        self._has_taken = True
        await self._receive(taken)

    def _close_if_done(self) -> None:
        if self._cancelled and not self._in_hand and self._closing is None:
            self._closing = asyncio.ensure_future(self._channel.close())


class RabbitMqMailbox:
    """Keeps `Mailbox`: an exclusive queue under a name of ours, which comes back, empty, after a lost connection."""

    def __init__(self, link: AbstractRobustConnection, address: str, receive: Callable[[Envelope], None]) -> None:
        self._address = address
        self._receive = receive
        self._keys: set[str] = set()
        self.closed = False
        self._channel = LastingChannel(link, self._set_up)

    @property
    def address(self) -> str:
        return self._address

    async def open(self) -> None:
        await self._channel.open()

    async def bind(self, routing_key: str) -> None:
        self._keys.add(routing_key)

        async def bind() -> None:
            await (await self._channel.current()).queue_bind(self._address, EXCHANGE, routing_key)

        await until_done(bind, PUBLISH_TIMEOUT_S)

    async def unbind(self, routing_key: str) -> None:
        self._keys.discard(routing_key)

        async def unbind() -> None:
            await (await self._channel.current()).queue_unbind(self._address, EXCHANGE, routing_key)

        await until_done(unbind, PUBLISH_TIMEOUT_S)

    async def close(self) -> None:
        self.closed = True
        await self._channel.close()  # deletes the queue, for nobody else may consume it

    async def _set_up(self, channel: Channel) -> None:
        # bounded: an owner that reads no more must not fill the broker; what it loses it sees by the numbers
        bound: dict[str, Any] = {"x-max-length": QUEUE_LENGTH, "x-overflow": "drop-head"}
        await channel.queue_declare(self._address, exclusive=True, auto_delete=True, arguments=bound)
        for key in self._keys:
            await channel.queue_bind(self._address, EXCHANGE, key)
        FastPath(channel, self._receive)
        await channel.basic_consume(self._address, _elsewhere, no_ack=True)


async def _elsewhere(message: DeliveredMessage) -> None:
    raise AssertionError("a mailbox's messages take the fast path")


async def dismantle(channel: Channel, queue: str, receive: Callable[[Envelope, int], Awaitable[None]]) -> None:
    """Take all that waits in a queue, delete it, and take what came in between.

    A consumer rather than single gets: what is published until the very deletion is delivered to it first.
    """
    arrived: asyncio.Queue[DeliveredMessage] = asyncio.Queue()

    async def take(message: DeliveredMessage) -> None:
        arrived.put_nowait(message)

    async def answer(message: DeliveredMessage) -> None:
        await receive(envelope(message), attempt(message))

    try:
        await channel.basic_consume(queue, take)
    except ChannelNotFoundEntity:
        return
    while not arrived.empty() or (await channel.queue_declare(queue, passive=True)).message_count:
        try:
            message = await asyncio.wait_for(arrived.get(), timeout=1)
        except TimeoutError:
            continue
        await answer(message)
        if message.delivery_tag is not None:
            await channel.basic_ack(message.delivery_tag)
    await channel.queue_delete(queue)
    await asyncio.sleep(0)
    while not arrived.empty():
        await answer(arrived.get_nowait())
