"""How messages leave for RabbitMQ: durable ones confirmed, over reconnects too; mailbox ones as cheaply as can be."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

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

    The channel does not confirm: the broker would answer each message. A confirm where it is wanted is the answer to
    a harmless method sent right after the message: it comes after the message was routed, or returned.
    """

    def __init__(self, link: AbstractRobustConnection) -> None:
        self._channel = LastingChannel(link, _nothing)

    async def open(self) -> None:
        await self._channel.open()

    async def close(self) -> None:
        await self._channel.close()

    async def send(self, envelope: Envelope, address: str) -> None:
        channel = self._channel.now
        if channel is not None:
            with suppress(*TROUBLE):
                # until the socket has it: a broker that takes no more must hold its senders back
                await _write(channel, envelope, address, returnable=False)

    async def send_confirmed(self, envelope: Envelope, address: str, *, timeout_s: float) -> None:
        """Raises MailboxGone, Unavailable."""

        async def publish() -> None:
            while not await self._delivered(await self._channel.current(), envelope, address):
                if not self._mailboxes_are_returning():
                    raise MailboxGone(address)
                await asyncio.sleep(RETRY_S)

        await until_done(publish, timeout_s)

    async def _delivered(self, channel: Channel, envelope: Envelope, address: str) -> bool:
        returned: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        assert envelope.message_id is not None, "sealed"
        # aiormq finds whom a returned message concerns by its id, among those that wait for a confirm
        key = -id(returned)
        waiting: Any = channel
        waiting.message_id_delivery_tag[envelope.message_id] = key
        waiting.confirmations[key] = returned
        try:
            await _write(channel, envelope, address, returnable=True)
            await channel.basic_qos(prefetch_count=1)
        finally:
            waiting.message_id_delivery_tag.pop(envelope.message_id, None)
            waiting.confirmations.pop(key, None)
        return not returned.done()

    def _mailboxes_are_returning(self) -> bool:
        since = self._channel.returned_at
        return since is not None and asyncio.get_running_loop().time() - since < MAILBOX_RETURN_S


async def _write(channel: Channel, envelope: Envelope, address: str, *, returnable: bool) -> None:
    """Write it to the socket; messages leave in the order of the calls. Raises one of TROUBLE."""
    frames = to_mailbox(channel.number, address, envelope, channel.max_content_size, returnable=returnable)
    written = cast("asyncio.Future[None]", channel.create_future())  # pyright: ignore[reportUnknownMemberType]
    way_out = cast("asyncio.Queue[ChannelFrame]", channel.write_queue)  # pyright: ignore[reportUnknownMemberType]
    await way_out.put(ChannelFrame(payload=frames, should_close=False, drain_future=written))
    await written


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
