"""Server-sent events: written as they come, kept alive while none come, stopped when the reader leaves."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

HEARTBEAT_S = 15.0  # common proxies cut a silent connection after 30 to 60 s

T = TypeVar("T")


class ReaderGone(Exception):
    """The client closed the connection: nobody reads an answer."""


async def gone(receive: Receive) -> None:
    """Returns when the client closes the connection. Its body has been read by then."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client leaves.

    Raises:
        ReaderGone, and what `work` raises.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ReaderGone
        return working.result()
    finally:
        await _stop(working, leaving)


class EventStream(Response):
    """A response whose body is made while it is sent. `events` is closed however it ends."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], *, heartbeat_s: float = HEARTBEAT_S) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._heartbeat_s = heartbeat_s
        self._quiet = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        beating = asyncio.ensure_future(self._beat(send))
        try:
            await while_connected(receive, self._write(send))
        except ReaderGone:
            return
        finally:
            await _stop(beating)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            async for event in events:
                self._quiet = False
                await send({"type": "http.response.body", "body": event, "more_body": True})

    async def _beat(self, send: Send) -> None:
        while True:
            self._quiet = True
            await asyncio.sleep(self._heartbeat_s)
            if self._quiet:
                await send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})


async def _stop(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
