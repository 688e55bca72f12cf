"""Hands a mailbox its messages as their frames are read.

aiormq wakes the channel's task for a message, which starts a task for it: two turns of the event loop, for each
engine step of each client. A mailbox awaits nothing when it receives, so it needs neither. Written for aiormq 7.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiormq import Channel
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from maveriq.bus.envelope import Envelope
from maveriq.bus.rabbitmq_frames import unpack

log = structlog.get_logger()


class FastPath:
    """Takes the deliveries out of one channel's frames; a channel's frames of one message follow one another."""

    def __init__(self, channel: Channel, receive: Callable[[Envelope], None]) -> None:
        aio: Any = channel
        frames = aio.frames
        self._pass_on: Callable[[Any], Awaitable[None]] = frames.put
        self._receive = receive
        self._delivering = False
        self._properties = Basic.Properties()
        self._parts: list[bytes] = []
        self._missing_bytes = 0
        frames.put = self.put

    async def put(self, item: tuple[int, Any]) -> None:
        """In place of the queue's: called with each frame's weight and the frame."""
        frame = item[1]
        if type(frame) is Basic.Deliver:
            self._delivering = True
            return
        if not self._delivering:
            await self._pass_on(item)
            return
        if type(frame) is ContentHeader:
            self._properties, self._missing_bytes, self._parts = frame.properties, frame.body_size, []
        else:
            self._parts.append(frame.value)
            self._missing_bytes -= len(frame.value)
        if self._missing_bytes <= 0:
            self._delivering = False
            self._deliver(b"".join(self._parts))

    def _deliver(self, body: bytes) -> None:
        try:
            self._receive(unpack(self._properties, body))
        except Exception:  # a bug in who receives must not end the connection
            log.exception("message not received")
