"""A stream of events stays alive in silence, and ends with its reader."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from maveriq_ingress.event_stream import EventStream, ReaderGone, while_connected


class Connection:
    """An ASGI connection: what was sent, and whether the client is still there."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.beaten = asyncio.Event()
        self.left = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message.get("body", b"").startswith(b":"):
            self.beaten.set()

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}


async def test_a_silent_stream_sends_comments_until_its_next_event() -> None:
    connection = Connection()

    async def events() -> AsyncGenerator[bytes, None]:
        await connection.beaten.wait()
        yield b"data: 1\n\n"

    await EventStream(events(), heartbeat_s=0.001)({"type": "http"}, connection.receive, connection.send)
    bodies = [message["body"] for message in connection.sent[1:]]
    assert bodies[0].startswith(b":")
    assert bodies[-2:] == [b"data: 1\n\n", b""]
    assert connection.sent[-1]["more_body"] is False


async def test_a_reader_that_leaves_closes_the_events() -> None:
    connection = Connection()
    closed = asyncio.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield b"data: 1\n\n"
            connection.left.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    await EventStream(events())({"type": "http"}, connection.receive, connection.send)
    assert closed.is_set()


async def test_work_for_a_reader_that_left_is_cancelled() -> None:
    connection = Connection()
    cancelled = asyncio.Event()

    async def work() -> None:
        connection.left.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(ReaderGone):
        await while_connected(connection.receive, work())
    assert cancelled.is_set()
