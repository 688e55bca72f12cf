"""How messages leave for RabbitMQ: durable ones confirmed, over reconnects too; mailbox ones as cheaply as can be."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aio_pika.abc import AbstractRobustConnection
from aiormq import Channel
from aiormq.abc import ChannelFrame
from aiormq.exceptions import DeliveryError, PublishError

from maveriq.bus.envelope import Envelope
from maveriq.bus.interface import MailboxGone, QueueFull, Unavailable, Unroutable
from maveriq.bus.rabbitmq_channel import RETRY_S, TROUBLE, LastingChannel
from maveriq.bus.rabbitmq_frames import PERSISTENT, properties, to_mailbox
from maveriq.topology import EXCHANGE

# After an outage mailboxes come back one by one; one that is missing then is not gone yet.
MAILBOX_RETURN_S = 5.0


class Publisher:
    """Publishes what must not be lost."""

    def __init__(self, link: AbstractRobustConnection) -> None:
        self._channel = LastingChannel(link, _declare_exchange, confirms=True)

    async def open(self) -> None:
        await self._channel.open()

    async def close(self) -> None:
        await self._channel.close()

    async def post(self, envelope: Envelope, key: str, *, exchange: str, timeout_s: float) -> None:
        """Persistent, mandatory, confirmed. Raises Unroutable, QueueFull, Unavailable."""

        async def publish() -> None:
            try:
                await self._publish(envelope, key, exchange)
            except QueueFull:
                # a queue that was declared a moment ago, or whose leader is being elected, refuses too
                await asyncio.sleep(RETRY_S)
                await self._publish(envelope, key, exchange)

        await until_done(publish, timeout_s)

    async def _publish(self, envelope: Envelope, key: str, exchange: str) -> None:
        channel = await self._channel.current()
        try:
            await channel.basic_publish(
                envelope.body,
                exchange=exchange,
                routing_key=key,
                properties=properties(envelope, PERSISTENT),
                mandatory=True,
            )
        except PublishError as returned:
            raise Unroutable(f"no queue takes {key}") from returned
        except DeliveryError as refused:
            raise QueueFull(f"a queue for {key} is full") from refused


class Sender:
    """Sends to mailboxes, all on one channel, for that keeps the order.

    Each send ends when the broker has passed the message on. Who sends step after step to one client waits for that
    before the next, and puts what was produced meanwhile into it: when tokens come faster than the broker takes
    messages, messages grow instead of queues.
    """

    def __init__(self, link: AbstractRobustConnection) -> None:
        self._channel = LastingChannel(link, _nothing, confirms=True)
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        await self._channel.open()

    async def close(self) -> None:
        await self._channel.close()

    async def send(self, envelope: Envelope, address: str) -> None:
        channel = self._channel.now
        if channel is not None:
            with suppress(*TROUBLE):
                await (await self._write(channel, envelope, address, returnable=False))

    async def send_confirmed(self, envelope: Envelope, address: str, *, timeout_s: float) -> None:
        """Raises MailboxGone, Unavailable."""

        async def publish() -> None:
            while True:
                channel = await self._channel.current()
                try:
                    await (await self._write(channel, envelope, address, returnable=True))
                    return
                except PublishError as returned:
                    if not self._mailboxes_are_returning():
                        raise MailboxGone(address) from returned
                    await asyncio.sleep(RETRY_S)

        await until_done(publish, timeout_s)

    async def _write(
        self, channel: Channel, envelope: Envelope, address: str, *, returnable: bool
    ) -> "asyncio.Future[object]":
        """Write it to the socket, after what was written before; done when the broker confirms, or returns it.

        What aiormq's basic_publish does, without building every frame anew. Raises one of TROUBLE.
        """
        frames = to_mailbox(channel.number, address, envelope, channel.max_content_size, returnable=returnable)
        aio: Any = channel
        confirmed: asyncio.Future[object] = aio.create_future()
        async with self._turn:
            aio.delivery_tag += 1
            tag = aio.delivery_tag
            aio.confirmations[tag] = confirmed
            if returnable:  # aiormq finds whom a returned message concerns by its id
                aio.message_id_delivery_tag[envelope.message_id] = tag
                confirmed.add_done_callback(lambda _: aio.message_id_delivery_tag.pop(envelope.message_id, None))
            try:
                await aio.write_queue.put(ChannelFrame(payload=frames, should_close=False))
            except BaseException:  # never sent: the next one has this number
                aio.delivery_tag -= 1
                aio.confirmations.pop(tag, None)
                raise
        return confirmed

    def _mailboxes_are_returning(self) -> bool:
        since = self._channel.returned_at
        return since is not None and asyncio.get_running_loop().time() - since < MAILBOX_RETURN_S


async def until_done(publish: Callable[[], Awaitable[None]], timeout_s: float) -> None:
    """Try over lost connections until the time is up. Raises Unavailable then."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    await publish()
                    return
                except TimeoutError:
                    raise
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                    # the channel was closed, not we
                except TROUBLE:
                    pass
                await asyncio.sleep(RETRY_S)
    except TimeoutError as late:
        raise Unavailable(f"the broker did not confirm within {timeout_s:g} s") from late


async def _declare_exchange(channel: Channel) -> None:
    await channel.exchange_declare(EXCHANGE, exchange_type="topic", durable=True)


async def _nothing(channel: Channel) -> None: ...
