"""A channel that comes back: opened and set up again whenever the broker, the connection or a queue was lost."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import cast

import structlog
from aio_pika.abc import AbstractRobustConnection
from aiormq import Channel
from aiormq.exceptions import AMQPError, ChannelNotFoundEntity

log = structlog.get_logger()

# what a lost connection raises, depending on where it caught us
TROUBLE = (AMQPError, OSError, RuntimeError, asyncio.InvalidStateError, TimeoutError)
RETRY_S = 0.2
SET_UP_TIMEOUT_S = 2.0


async def open_channel(link: AbstractRobustConnection, *, confirms: bool = False) -> Channel:
    """A channel that does not come back. Raises one of TROUBLE."""
    await link.ready()
    if link.transport is None:
        raise ConnectionError("the connection was lost")
    channel = await link.transport.connection.channel(publisher_confirms=confirms, on_return_raises=confirms)
    assert isinstance(channel, Channel), "aiormq has one kind"
    return channel


class LastingChannel:
    """Aiormq's channels, one after the other, each set up by the same function."""

    def __init__(
        self,
        link: AbstractRobustConnection,
        set_up: Callable[[Channel], Awaitable[None]],
        *,
        confirms: bool = False,
        ends_with_queue: bool = False,
    ) -> None:
        """Args:
        ends_with_queue: it is given up once what it consumes was deleted.
        """
        self._link = link
        self._set_up = set_up
        self._confirms = confirms
        self._ends_with_queue = ends_with_queue
        self._channel: Channel | None = None
        self._leaving: Channel | None = None
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._retired = False
        self.returned_at: float | None = None
        """When it last came back, by the loop's clock; None: it was never lost."""

    @property
    def now(self) -> Channel | None:
        """The channel, unless it is lost just now."""
        channel = self._channel
        return None if channel is None or channel.is_closed else channel

    async def open(self) -> None:
        """Raises one of TROUBLE: the first time, who opens it wants to know."""
        await self._establish()
        self._keeper = asyncio.create_task(self._keep())

    async def current(self) -> Channel:
        """The channel, as soon as there is one."""
        while (channel := self.now) is None:
            self._up.clear()
            await self._up.wait()
        return channel

    def retire(self) -> None:
        """Let it stay as it is, but never come back."""
        self._retired = True

    async def close(self) -> None:
        self.retire()
        if self._keeper is not None:
            self._keeper.cancel()
        if self._channel is not None:
            await self._let_go(self._channel)

    async def _keep(self) -> None:
        while self._channel is not None:
            closing = cast("asyncio.Future[None]", self._channel.closing)  # pyright: ignore[reportUnknownMemberType]
            await asyncio.wait([closing])
            if not closing.cancelled():
                closing.exception()  # seen: asyncio would report it
            self._channel = None
            self._up.clear()
            await self._return()

    async def _return(self) -> None:
        while not self._retired:
            try:
                await self._establish()
            except ChannelNotFoundEntity:
                if self._ends_with_queue:
                    return
                await asyncio.sleep(RETRY_S)
            except TROUBLE as trouble:
                log.debug("channel not back yet", error=repr(trouble))
                await asyncio.sleep(RETRY_S)
            else:
                self.returned_at = asyncio.get_running_loop().time()
                return

    async def _establish(self) -> None:
        channel = await open_channel(self._link, confirms=self._confirms)
        channel.on_consumer_cancel_callbacks.add(lambda _: asyncio.ensure_future(self._let_go(channel)))
        try:
            async with asyncio.timeout(SET_UP_TIMEOUT_S):
                await self._set_up(channel)
        except BaseException:
            await self._let_go(channel)
            raise
        self._channel = channel
        self._up.set()

    async def _let_go(self, channel: Channel) -> None:
        """Also when the broker cancelled our consumer: its queue was deleted, or its node went."""
        if channel is not self._leaving:  # two at once wait for each other
            self._leaving = channel
            with suppress(*TROUBLE):
                await channel.close()
